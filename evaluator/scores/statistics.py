"""Scores of episodes. Pure arithmetic: no environments, no policy, no files.

The level is the sampling unit: episodes on the same level are not independent, so a split's mean is the mean of its
levels' means, and its standard error counts levels, not episodes. Sums are exact, so the order of levels is irrelevant:

    level mean    m_l = (1/k) sum_e return_{l,e}
    mean          M = (1/L) sum_l m_l
    stderr        sqrt( sum_l (m_l - M)^2 / (L - 1) ) / sqrt(L)        undefined (None) for L = 1
    normalized    (M - R_min) / (R_max - R_min)
    interval      95 %, from evaluator/scores/bootstrap.py
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from common.games import Game
from evaluator.levels.level_sets import SPLITS, Split
from evaluator.scores.bootstrap import Interval, difference_interval, matrix, mean_interval


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
    """All levels of one split; see the module's docstring for the formulas."""

    mean: float
    stderr: float | None
    interval: Interval | None
    normalized: float
    success_rate: float
    timeout_rate: float
    episodes: int
    levels: int


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


def split_score(episodes: Sequence[Episode], game: Game) -> SplitScore:
    """The score of a split from its `episodes`, the same number on every level.

    Raises:
        ValueError: no episodes, or different numbers of episodes per level.
    """
    if not episodes:
        raise ValueError("a split without levels has no score")
    levels = level_scores(episodes)
    means = [level.mean_return for level in levels]
    mean = fmean(means)
    return SplitScore(
        mean=mean,
        stderr=stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None,
        interval=mean_interval(returns_by_level(episodes)),
        normalized=game.normalized_return(mean),
        success_rate=fmean(level.success_rate for level in levels),
        timeout_rate=fmean(level.timeout_rate for level in levels),
        episodes=len(episodes),
        levels=len(levels),
    )


def split_scores(episodes: Sequence[Episode], game: Game) -> dict[Split, SplitScore]:
    """The score of every split that was played."""
    return {split: split_score(own, game) for split, own in by_split(episodes).items()}


def generalization_gap(episodes: Sequence[Episode], held_out: Split) -> tuple[float | None, Interval | None]:
    """Training-level mean minus held-out mean, in raw return, and its interval; (None, None) without both."""
    played = by_split(episodes)
    if "train" not in played or held_out not in played:
        return None, None
    train, other = returns_by_level(played["train"]), returns_by_level(played[held_out])
    return fmean(train.mean(axis=1)) - fmean(other.mean(axis=1)), difference_interval(train, other)


def by_split(episodes: Sequence[Episode]) -> dict[Split, list[Episode]]:
    """The episodes of every split that was played."""
    present = {split: [episode for episode in episodes if episode.split == split] for split in SPLITS}
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
