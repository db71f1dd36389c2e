"""Paired comparison of two policies that played the same levels with the same random numbers.

Episode e on level l uses the same random numbers for A and B, so d_{l,e} = B_{l,e} - A_{l,e} is a paired difference.
The mean of all d has a 95 % interval from the bootstrap over levels and, within each level, over pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluator.scores.bootstrap import Interval, mean_interval
from evaluator.scores.statistics import Episode, returns_by_level

_Z = 1.96  # of a 95 % interval
_MAX_EPISODES = 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """B minus A, in raw return, on `levels` levels with `episodes_per_level` pairs of episodes each."""

    difference: float
    interval: Interval | None
    levels: int
    episodes_per_level: int
    enough_episodes: int | None  # per level, see `enough_episodes`


def compare(first: Sequence[Episode], second: Sequence[Episode]) -> Comparison:
    """Compares `second` (B) with `first` (A): the episodes of one split.

    Raises:
        ValueError: A and B did not play the same episodes of the same levels.
    """
    if sorted((e.level, e.episode) for e in first) != sorted((e.level, e.episode) for e in second):
        raise ValueError("episodes can be paired only if both sides played the same episodes of the same levels")
    pairs = returns_by_level(second) - returns_by_level(first)
    return Comparison(
        difference=float(pairs.mean()),
        interval=mean_interval(pairs),
        levels=pairs.shape[0],
        episodes_per_level=pairs.shape[1],
        enough_episodes=enough_episodes(pairs),
    )


def enough_episodes(pairs: np.ndarray) -> int | None:
    """Episodes per level needed for a 95 % interval that excludes 0, if the true difference is the mean of `pairs`.

    `pairs` are paired differences `[levels, episodes]`. The variance of their mean over L levels with n episodes each
    is (between + within / n) / L; both parts are estimated from `pairs`. With one episode per level the parts cannot be
    separated, and all variance counts as within. None if the levels differ too much for any number of episodes, or more
    than `_MAX_EPISODES` would be needed.
    """
    num_levels, num_episodes = pairs.shape
    difference = abs(float(pairs.mean()))
    if num_levels < 2 or difference == 0:
        return None
    total = float(pairs.mean(axis=1).var(ddof=1))
    within = float(pairs.var(axis=1, ddof=1).mean()) if num_episodes > 1 else total
    between = max(0.0, total - within / num_episodes)
    room = num_levels * (difference / _Z) ** 2 - between
    if room <= 0:
        return None
    needed = max(1, math.ceil(within / room))
    return needed if needed <= _MAX_EPISODES else None


def sentence(result: Comparison, where: str) -> str:
    """The result for people; `where` is for example "held-out levels"."""
    if result.interval is None:
        return f"inconclusive on {where}: an interval needs at least two levels"
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
