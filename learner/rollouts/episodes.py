"""Mean return and length of training episodes, without the bias of short episodes.

Short episodes end first: of the episodes that ended soon after the start, all were short, and where success ends an
episode, all were successes. So the order of ending must not choose the episodes. Here every environment contributes its
last episodes, as soon as it has taken as many steps as the game's time limit allows to an episode.

Then the mean is unbiased. Let an environment's episodes have independent lengths X, none above L. Its last episode
finished by step t has length x with probability

    sum over k of P(S_k + x <= t < S_k + x + X') P(X = x) = P(X = x)    for every t >= L,

where S_k is the step at which the k-th episode ends: at step t - x some episode is beginning or in progress, and
exactly one. The same holds for the last n episodes for every t >= n L. (Of a policy that changes, they are episodes of
recent versions.)
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from learner.rollouts.staging import RolloutSource

# Environments contribute equally many last episodes, together at least this many, as soon as they have had the time.
RECENT_EPISODES = 100


@dataclass(slots=True)
class _ActorEpisodes:
    """`steps` that each environment of an actor has taken since it began, and each one's last episodes, oldest first:
    (return, length). `sequence` is that of the last rollout since this process started.
    """

    steps: int
    last: list[deque[tuple[float, int]]]
    sequence: tuple[int, int] = (-1, -1)


class TrainingEpisodes:
    """The last episodes of every environment, by actor. Used by the main thread; part of every checkpoint.

    `time_limit` is the game's, in steps; `num_envs` counts the environments of all actors.
    """

    def __init__(self, time_limit: int, num_envs: int, envs_per_actor: int):
        self._time_limit = time_limit
        self._per_env = math.ceil(RECENT_EPISODES / num_envs)
        self._envs_per_actor = envs_per_actor
        self._actors: dict[int, _ActorEpisodes] = {}
        self._newest_batch: list[int] = []  # its actors
        self._all_had_time = False  # to finish an episode, at some batch so far

    def record(self, sources: Iterable[RolloutSource]) -> None:
        """Adds the rollouts of one batch, those of one actor in chronological order.

        After a loss, one rollout may be older than those of an earlier batch. Its episodes then count as the actor's
        newest, which introduces no bias: the order does not depend on how they ended.
        """
        newest_batch = set()
        for source in sources:
            newest_batch.add(source.actor_id)
            if source.actor_id not in self._actors:
                last = [deque[tuple[float, int]](maxlen=self._per_env) for _ in range(self._envs_per_actor)]
                self._actors[source.actor_id] = _ActorEpisodes(0, last)
            record = self._actors[source.actor_id]
            if source.sequence > record.sequence:
                record.sequence = source.sequence
                # Those of a replaced actor begin at 0. Once there was time for n episodes, the last n are their own.
                record.steps = int(source.next_state.steps)
            episodes = zip(source.episode_returns.tolist(), source.episode_lengths.tolist(), strict=True)
            for environment, episode in zip(source.episode_envs.tolist(), episodes, strict=True):
                record.last[environment].append(episode)
        self._newest_batch = sorted(newest_batch)
        if all(self._num_usable(self._actors[actor_id]) for actor_id in self._newest_batch):
            self._all_had_time = True

    def averages(self) -> dict[str, float | None]:
        """Columns of a metrics row.

        None until every environment of a batch has had time to finish an episode. From then on the mean over the
        environments of the newest batch that have had it: those of an actor that was replaced or joined are left out
        until they have, which does not depend on how they play; None if none is left.
        """
        episodes = self._usable() if self._all_had_time else []
        return {
            "episode_return": float(np.mean([episode_return for episode_return, _ in episodes])) if episodes else None,
            "episode_length": float(np.mean([length for _, length in episodes])) if episodes else None,
        }

    def _usable(self) -> Sequence[tuple[float, int]]:
        return [
            episode
            for record in (self._actors[actor_id] for actor_id in self._newest_batch)
            for last in record.last
            for episode in list(last)[max(0, len(last) - self._num_usable(record)) :]
        ]

    def _num_usable(self, record: _ActorEpisodes) -> int:
        """How many last episodes every environment of the actor has had time for, and are used."""
        return min(self._per_env, record.steps // self._time_limit)

    def clear(self) -> None:
        """Forgets everything, because all environments start again."""
        self._actors.clear()
        self._newest_batch = []
        self._all_had_time = False

    def state_dict(self) -> dict[str, Any]:
        """A copy as plain values."""
        return {
            "actors": {
                actor_id: {"steps": record.steps, "last": [list(last) for last in record.last]}
                for actor_id, record in self._actors.items()
            },
            "newest_batch": list(self._newest_batch),
            "all_had_time": self._all_had_time,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state in which `state_dict` was called."""
        self._actors = {
            actor_id: _ActorEpisodes(
                record["steps"],
                [deque((tuple(episode) for episode in last), maxlen=self._per_env) for last in record["last"]],
            )
            for actor_id, record in state["actors"].items()
        }
        self._newest_batch = list(state["newest_batch"])
        self._all_had_time = state["all_had_time"]
