"""Plays a policy on exact levels: k episodes on every level, many levels in one vectorized batch.

Slot i is bound to the level `slots[i]` and plays its first k episodes to their end: taking the episodes that finish
first would favor short ones. Every episode of a level starts from the same saved state and has its own random numbers,
so it depends neither on the episodes before nor on which other levels share the batch. Finished slots need no
inference; once half of the batch is finished, waiting slots take their places.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from common.games import Game
from common.policy_network import PolicyNetwork, sample_actions
from common.storage.checkpoints import Checkpoint
from evaluator.levels.level_envs import batch_size, borrow_envs, level_state, load_states
from evaluator.levels.level_sets import Split
from evaluator.scores.statistics import Episode

# (level, episode, uint8 frame [64, 64, 3], action), called before the action is taken. Copy the frame to keep it.
OnStep = Callable[[int, int, np.ndarray, int], None]

# On one thread, a frame's logits are bit-identical in any batch of 4 to 32 frames (measured; smaller batches use
# a different matrix product). Larger batches are slower because they exceed the cache.
MIN_BATCH, MAX_BATCH = 4, 32
_NO_OP = 4


class WrongLevelError(RuntimeError):
    """An environment played a different level than its slot is bound to, so the scores would be wrong."""


def load_policy(checkpoint: Checkpoint) -> PolicyNetwork:
    """The checkpoint's policy, ready for inference on the CPU in float32."""
    policy = PolicyNetwork(checkpoint.config.network).eval()
    policy.load_weights(checkpoint.weights)
    return policy


def episode_uniforms(seed: int, level: int, episode: int, count: int) -> np.ndarray:
    """float32 `[count]` in [0, 1): the random numbers of one episode, one per step.

    Philox is a counter-based generator: each key has its own stream (Salmon et al. 2011), and (seed, level, episode)
    fill its 128-bit key without collisions.
    """
    key = np.array([seed, (level << 32) | episode], np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)


def play(
    policy: PolicyNetwork,
    game: Game,
    slots: Sequence[tuple[Split, int]],
    episodes_per_level: int,
    seed: int,
    greedy: bool = False,
    on_step: OnStep | None = None,
    num_envs: int | None = None,
) -> list[Episode]:
    """Exactly `episodes_per_level` episodes on every level of `slots`, in that order.

    Args:
        policy: on the CPU, in float32.
        slots: (split, level) pairs; the split only labels the records.
        seed: of the action noise.
        greedy: take the most probable action instead of sampling.
        on_step: called for every step of every episode.
        num_envs: environments in the batch, by default as many as `batch_size` says.

    Raises:
        WrongLevelError: an environment reports a different level than it is bound to.
    """
    tracker = _EpisodeTracker(slots, episodes_per_level, seed, game.time_limit)
    order = np.empty(0, np.int64)  # order[i]: the slot at place i of the batch
    num_started = 0
    num_envs = num_envs or batch_size(len(slots))
    with borrow_envs(game, num_envs) as envs:
        while (places := np.flatnonzero(tracker.is_playing[order])).size or num_started < len(slots):
            if places.size <= num_envs // 2 and num_started < len(slots):
                states = envs.get_state() if places.size else []
                added = np.arange(num_started, min(num_started + num_envs - places.size, len(slots)))
                starts = [level_state(game, slots[slot][1]) for slot in added]
                load_states(envs, [*(states[place] for place in places), *starts], num_envs)
                _, frames, _ = envs.observe()
                order = np.concatenate([order[places], added])
                places = np.arange(order.size)
                num_started += added.size
            active = order[places]
            chosen = choose_actions(policy, frames[places], tracker.current_uniforms(active), greedy)
            if on_step is not None:
                for place, slot, action in zip(places, active, chosen, strict=True):
                    on_step(slots[slot][1], int(tracker.episode[slot]), frames[place], int(action))
            actions = np.full(num_envs, _NO_OP, np.int32)
            actions[places] = chosen
            envs.act(actions)
            rewards, frames, first = envs.observe()
            tracker.count_step(active, rewards[places])
            ended = places[first[places]]
            if ended.size:
                info = envs.infos()
                for place in ended:
                    tracker.end_episode(int(order[place]), info[place])
                if (further := ended[tracker.is_playing[order[ended]]]).size:
                    for place in further:
                        envs.set_state_of(int(place), level_state(game, slots[order[place]][1]))
                    _, frames, _ = envs.observe()
    return [record for records in tracker.records for record in records]


def choose_actions(policy: PolicyNetwork, frames: np.ndarray, uniforms: np.ndarray, greedy: bool) -> np.ndarray:
    """int32 actions `[N]` for uint8 frames `[N, 64, 64, 3]`, sampled with float32 uniforms `[N]` unless greedy."""
    return decide(policy, frames, uniforms, greedy)[0]


def decide(
    policy: PolicyNetwork, frames: np.ndarray, uniforms: np.ndarray, greedy: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`choose_actions` with the values and probabilities: (int32 `[N]`, float32 `[N]`, float32 `[N, 15]`)."""
    with torch.inference_mode(), _one_thread():
        outputs = [_forward(policy, frames[i : i + MAX_BATCH]) for i in range(0, len(frames), MAX_BATCH)]
        logits = torch.cat([logits for logits, _ in outputs])
        values = torch.cat([values for _, values in outputs])
        actions = logits.argmax(dim=1) if greedy else sample_actions(logits, torch.from_numpy(uniforms))[0]
        return actions.to(torch.int32).numpy(), values.numpy(), logits.softmax(dim=1).numpy()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """A different number of threads sums in a different order, and scores must not depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forward(policy: PolicyNetwork, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    count = len(frames)
    if count < MIN_BATCH:
        frames = np.concatenate([frames, np.repeat(frames[-1:], MIN_BATCH - count, axis=0)])
    logits, values = policy(torch.from_numpy(frames))
    return logits[:count], values[:count]


class _EpisodeTracker:
    """The state of every slot: its current episode, the steps and return so far, and the finished episodes."""

    def __init__(self, slots: Sequence[tuple[Split, int]], episodes_per_level: int, seed: int, time_limit: int):
        self.slots = slots
        self.seed = seed
        self.time_limit = time_limit
        self.episodes_per_level = episodes_per_level
        self.is_playing = np.ones(len(slots), np.bool_)
        self.episode = np.zeros(len(slots), np.int64)
        self.length = np.zeros(len(slots), np.int64)
        self.total = np.zeros(len(slots), np.float64)
        self.uniforms = np.stack([episode_uniforms(seed, level, 0, time_limit) for _, level in slots])
        self.records: list[list[Episode]] = [[] for _ in slots]

    def current_uniforms(self, active: np.ndarray) -> np.ndarray:
        """float32 `[len(active)]`: this step's random number for each slot in `active`."""
        return self.uniforms[active, self.length[active]]

    def count_step(self, active: np.ndarray, rewards: np.ndarray) -> None:
        self.total[active] += rewards
        self.length[active] += 1

    def end_episode(self, slot: int, info: dict[str, Any]) -> None:
        """Records the episode that `slot` just finished; `info` is from `infos` at first=1."""
        split, level = self.slots[slot]
        length, completed = int(self.length[slot]), bool(info["prev_level_complete"])
        record = Episode(
            split=split,
            level=level,
            episode=int(self.episode[slot]),
            episode_return=float(self.total[slot]),
            length=length,
            completed=completed,
            timed_out=length >= self.time_limit and not completed,
            level_seed=int(info["prev_level_seed"]),
        )
        if record.level_seed != level:
            raise WrongLevelError(f"the slot of level {level} played level {record.level_seed}")
        self.records[slot].append(record)
        self.episode[slot] += 1
        self.length[slot], self.total[slot] = 0, 0.0
        self.is_playing[slot] = self.episode[slot] < self.episodes_per_level
        if self.is_playing[slot]:
            self.uniforms[slot] = episode_uniforms(self.seed, level, int(self.episode[slot]), self.time_limit)
