"""95 % intervals of scores, by a bootstrap that resamples levels and, within each drawn level, its episodes.

One resample draws L of the L levels with replacement and, for each of them, k of its k episodes with replacement. The
interval goes from the 2.5 % to the 97.5 % quantile of the resamples' means (Efron and Tibshirani 1993, ch. 13; two
stages: Davison and Hinkley 1997, 3.8). The level is the sampling unit. Resampling episodes too counts the noise within
a level a second time, so that intervals are slightly too wide with few episodes per level, never too narrow.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
_KEY = 950  # a fixed stream: the same episodes give the same interval
_DRAWS_AT_ONCE = 2_000_000

Interval = tuple[float, float]


def resampled_means(values: np.ndarray, stream: int = 0) -> np.ndarray:
    """float64 `[RESAMPLES]`: means of two-stage resamples of `values`, float `[levels, episodes]`.

    Different values of `stream` give independent resamples.
    """
    generator = np.random.Generator(np.random.Philox(key=[_KEY, stream]))
    num_levels, num_episodes = values.shape
    block = max(1, _DRAWS_AT_ONCE // values.size)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, block):
        size = min(block, RESAMPLES - start)
        levels = generator.integers(num_levels, size=(size, num_levels, 1))
        # With one episode per level the second stage has nothing to draw.
        episodes = generator.integers(num_episodes, size=(size, num_levels, num_episodes)) if num_episodes > 1 else 0
        means[start : start + size] = values[levels, episodes].mean(axis=(1, 2))
    return means


def interval_of(means: np.ndarray) -> Interval:
    """The middle 95 % of resampled means."""
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mean_interval(values: np.ndarray) -> Interval | None:
    """The interval of the mean of `values` `[levels, episodes]`; None for a single level."""
    return interval_of(resampled_means(values)) if len(values) > 1 else None


def difference_interval(first: np.ndarray, second: np.ndarray) -> Interval | None:
    """The interval of the mean of `first` minus the mean of `second`, on separate levels; both `[levels, episodes]`."""
    if len(first) < 2 or len(second) < 2:
        return None
    return interval_of(resampled_means(first) - resampled_means(second, stream=1))


def matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """float64 `[levels, episodes]`; ValueError if the levels have different numbers of episodes."""
    if len({len(row) for row in rows}) != 1:
        raise ValueError("every level needs the same number of episodes")
    return np.array(rows, np.float64)
