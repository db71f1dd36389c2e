"""Scores of episodes. Pure arithmetic: no environments, no policy, no files.

Training levels that are all scored are the whole population, so only episodes vary. Held-out levels are a sample from
all levels, and the level is the unit. evaluator/scores/intervals.py has the formulas. Means are exact sums, so the
order of levels is irrelevant:

    level mean    m_l = (1/k) sum_e return_{l,e}
    mean          M = (1/L) sum_l m_l
    normalized    (M - R_min) / (R_max - R_min)
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from common.config import Config
from common.games import Game
from evaluator.levels.level_sets import MAX_TRAIN_LEVELS, PLAYABLE_SPLITS, Split
from evaluator.scores.intervals import (
    Bounds,
    Interval,
    as_interval,
    difference_bounds,
    matrix,
    mean_bounds,
    standard_error,
    why_no_interval,
)

# What an interval is about: the levels that were played, or all levels that they were sampled from.
About = Literal["these levels", "all levels"]


@dataclass(frozen=True, slots=True)
class Episode:
    """One played episode. `episode_return` is the undiscounted sum of raw reward, `length` is in steps."""

    split: Split
    level: int
    episode: int  # 0 is the first on this level
    episode_return: float
    length: int
    completed: bool  # success as reported by the game (prev_level_complete)
    timed_out: bool  # ended by the game's time limit, not completed
    level_seed: int  # the level that was played, as reported by the environment


@dataclass(frozen=True, slots=True)
class LevelScore:
    """All episodes of one level."""

    split: Split
    level: int
    episodes: int
    mean_return: float
    success_rate: float
    timeout_rate: float
    mean_length: float


@dataclass(frozen=True, slots=True)
class SplitScore:
    """All levels of one split; see the module's docstring for the formulas.

    `no_interval` says why `interval` is None.
    """

    mean: float
    stderr: float | None
    interval: Interval | None
    no_interval: str | None
    about: About
    normalized: float
    success_rate: float
    timeout_rate: float
    episodes: int
    levels: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Training-level mean minus held-out mean, in raw return. `no_interval` says why `interval` is None."""

    value: float
    interval: Interval | None
    no_interval: str | None


def whole_splits(config: Config) -> frozenset[Split]:
    """The splits whose levels are all scored: the training levels, unless there are too many."""
    return frozenset({"train"}) if 0 < config.num_levels <= MAX_TRAIN_LEVELS else frozenset()


def level_scores(episodes: Sequence[Episode]) -> list[LevelScore]:
    """One score per (split, level), in the order in which the levels first appear."""
    by_level: dict[tuple[Split, int], list[Episode]] = {}
    for episode in episodes:
        by_level.setdefault((episode.split, episode.level), []).append(episode)
    return [
        LevelScore(
            split=split,
            level=level,
            episodes=len(played),
            mean_return=fmean(e.episode_return for e in played),
            success_rate=fmean(e.completed for e in played),
            timeout_rate=fmean(e.timed_out for e in played),
            mean_length=fmean(e.length for e in played),
        )
        for (split, level), played in by_level.items()
    ]


def split_score(episodes: Sequence[Episode], game: Game, whole: bool) -> SplitScore:
    """The score of a split from its `episodes`, the same number on every level.

    `whole`: the levels are the whole population, not a sample.

    Raises:
        ValueError: no episodes, or different numbers of episodes per level.
    """
    if not episodes:
        raise ValueError("a split without levels has no score")
    levels = level_scores(episodes)
    returns = returns_by_level(episodes)
    mean = fmean(level.mean_return for level in levels)
    interval = as_interval(mean_bounds(returns, whole, game.return_limits))
    return SplitScore(
        mean=mean,
        stderr=standard_error(returns, whole),
        interval=interval,
        no_interval=why_no_interval(returns, whole) if interval is None else None,
        about="these levels" if whole else "all levels",
        normalized=game.normalized_return(mean),
        success_rate=fmean(level.success_rate for level in levels),
        timeout_rate=fmean(level.timeout_rate for level in levels),
        episodes=len(episodes),
        levels=len(levels),
    )


def split_scores(episodes: Sequence[Episode], game: Game, whole: Collection[Split]) -> dict[Split, SplitScore]:
    """The score of every split that was played; `whole` is from `whole_splits`."""
    return {split: split_score(own, game, split in whole) for split, own in by_split(episodes).items()}


def generalization_gap(train: SplitScore, held_out: SplitScore) -> Gap:
    """The gap; its interval combines those of both scores, which are independent."""
    reasons = [
        f"{name}: {score.no_interval}"
        for name, score in (("training levels", train), ("held-out levels", held_out))
        if score.no_interval is not None
    ]
    bounds = difference_bounds(train.mean, _bounds(train), held_out.mean, _bounds(held_out))
    return Gap(train.mean - held_out.mean, as_interval(bounds), "; ".join(reasons) or None)


def _bounds(score: SplitScore) -> Bounds:
    low, high = score.interval or (np.nan, np.nan)
    return np.array(low), np.array(high)


def by_split(episodes: Sequence[Episode]) -> dict[Split, list[Episode]]:
    """The episodes of every split that was played."""
    present = {split: [episode for episode in episodes if episode.split == split] for split in PLAYABLE_SPLITS}
    return {split: own for split, own in present.items() if own}


def returns_by_level(episodes: Sequence[Episode]) -> np.ndarray:
    """float64 `[levels, episodes]` of one split, levels ascending so that the interval does not depend on their order.

    Raises:
        ValueError: different numbers of episodes per level.
    """
    levels: dict[int, list[float]] = {}
    for episode in sorted(episodes, key=lambda e: (e.level, e.episode)):
        levels.setdefault(episode.level, []).append(episode.episode_return)
    return matrix(list(levels.values()))
