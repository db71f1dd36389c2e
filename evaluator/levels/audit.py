"""Finds held-out levels that would distort a score: those that repeat a training level or end immediately.

Same as a training level: both have the same layout, which is the saved grid and objects and the picture of the whole
level with one color for each kind of object; and they behave the same: 24 action sequences, played to the end, give the
same rewards and ends at the same steps. Where the sequences reach nothing, the layout decides. Such a level is called

- `same_level` if it also looks the same to the agent: no color value of the first frame and of the picture of the whole
  level differs by more than `TOLERANCE` of 255. The tolerance ignores CoinRun's dark background shifted by a few pixels
  (differs by up to 28);
- `same_layout` if it is drawn differently, for example with another background.

Ends immediately: with any one of the 15 actions repeated, the episode ends within `FEW_STEPS` steps without reward.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.config import Config
from common.games import NUM_ACTIONS
from evaluator.levels.behavior import action_sequences, batches, first_frames, layouts, play
from evaluator.levels.level_envs import batch_size, borrow_envs, level_state, load_states
from evaluator.levels.level_sets import Reason, scored_training_levels, training_range

TOLERANCE = 32
FEW_STEPS = 5
# Of more training levels a fixed sample is compared: each takes 1 ms to build.
MAX_COMPARED = 20_000

# Two sequences explore; the others move right more and more, which ends most episodes of CoinRun within 60 steps.
BIASES = (0.0, *np.linspace(0.25, 0.9, 23))
_SEQUENCES_SEED = 20205
_NUM_FIRST = 4  # sequences


class Verdict(NamedTuple):
    """Why a level should not be held out; `same_as` is the training level."""

    reason: Reason
    same_as: int | None = None


class Audit:
    """Checks candidates for held-out levels against the training levels of `config`."""

    def __init__(self, config: Config):
        self.game = config.game
        self.training_levels = compared_training_levels(config)
        self._sequences = action_sequences(self.game, BIASES, _SEQUENCES_SEED)
        self._trained: dict[bytes, list[int]] | None = None  # training levels by layout
        self._first: dict[int, bytes] = {}  # what happens in the shortest sequences
        self._behaviors: dict[int, bytes] = {}  # and in the others

    def judge(self, levels: Sequence[int]) -> list[Verdict | None]:
        """For each level the reason not to hold it out, or None."""
        ending = self._ends_at_once(levels)
        same = self._same([level for level in levels if level not in ending])
        return [Verdict("ends_at_once") if level in ending else same.get(level) for level in levels]

    def _same(self, levels: Sequence[int]) -> dict[int, Verdict]:
        """The verdict on those levels that are the same as a training level."""
        if self._trained is None:
            self._trained = defaultdict(list)
            for layout, level in zip(layouts(self.game, self.training_levels), self.training_levels, strict=True):
                self._trained[layout].append(level)
        found = {
            level: self._trained[layout]
            for level, layout in zip(levels, layouts(self.game, levels), strict=True)
            if layout in self._trained
        }
        # All levels of some games begin alike: a few short sequences tell most of them apart.
        self._play(
            self._first,
            self._sequences[-_NUM_FIRST:],
            [*(level for twins in found.values() for level in twins), *found],
        )
        twins = {}
        for level, trained in found.items():
            if alike := [other for other in trained if self._first[other] == self._first[level]]:
                twins[level] = self._most_similar_first(level, alike)
        verdicts = {}
        remaining = list(twins)
        while remaining:
            pairs = {level: twins[level].pop(0) for level in remaining}
            by_trained = sorted(remaining, key=lambda level: pairs[level][0])
            paired = [each for level in by_trained for each in (pairs[level][0], level)]
            self._play(self._behaviors, self._sequences[:-_NUM_FIRST], paired)
            for level, (same_as, reason) in pairs.items():
                if self._behaviors[level] == self._behaviors[same_as]:
                    verdicts[level] = Verdict(reason, same_as)
            remaining = [level for level in remaining if level not in verdicts and twins[level]]
        return verdicts

    def _most_similar_first(self, level: int, trained: Sequence[int]) -> list[tuple[int, Reason]]:
        """The training levels with the layout of `level`, those that look the same first."""
        same: list[int] = []
        for batch in batches(trained):
            largest = np.zeros(len(batch))
            for drawing in ({}, {"center_agent": False}):
                frame = first_frames(self.game, [level], **drawing).astype(np.int16)
                differences = np.abs(first_frames(self.game, batch, **drawing) - frame)
                largest = np.maximum(largest, differences.max(axis=(1, 2, 3)))
            same += [other for other, difference in zip(batch, largest, strict=True) if difference <= TOLERANCE]
        others = [other for other in trained if other not in same]
        return [*((other, "same_level") for other in same), *((other, "same_layout") for other in others)]

    def _play(self, behaviors: dict[int, bytes], sequences: np.ndarray, levels: Sequence[int]) -> None:
        """Adds to `behaviors` the levels that are missing."""
        new = [level for level in dict.fromkeys(levels) if level not in behaviors]
        behaviors.update(zip(new, play(self.game, new, sequences), strict=True))

    def _ends_at_once(self, levels: Sequence[int]) -> set[int]:
        """The levels that end without reward under every action; most drop out after the first one."""
        remaining: Sequence[int] = levels
        for action in range(NUM_ACTIONS):
            remaining = [level for batch in batches(remaining) for level in self._lost(batch, action)]
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


def compared_training_levels(config: Config) -> list[int]:
    """The training levels that candidates are compared with: all, or a fixed sample if there are too many."""
    levels = training_range(config)
    if not levels:
        return list(scored_training_levels(config))
    if len(levels) <= MAX_COMPARED:
        return list(levels)
    chosen = np.random.RandomState(20204).choice(len(levels), MAX_COMPARED, replace=False)
    return [levels[int(i)] for i in np.sort(chosen)]
