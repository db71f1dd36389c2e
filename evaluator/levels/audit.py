"""Finds held-out levels that would distort a score: those that look like a training level or end immediately.

Same picture: the first frame and frames after some no-ops, random steps and steps to the right are compared, because
differences can be outside the first camera view. Two levels are the same if no colour value of any compared frame
differs by more than `TOLERANCE` of 255. The tolerance ignores a dark background shifted by a few pixels (up to 26 in
CoinRun, where a third of the easy levels has the same ground, crates and coin as one of 200 training levels) and the
rounding of another build of Procgen's drawing library (up to 19). A moved coin, cheese or car differs by more (at
least 36, in Maze).

Ends at once: with any one of the 15 actions repeated, the episode ends within `FEW_STEPS` steps without reward.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from common.config import Config
from common.games import NUM_ACTIONS, OBSERVATION_SHAPE
from evaluator.levels.level_envs import NUM_ENVS, batch_size, borrow_envs, level_state, load_states
from evaluator.levels.level_sets import Removal, Split, scored_training_levels, training_range

TOLERANCE = 32
FEW_STEPS = 5
# Of more training levels a fixed sample is compared: each takes 1 ms to build and 7 kB.
MAX_COMPARED = 20_000

_NO_OP, _RIGHT, _UP_RIGHT = 4, 7, 8
_ACTIONS = (
    [_NO_OP] * 4
    + [int(action) for action in np.random.RandomState(20203).randint(0, NUM_ACTIONS, 16)]
    + [_RIGHT, _RIGHT, _UP_RIGHT] * 4
)
COMPARED_AFTER = (0, 4, 8, 12, 16, 20, 24, 28, 32)  # steps
_BLOCK = 8


class Audit:
    """Checks candidates for held-out levels against the training levels of `config`; `num_checked` counts them."""

    def __init__(self, config: Config):
        self.game = config.game
        self.training_levels = _compared_training_levels(config)
        self.num_checked = 0
        # float32 [levels, frames * 192]: block means select the few pairs whose pixels have to be compared.
        self._coarse = np.concatenate([_block_means(frames) for _, frames in self._play(self.training_levels)])

    def check(self, split: Split, levels: Sequence[int]) -> list[Removal | None]:
        """For each level the reason not to hold it out, or None."""
        self.num_checked += len(levels)
        ending = self._ends_at_once(levels)
        results: list[Removal | None] = []
        for batch, frames in self._play(levels):
            for level, own, means in zip(batch, frames, _block_means(frames), strict=True):
                if level in ending:
                    results.append(Removal(split, level, "ends_at_once"))
                elif (same_as := self._find_same(own, means)) is not None:
                    results.append(Removal(split, level, "same_picture", same_as))
                else:
                    results.append(None)
        return results

    def _find_same(self, frames: np.ndarray, means: np.ndarray) -> int | None:
        """The first training level with the same frames as `frames` `[frames, 64, 64, 3]`."""
        # Block means differ by no more than the pixels do, so this excludes no match.
        close = np.flatnonzero(np.abs(self._coarse[:, :192] - means[:192]).max(axis=1) <= TOLERANCE)
        close = close[np.abs(self._coarse[close] - means).max(axis=1, initial=0) <= TOLERANCE]
        for batch, others in self._play([self.training_levels[i] for i in close]):
            for level, other in zip(batch, others, strict=True):
                if np.abs(other.astype(np.int16) - frames).max() <= TOLERANCE:
                    return level
        return None

    def _play(self, levels: Sequence[int]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """Batches of (levels, uint8 frames to compare `[levels, frames, 64, 64, 3]`)."""
        for batch in _batches(levels):
            frames = np.empty((len(batch), len(COMPARED_AFTER), *OBSERVATION_SHAPE), np.uint8)
            num_envs = batch_size(len(batch))
            with borrow_envs(self.game, num_envs) as envs:
                load_states(envs, [level_state(self.game, level) for level in batch], num_envs)
                for step in range(len(_ACTIONS) + 1):
                    if step in COMPARED_AFTER:
                        frames[:, COMPARED_AFTER.index(step)] = envs.observe()[1][: len(batch)]
                    if step < len(_ACTIONS):
                        envs.act(np.full(num_envs, _ACTIONS[step], np.int32))
            yield batch, frames

    def _ends_at_once(self, levels: Sequence[int]) -> set[int]:
        """The levels that end without reward under every action; most drop out after the first one."""
        remaining: Sequence[int] = levels
        for action in range(NUM_ACTIONS):
            remaining = [level for batch in _batches(remaining) for level in self._lost(batch, action)]
        return set(remaining)

    def _lost(self, levels: Sequence[int], action: int) -> list[int]:
        """The levels whose first episode ends within `FEW_STEPS` repetitions of `action` without reward."""
        num_envs = batch_size(len(levels))
        is_playing = np.ones(num_envs, np.bool_)
        reward = np.zeros(num_envs)
        with borrow_envs(self.game, num_envs) as envs:
            load_states(envs, [level_state(self.game, level) for level in levels], num_envs)
            envs.observe()
            for _ in range(FEW_STEPS):
                envs.act(np.full(num_envs, action, np.int32))
                rewards, _, first = envs.observe()
                reward += rewards * is_playing
                is_playing &= ~first
        is_lost = (~is_playing & (reward <= 0))[: len(levels)]
        return [level for level, lost in zip(levels, is_lost, strict=True) if lost]


def _batches(levels: Sequence[int]) -> Iterator[Sequence[int]]:
    return (levels[start : start + NUM_ENVS] for start in range(0, len(levels), NUM_ENVS))


def _compared_training_levels(config: Config) -> list[int]:
    levels = training_range(config)
    if not levels:
        return list(scored_training_levels(config))
    if len(levels) <= MAX_COMPARED:
        return list(levels)
    chosen = np.random.RandomState(20204).choice(len(levels), MAX_COMPARED, replace=False)
    return [levels[int(i)] for i in np.sort(chosen)]


def _block_means(frames: np.ndarray) -> np.ndarray:
    """float32 `[levels, frames * 192]`: means of 8 x 8 pixels of uint8 `[levels, frames, 64, 64, 3]`."""
    levels, count, height, width, channels = frames.shape
    blocks = frames.reshape(levels, count, height // _BLOCK, _BLOCK, width // _BLOCK, _BLOCK, channels)
    return blocks.mean(axis=(3, 5), dtype=np.float32).reshape(levels, -1)
