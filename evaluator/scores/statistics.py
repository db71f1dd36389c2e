"""Scores of episodes. Pure arithmetic: no environments, no policy, no files.

The level is the sampling unit: episodes on the same level are not independent, so a split's mean is the mean of its
levels' means, and its standard error counts levels, not episodes:

    level mean    m_l = (1/k) sum_e return_{l,e}
    mean          M = (1/L) sum_l m_l
    stderr        sqrt( sum_l (m_l - M)^2 / (L - 1) ) / sqrt(L)        undefined (None) for L = 1
    normalized    (M - R_min) / (R_max - R_min)
    interval      95 %, from evaluator/scores/bootstrap.py
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
            mean_return=_mean(e.episode_return for e in played),
            success_rate=_mean(e.completed for e in played),
            timeout_rate=_mean(e.timed_out for e in played),
            mean_length=_mean(e.length for e in played),
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
    mean = _mean(means)
    return SplitScore(
        mean=mean,
        stderr=_standard_error(means, mean),
        interval=mean_interval(returns_by_level(episodes)),
        normalized=game.normalized_return(mean),
        success_rate=_mean(level.success_rate for level in levels),
        timeout_rate=_mean(level.timeout_rate for level in levels),
        episodes=len(episodes),
        levels=len(levels),
    )


def split_scores(episodes: Sequence[Episode], game: Game) -> dict[Split, SplitScore]:
    """The score of every split that was played."""
    return {split: split_score(own, game) for split, own in by_split(episodes).items()}


@dataclass(frozen=True, slots=True)
class Gap:
    """Training-level mean minus held-out mean, in raw return."""

    value: float
    interval: Interval | None


def generalization_gap(episodes: Sequence[Episode], held_out: Split) -> Gap | None:
    """None unless both training levels and `held_out` levels were played."""
    played = by_split(episodes)
    if "train" not in played or held_out not in played:
        return None
    train, other = returns_by_level(played["train"]), returns_by_level(played[held_out])
    value = _mean(train.mean(axis=1)) - _mean(other.mean(axis=1))
    return Gap(value, difference_interval(train, other))


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


def _mean(values: Iterable[Any]) -> float:
    """Uses math.fsum, which is exact: the order of levels does not change the result."""
    numbers = [float(value) for value in values]
    return math.fsum(numbers) / len(numbers)


def _standard_error(means: Sequence[float], mean: float) -> float | None:
    if len(means) < 2:
        return None
    variance = math.fsum((value - mean) ** 2 for value in means) / (len(means) - 1)
    return math.sqrt(variance / len(means))
