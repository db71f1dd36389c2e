"""Finds held-out levels that would spoil a score: those that look like a training level, and those lost at once.

Same picture: the first frame, and frames after some no-ops, random steps and steps to the right, are compared, because
a camera can hide a difference. Two levels are the same where no colour value of any compared frame differs by more than
`TOLERANCE` of 255. It lets pass a dark background shifted by a few pixels (26 in CoinRun, where a third of the easy
levels has a twin with the same ground, crates and coin among 200 training levels) and the rounding of another build of
Procgen's drawing library (19 were seen). A moved coin, cheese or car differs by more (36 at least, in Maze).

Ends at once: under every one of the 15 actions, held down, the episode ends within `FEW_STEPS` steps without reward.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from common.config import Config
from common.games import NUM_ACTIONS, OBSERVATION_SHAPE
from common.procgen_env import make_level_bound_envs, observe
from evaluator.levels.level_sets import Removal, Split, scored_training_levels, training_range

TOLERANCE = 32
FEW_STEPS = 5
# More are compared with a fixed sample of them: 1 ms a level to build, and 7 kB.
MAX_COMPARED = 20_000

_NO_OP, _RIGHT, _UP_RIGHT = 4, 7, 8
_ACTIONS = (
    [_NO_OP] * 4
    + [int(action) for action in np.random.RandomState(20203).randint(0, NUM_ACTIONS, 16)]
    + [_RIGHT, _RIGHT, _UP_RIGHT] * 4
)
COMPARED_AFTER = (0, 4, 8, 12, 16, 20, 24, 28, 32)  # steps
_LEVELS_AT_ONCE = 250
_BLOCK = 8


class Audit:
    """A judge of levels for `draw_level_sets`, against the training levels of `config`.

    `judged` counts the levels it has looked at.
    """

    def __init__(self, config: Config):
        self.game = config.game
        self.training_levels = _compared_training_levels(config)
        self.judged = 0
        # float32 [levels, frames * 192]: block means find the few pairs whose pixels have to be compared.
        self._coarse = np.concatenate([_block_means(frames) for _, frames in self._pictures(self.training_levels)])

    def judge(self, split: Split, levels: Sequence[int]) -> list[Removal | None]:
        """For each level why it is unfit to be held out, or None."""
        self.judged += len(levels)
        ending = self._ends_at_once(levels)
        verdicts: list[Removal | None] = []
        for chunk, frames in self._pictures(levels):
            for level, own, means in zip(chunk, frames, _block_means(frames), strict=True):
                if level in ending:
                    verdicts.append(Removal(split, level, "ends_at_once"))
                elif (twin := self._twin(own, means)) is not None:
                    verdicts.append(Removal(split, level, "same_picture", twin))
                else:
                    verdicts.append(None)
        return verdicts

    def _twin(self, frames: np.ndarray, means: np.ndarray) -> int | None:
        """The first training level with the same pictures as `frames` `[frames, 64, 64, 3]`."""
        # No mean of a block differs by more than the pixels do, so nothing is missed here.
        close = np.flatnonzero(np.abs(self._coarse[:, :192] - means[:192]).max(axis=1) <= TOLERANCE)
        close = close[np.abs(self._coarse[close] - means).max(axis=1, initial=0) <= TOLERANCE]
        suspects = [self.training_levels[i] for i in close]
        for chunk, others in self._pictures(suspects):
            for level, other in zip(chunk, others, strict=True):
                if np.abs(other.astype(np.int16) - frames).max() <= TOLERANCE:
                    return level
        return None

    def _pictures(self, levels: Sequence[int]) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        """(levels, uint8 frames `[levels, frames, 64, 64, 3]`), some levels at a time."""
        for start in range(0, len(levels), _LEVELS_AT_ONCE):
            chunk = levels[start : start + _LEVELS_AT_ONCE]
            frames = np.empty((len(chunk), len(COMPARED_AFTER), *OBSERVATION_SHAPE), np.uint8)
            envs = make_level_bound_envs(self.game, chunk)
            try:
                for step in range(len(_ACTIONS) + 1):
                    if step in COMPARED_AFTER:
                        frames[:, COMPARED_AFTER.index(step)] = observe(envs)[1]
                    if step < len(_ACTIONS):
                        envs.act(np.full(len(chunk), _ACTIONS[step], np.int32))
            finally:
                envs.close()
            yield chunk, frames

    def _ends_at_once(self, levels: Sequence[int]) -> set[int]:
        """Those that every action loses; most levels leave after the first."""
        left = list(levels)
        for action in range(NUM_ACTIONS):
            chunks = [left[start : start + _LEVELS_AT_ONCE] for start in range(0, len(left), _LEVELS_AT_ONCE)]
            left = [level for chunk in chunks for level in self._lost(chunk, action)]
        return set(left)

    def _lost(self, levels: Sequence[int], action: int) -> list[int]:
        """Those whose first episode ends within `FEW_STEPS` of `action` and brings no reward."""
        envs = make_level_bound_envs(self.game, levels)
        try:
            observe(envs)
            is_playing = np.ones(len(levels), np.bool_)
            reward = np.zeros(len(levels))
            for _ in range(FEW_STEPS):
                envs.act(np.full(len(levels), action, np.int32))
                rewards, _, first = observe(envs)
                reward += rewards * is_playing
                is_playing &= ~first
        finally:
            envs.close()
        return [level for level, lost in zip(levels, ~is_playing & (reward <= 0), strict=True) if lost]


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
