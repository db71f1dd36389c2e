"""Which levels are scored: those of the training set and a fixed set never trained on."""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random
from typing import Literal

import numpy as np

from common.config import Config, ConfigError
from common.games import MAX_LEVEL_SEED

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")

# Seeds of the samples, never the run's own: runs with other seeds are scored on the same levels.
_HELD_OUT_SAMPLE, _TRAIN_SAMPLE = 20200, 20201
_DRAWS_PER_LEVEL = 1000

# A batch of so many levels takes 0.8 GB, and more would not make the score more certain than held-out levels make it.
MAX_TRAIN_LEVELS = 1000


@dataclass(frozen=True, slots=True)
class LevelSets:
    """Two disjoint sets of level seeds, in the order in which they are reported."""

    train: tuple[int, ...]
    held_out: tuple[int, ...]

    def slots(self, splits: Collection[Split] = SPLITS) -> list[tuple[Split, int]]:
        """(split, level) of every level of `splits`, training levels first."""
        sets: dict[Split, tuple[int, ...]] = {"train": self.train, "held_out": self.held_out}
        return [(split, level) for split in SPLITS if split in splits for level in sets[split]]


def level_sets(config: Config) -> LevelSets:
    """The level sets that `config` describes.

    train: [start_level, start_level + num_levels); of more than `MAX_TRAIN_LEVELS` a fixed sample of that many. With
    num_levels=0 the agent trains on every level there is; a fixed sample of `held_out_levels` stands for the set.
    held_out: by `config.held_out` the `held_out_levels` levels right after the training levels, or a fixed sample
    of all levels without those in `train`.

    Raises:
        ConfigError: there are not that many levels outside the training set.
    """
    count = config.held_out_levels
    if config.num_levels == 0:
        train = _sample(count, _TRAIN_SAMPLE, excluded=())
        return LevelSets(train, _sample(count, _HELD_OUT_SAMPLE, excluded=frozenset(train)))
    end = config.start_level + config.num_levels
    training_range = range(config.start_level, end)
    if config.held_out == "sample":
        held_out = _sample(count, _HELD_OUT_SAMPLE, excluded=training_range)
    else:
        held_out = tuple(range(end, end + count))  # Config has checked that they exist
    if len(training_range) > MAX_TRAIN_LEVELS:
        return LevelSets(tuple(sorted(Random(_TRAIN_SAMPLE).sample(training_range, MAX_TRAIN_LEVELS))), held_out)
    return LevelSets(tuple(training_range), held_out)


def _sample(count: int, seed: int, excluded: Collection[int]) -> tuple[int, ...]:
    """The first `count` distinct levels of a fixed sequence that are not `excluded`.

    A larger sample begins with the smaller one. RandomState, because numpy guarantees its stream for ever.
    """
    generator = np.random.RandomState(seed)
    chosen: dict[int, None] = {}
    for _ in range(count * _DRAWS_PER_LEVEL):
        level = int(generator.randint(0, MAX_LEVEL_SEED, dtype=np.int64))
        if level not in excluded:
            chosen[level] = None
        if len(chosen) == count:
            return tuple(chosen)
    raise ConfigError(f"--held-out-levels {count} are too many: the training levels leave too few others")
