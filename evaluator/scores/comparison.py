"""Paired comparison of two policies that played the same levels with the same random numbers.

Episode e on level l uses the same random numbers for A and B, so d_{l,e} = B_{l,e} - A_{l,e} is a paired difference.
The 95 % interval of the mean of all d is about the same as a split's: these levels, or all levels they are a sample of.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.games import Game
from evaluator.scores.intervals import Bounds, Interval, Limits, as_interval, paired_bounds, why_no_interval
from evaluator.scores.statistics import About, Episode, returns_by_level

_MAX_EPISODES = 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """B minus A, in raw return, on `levels` levels with `episodes_per_level` pairs of episodes each."""

    difference: float
    interval: Interval | None
    no_interval: str | None  # why `interval` is None
    about: About
    levels: int
    episodes_per_level: int
    enough_episodes: int | None  # per level, see `enough_episodes`


def compare(first: Sequence[Episode], second: Sequence[Episode], game: Game, whole: bool) -> Comparison:
    """Compares `second` (B) with `first` (A): the episodes of one split.

    `whole`: the levels are the whole population, not a sample.

    Raises:
        ValueError: A and B did not play the same episodes of the same levels.
    """
    if sorted((e.level, e.episode) for e in first) != sorted((e.level, e.episode) for e in second):
        raise ValueError("episodes can be paired only if both sides played the same episodes of the same levels")
    pairs = returns_by_level(second) - returns_by_level(first)
    interval = as_interval(paired_bounds(pairs, whole, game.return_limits))
    return Comparison(
        difference=float(pairs.mean()),
        interval=interval,
        no_interval=why_no_interval(pairs, whole) if interval is None else None,
        about="these levels" if whole else "all levels",
        levels=pairs.shape[0],
        episodes_per_level=pairs.shape[1],
        enough_episodes=enough_episodes(pairs, whole, game.return_limits),
    )


def enough_episodes(pairs: np.ndarray, whole: bool, limits: Limits | None) -> int | None:
    """Episodes per level whose interval would exclude 0, if mean and variances of `pairs` are the true ones.

    `pairs` are paired differences `[levels, episodes]`. None if there is no interval, or if `_MAX_EPISODES` would not
    be enough, as where sampled levels differ too much. From one episode per level this is the least possible number:
    how much levels differ is then not known.
    """
    bounds = paired_bounds(pairs, whole, limits)
    if as_interval(bounds) is None:
        return None
    most = pairs.shape[1]
    if not _exclude_zero(bounds):
        most = _MAX_EPISODES
        if not _exclude_zero(paired_bounds(pairs, whole, limits, most)):
            return None
    least = 2 if whole else 1
    planned = range(least, most)
    return least + bisect_left(planned, True, key=lambda n: _exclude_zero(paired_bounds(pairs, whole, limits, n)))


def _exclude_zero(bounds: Bounds) -> bool:
    low, high = map(float, bounds)
    return low > 0 or high < 0


def sentence(result: Comparison, where: str) -> str:
    """The result for people; `where` is for example "held-out levels"."""
    if result.interval is None:
        return f"inconclusive on {where}: no interval ({result.no_interval})"
    low, high = result.interval
    if low > 0:
        return f"B is better on {where} by {result.difference:.2f} [{low:.2f}, {high:.2f}]"
    if high < 0:
        return f"A is better on {where} by {-result.difference:.2f} [{-high:.2f}, {-low:.2f}]"
    measured = f"B minus A is {result.difference:.2f} [{low:.2f}, {high:.2f}] on {where}"
    if result.difference == 0:
        return f"{measured}: no difference was seen"
    if result.enough_episodes is None:
        if result.about == "these levels":
            return f"{measured}: inconclusive; more than {_MAX_EPISODES:,} episodes per level would be needed"
        return f"{measured}: inconclusive; {_MAX_EPISODES:,} episodes per level would not be enough, more levels might"
    if result.about == "all levels" and result.episodes_per_level == 1:
        return f"{measured}: inconclusive; at least about {result.enough_episodes} episodes per level would be needed"
    return f"{measured}: inconclusive; about {result.enough_episodes} episodes per level would be enough"
