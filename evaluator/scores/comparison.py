"""Is B better than A? Both play the same levels with the same random numbers, and the differences are what counts.

Episode e on level l has the same random numbers for both, so that d_{l,e} = B_{l,e} - A_{l,e} is a pair. The mean of
all d has a 95 % interval from the bootstrap over levels and, within each, over pairs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluator.scores.bootstrap import Interval, mean_interval
from evaluator.scores.statistics import Episode, returns_by_level

_Z = 1.96  # of a 95 % interval
_TOO_MANY_EPISODES = 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """B minus A, in raw return, on `levels` levels with `episodes_per_level` pairs of episodes each."""

    difference: float
    interval: Interval | None
    levels: int
    episodes_per_level: int
    enough_episodes: int | None  # a level, to tell a difference of this size; None where no number would do

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


def compare(first: Sequence[Episode], second: Sequence[Episode]) -> Comparison:
    """`second` against `first`: one split's episodes on the same levels.

    Raises:
        ValueError: the two did not play the same episodes of the same levels.
    """
    if sorted((e.level, e.episode) for e in first) != sorted((e.level, e.episode) for e in second):
        raise ValueError("only the same episodes of the same levels can be paired")
    pairs = returns_by_level(second) - returns_by_level(first)
    return Comparison(
        difference=float(pairs.mean()),
        interval=mean_interval(pairs),
        levels=pairs.shape[0],
        episodes_per_level=pairs.shape[1],
        enough_episodes=enough_episodes(pairs),
    )


def enough_episodes(pairs: np.ndarray) -> int | None:
    """Episodes a level with which the mean of `pairs` `[levels, episodes]`, if it is true, would be told from 0.

    The variance of the mean over L levels with n episodes each is (between + within / n) / L; both parts are estimated
    from `pairs`. With one episode a level they cannot be told apart, and all of it counts as within. None where the
    levels differ too much for any number of episodes, or too many would be needed.
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
    return needed if needed <= _TOO_MANY_EPISODES else None


def sentence(result: Comparison, where: str) -> str:
    """What the figures say, for people; `where` is "held-out levels" or the like."""
    if result.interval is None:
        return f"cannot tell on {where}: one level says nothing of others"
    low, high = result.interval
    span = f"{abs(result.difference):.2f} [{{:.2f}}, {{:.2f}}]"
    if low > 0:
        return f"B is better on {where} by {span.format(low, high)}"
    if high < 0:
        return f"A is better on {where} by {span.format(-high, -low)}"
    measured = f"B minus A is {result.difference:.2f} [{low:.2f}, {high:.2f}] on {where}"
    if result.difference == 0:
        return f"{measured}: no difference was seen"
    if result.enough_episodes is None:
        return f"{measured}: cannot tell, and more episodes on these levels would not; more levels might"
    if result.enough_episodes <= result.episodes_per_level:
        return f"{measured}: cannot tell with these episodes; it is a close call, about twice as many would"
    return f"{measured}: cannot tell with these episodes; about {result.enough_episodes} per level would"
