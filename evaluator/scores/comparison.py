"""Paired comparison of two policies that played the same levels with the same random numbers.

Episode e on level l uses the same random numbers for A and B, so d_{l,e} = B_{l,e} - A_{l,e} is a paired difference.
The 95 % interval of the mean of all d is about the same as a split's: these levels, or all levels they are a sample of.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.games import Game
from evaluator.scores.intervals import Interval, as_interval, paired_bounds, why_no_interval
from evaluator.scores.statistics import About, Episode, returns_by_level

_Z = 1.96  # of a 95 % interval
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
        enough_episodes=enough_episodes(pairs, whole),
    )


def enough_episodes(pairs: np.ndarray, whole: bool) -> int | None:
    """Episodes per level needed for a 95 % interval that excludes 0, if the true difference is the mean of `pairs`.

    `pairs` are paired differences `[levels, episodes]`. The variance of their mean over L levels with n episodes each
    is (between + within / n) / L, without `between` if the levels are the whole population; both parts are estimated
    from `pairs`. With one episode per level the parts cannot be separated, and all variance counts as within. None if
    the levels differ too much for any number of episodes, or more than `_MAX_EPISODES` would be needed.
    """
    num_levels, num_episodes = pairs.shape
    difference = abs(float(pairs.mean()))
    if pairs.size < 2 or (num_levels < 2 and not whole) or difference == 0:
        return None
    within = float(pairs.var(axis=1 if num_episodes > 1 else 0, ddof=1).mean())
    between = 0.0 if whole else max(0.0, float(pairs.mean(axis=1).var(ddof=1)) - within / num_episodes)
    room = num_levels * (difference / _Z) ** 2 - between
    if room <= 0:
        return None
    needed = max(1, math.ceil(within / room))
    return needed if needed <= _MAX_EPISODES else None


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
        return f"{measured}: inconclusive; more episodes on these levels would not help, more levels might"
    if result.enough_episodes <= result.episodes_per_level:
        return f"{measured}: inconclusive but close; about twice as many episodes would be enough"
    return f"{measured}: inconclusive; about {result.enough_episodes} episodes per level would be enough"
