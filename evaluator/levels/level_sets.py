"""Which levels are scored: training levels, and two disjoint sets never trained on, validation and test.

Validation is for choosing (which checkpoint, which setting), test for the one number at the end. A level that an audit
finds unfit is replaced by the next of its split's sequence, so that a set depends on the settings alone, never on the
run's seed: runs with other seeds are scored on the same levels.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import Literal

import numpy as np

from common.config import Config, ConfigError
from common.games import MAX_LEVEL_SEED

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HELD_OUT_SPLITS: tuple[Split, ...] = ("validation", "test")

# Seeds of the samples, never the run's own.
_SAMPLES: dict[Split, int] = {"train": 20201, "validation": 20200, "test": 20202}
_MAX_DRAWS = 1_000_000

# A batch of so many levels takes 0.8 GB, and more would not make the score more certain than held-out levels make it.
MAX_TRAIN_LEVELS = 1000


@dataclass(frozen=True, slots=True)
class Removal:
    """A held-out level that was not taken: it shows a training level's pictures, or ends at once."""

    split: Split
    level: int
    reason: Literal["same_picture", "ends_at_once"]
    same_as: int | None = None  # the training level


# Levels in, for each of them why it is unfit, or None.
Judge = Callable[[Split, Sequence[int]], list[Removal | None]]


@dataclass(frozen=True, slots=True)
class LevelSets:
    """Three disjoint sets of level seeds, in the order in which they are reported."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def of(self, split: Split) -> tuple[int, ...]:
        """The levels of one split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def slots(self, splits: Collection[Split]) -> list[tuple[Split, int]]:
        """(split, level) of every level of `splits`, training levels first."""
        return [(split, level) for split in SPLITS if split in splits for level in self.of(split)]


def live_splits(config: Config, policy_version: int) -> tuple[Split, ...]:
    """What is scored while training: training levels, the live split, and validation, by which the best is chosen.

    The untrained policy is no candidate for that, and its score is what a person waits for.
    """
    chosen = {"train", config.live_split} | ({"validation"} if policy_version > 0 else set())
    return tuple(split for split in SPLITS if split in chosen)


def training_range(config: Config) -> range:
    """Every level that is trained on; empty where that is all there are."""
    return range(config.start_level, config.start_level + config.num_levels)


def scored_training_levels(config: Config) -> tuple[int, ...]:
    """The training levels; of more than `MAX_TRAIN_LEVELS` a fixed sample, and one of all levels for num_levels=0."""
    levels = training_range(config)
    if not levels:
        return _first(config.held_out_levels, _sequence(_SAMPLES["train"]), frozenset())
    if len(levels) > MAX_TRAIN_LEVELS:
        return tuple(sorted(Random(_SAMPLES["train"]).sample(levels, MAX_TRAIN_LEVELS)))
    return tuple(levels)


def draw_level_sets(config: Config, judge: Judge | None = None) -> tuple[LevelSets, list[Removal]]:
    """The level sets of `config`, and what `judge` kept out of them; without one, the levels before any audit.

    held_out "next": test is the `held_out_levels` levels right after the training levels, as in the notebook,
    validation the same number after those; replacements follow after both. "sample": each is a fixed sample of all
    levels without the training levels.

    Raises:
        ConfigError: there are not that many fit levels outside the training set.
    """
    train = scored_training_levels(config)
    taken: set[int] = set(train)
    excluded = training_range(config)
    removals: list[Removal] = []
    sets: dict[Split, tuple[int, ...]] = {"train": train}
    sources = _sources(config)
    for split in ("test", "validation"):
        chosen: list[int] = []
        while len(chosen) < config.held_out_levels:
            candidates = _candidates(config, sources[split], config.held_out_levels - len(chosen), taken, excluded)
            taken.update(candidates)
            verdicts = [None] * len(candidates) if judge is None else judge(split, candidates)
            chosen += [level for level, verdict in zip(candidates, verdicts, strict=True) if verdict is None]
            removals += [verdict for verdict in verdicts if verdict is not None]
        sets[split] = tuple(chosen)
    return LevelSets(sets["train"], sets["validation"], sets["test"]), removals


def _sources(config: Config) -> dict[Split, Iterator[int]]:
    """The sequence of candidates of each held-out split."""
    if config.held_out == "sample":
        return {split: _sequence(_SAMPLES[split]) for split in HELD_OUT_SPLITS}
    count, end = config.held_out_levels, training_range(config).stop
    spare = iter(range(end + 2 * count, MAX_LEVEL_SEED))
    return {
        "test": chain(range(end, end + count), spare),
        "validation": chain(range(end + count, end + 2 * count), spare),
    }


def _candidates(
    config: Config, source: Iterator[int], count: int, taken: Collection[int], excluded: Collection[int]
) -> list[int]:
    found: dict[int, None] = {}
    for _ in range(_MAX_DRAWS):
        level = next(source, None)
        if level is None:
            break
        if level not in taken and level not in excluded:
            found[level] = None
        if len(found) == count:
            return list(found)
    raise ConfigError(
        f"--held-out-levels {config.held_out_levels} are too many: the training levels leave too few others"
    )


def _sequence(seed: int) -> Iterator[int]:
    """An endless fixed sequence of levels. RandomState, because numpy guarantees its stream for ever."""
    generator = np.random.RandomState(seed)
    while True:
        yield int(generator.randint(0, MAX_LEVEL_SEED, dtype=np.int64))


def _first(count: int, source: Iterator[int], excluded: Collection[int]) -> tuple[int, ...]:
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        level = next(source)
        if level not in excluded:
            chosen[level] = None
    return tuple(chosen)
