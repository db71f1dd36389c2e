"""What a run remembers beside the learner: episodes seen, counters, and where every actor stands."""

from collections import deque
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from common.messages import ActorState
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import StagedBatch

# Episodes that episode_return and episode_length are averaged over, as baselines and CleanRL do.
RECENT_EPISODES = 100
COUNTERS = ("actor_restarts", "actors_hung", "lost_rollouts", "dropped_for_lag", "skipped_updates")


@dataclass(slots=True)
class EpisodeAverages:
    """Returns and lengths of the episodes that ended most recently in training."""

    returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))

    def add(self, staged: StagedBatch) -> int:
        """Takes in the episodes of one batch and returns how many there were."""
        for _, source in sorted(staged.sources.items()):
            self.returns.extend(source.episode_returns.tolist())
            self.lengths.extend(source.episode_lengths.tolist())
        return sum(len(source.episode_returns) for source in staged.sources.values())

    def row(self) -> dict[str, float | None]:
        """null until the first episode has ended."""
        return {
            "episode_return": float(np.mean(self.returns)) if self.returns else None,
            "episode_length": float(np.mean(self.lengths)) if self.lengths else None,
        }


@dataclass(slots=True)
class RunState:
    """Part of every checkpoint. `counters` are the totals of the run, all its resumptions together."""

    episodes: EpisodeAverages = field(default_factory=EpisodeAverages)
    counters: RunCounters = field(default_factory=RunCounters)
    # By actor_id, after the newest batch that was trained on; an actor that had no part in it is not here.
    actors: dict[int, ActorState] = field(default_factory=dict)

    def take_in(self, staged: StagedBatch) -> int:
        """What a batch that was trained on leaves behind; returns the number of episodes that ended in it."""
        # In order of arrival: of an actor's several rollouts the last one counts.
        self.actors = {source.actor_id: source.next_state for source in staged.sources.values()}
        return self.episodes.add(staged)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, independent of what comes later."""
        return {
            "episode_returns": list(self.episodes.returns),
            "episode_lengths": list(self.episodes.lengths),
            "counters": {name: getattr(self.counters, name) for name in COUNTERS},
            "actors": {
                actor_id: {f.name: torch.from_numpy(np.array(getattr(state, f.name))) for f in fields(ActorState)}
                for actor_id, state in self.actors.items()
            },
        }

    @staticmethod
    def from_state_dict(state: dict[str, Any]) -> "RunState":
        """What `state_dict` gave."""
        restored = RunState()
        restored.episodes.returns.extend(state["episode_returns"])
        restored.episodes.lengths.extend(state["episode_lengths"])
        restored.counters = RunCounters(**state["counters"])
        for actor_id, arrays in state["actors"].items():
            restored.actors[actor_id] = ActorState(**{name: tensor.numpy() for name, tensor in arrays.items()})
        return restored
