"""The levels that are scored: training levels and two disjoint sets of held-out levels, validation and test.

A fourth split, `all`, is a fixed sample of all levels, without an audit and independent of the training levels. It is
played only on request, to compare with scores of other projects, which usually play such levels.

Validation levels are for choosing (a checkpoint, a setting), test levels for the final score. In a sample, a level that
the audit finds unfit is replaced by the next one of its split's sequence; levels that are next to the training levels
are kept and flagged. The sets depend only on the settings, not on the run's seed: runs with different seeds are scored
on the same levels.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal

import numpy as np

from common.config import Config, ConfigError
from common.games import MAX_LEVEL_SEED

Split = Literal["train", "validation", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")  # the level sets of a run
PLAYABLE_SPLITS: tuple[Split, ...] = (*SPLITS, "all")
HELD_OUT_SPLITS: tuple[Split, ...] = ("validation", "test")

# Seeds of the samples, independent of the run's seed.
_SAMPLES: dict[Split, int] = {"train": 20201, "validation": 20200, "test": 20202, "all": 20203}
_MAX_DRAWS = 1_000_000

# A batch of this many levels takes 0.8 GB; more would not narrow the interval of the gap, which held-out levels limit.
MAX_TRAIN_LEVELS = 1000
# As many episodes as the published scores are a mean of: ten rows of 100 episodes (evaluator/output/published.json).
ALL_LEVELS = 1000

Reason = Literal["same_level", "same_layout", "ends_at_once"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A candidate that is unfit: it is the same as a training level or ends immediately."""

    split: Split
    level: int
    reason: Reason
    same_as: int | None = None  # the training level


# Returns for each level why it is unfit, or None.
CheckLevels = Callable[[Split, Sequence[int]], list[Finding | None]]


@dataclass(frozen=True, slots=True)
class LevelSets:
    """Three disjoint sets of level seeds, in the order of the reports."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]

    def of(self, split: Split) -> tuple[int, ...]:
        """The levels of one split; `all` is the same in every game and run."""
        if split == "all":
            return tuple(_take_distinct(ALL_LEVELS, _sequence(_SAMPLES["all"])))
        levels: tuple[int, ...] = getattr(self, split)
        return levels

    def slots(self, splits: Collection[Split]) -> list[tuple[Split, int]]:
        """(split, level) of every level of `splits`, training levels first."""
        return [(split, level) for split in PLAYABLE_SPLITS if split in splits for level in self.of(split)]


def live_splits(config: Config, policy_version: int) -> tuple[Split, ...]:
    """The splits scored during training: training levels, the live split, and validation for choosing the best.

    The untrained policy is not a candidate for the best; skipping validation makes the first score appear sooner.
    """
    chosen = {"train", config.live_split} | ({"validation"} if policy_version > 0 else set())
    return tuple(split for split in SPLITS if split in chosen)


def training_range(config: Config) -> range:
    """The levels that are trained on; empty for num_levels=0, which trains on all levels."""
    return range(config.start_level, config.start_level + config.num_levels)


def scored_training_levels(config: Config) -> tuple[int, ...]:
    """The training levels; a fixed sample if there are more than `MAX_TRAIN_LEVELS` or all levels are trained on."""
    levels = training_range(config)
    if not levels:
        return tuple(_take_distinct(config.held_out_levels, _sequence(_SAMPLES["train"]), frozenset()))
    if len(levels) > MAX_TRAIN_LEVELS:
        return tuple(sorted(Random(_SAMPLES["train"]).sample(levels, MAX_TRAIN_LEVELS)))
    return tuple(levels)


def replaces_unfit_levels(config: Config) -> bool:
    """Whether candidates that the audit finds unfit are replaced; otherwise they are kept and flagged."""
    return config.held_out == "sample"


def draw_level_sets(config: Config, check: CheckLevels | None = None) -> tuple[LevelSets, list[Finding]]:
    """The level sets of `config` and what `check` found among the candidates; None skips the audit.

    held_out "next": the test levels are the `held_out_levels` levels right after the training levels, as in the
    notebook, and the validation levels are the same number after those, whatever `check` finds. "sample": each set is a
    fixed sample of all levels outside the training levels, without the levels that `check` finds unfit.

    Raises:
        ConfigError: there are not enough suitable levels outside the training levels.
    """
    train = scored_training_levels(config)
    taken = set(train)
    findings: list[Finding] = []
    sets: dict[Split, tuple[int, ...]] = {"train": train}
    sources = _sources(config)
    for split in ("test", "validation"):
        chosen: list[int] = []
        while len(chosen) < config.held_out_levels:
            missing = config.held_out_levels - len(chosen)
            candidates = _take_distinct(missing, sources[split], taken, training_range(config))
            if len(candidates) < missing:
                raise ConfigError(
                    f"--held-out-levels {config.held_out_levels} is too many: {_MAX_DRAWS:,} draws gave too few levels "
                    f"outside the training levels (--num-levels {config.num_levels}); choose fewer"
                )
            taken.update(candidates)
            found = [] if check is None else [each for each in check(split, candidates) if each is not None]
            unfit = {each.level for each in found} if replaces_unfit_levels(config) else ()
            chosen += [level for level in candidates if level not in unfit]
            findings += found
        sets[split] = tuple(chosen)
    return LevelSets(sets["train"], sets["validation"], sets["test"]), findings


def _sources(config: Config) -> dict[Split, Iterator[int]]:
    """The candidates for each held-out split, in order."""
    if config.held_out == "sample":
        return {split: _sequence(_SAMPLES[split]) for split in HELD_OUT_SPLITS}
    count, end = config.held_out_levels, training_range(config).stop
    return {"test": iter(range(end, end + count)), "validation": iter(range(end + count, end + 2 * count))}


def _take_distinct(count: int, source: Iterator[int], *excluded: Collection[int]) -> list[int]:
    """The first `count` distinct levels of `source` outside `excluded`; fewer if `source` or `_MAX_DRAWS` runs out."""
    found: dict[int, None] = {}
    for level in islice(source, _MAX_DRAWS):
        if not any(level in levels for levels in excluded):
            found[level] = None
        if len(found) == count:
            break
    return list(found)


def _sequence(seed: int) -> Iterator[int]:
    """An endless fixed sequence of levels. Uses RandomState because numpy guarantees that its stream never changes."""
    generator = np.random.RandomState(seed)
    while True:
        yield int(generator.randint(0, MAX_LEVEL_SEED, dtype=np.int64))
