"""Statistics over runs of several games, after Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice".

Scores are normalized (ranges.py): one float64 array `[n_g]` for each of G games, one number for each seed. The run is
the unit: an interval is about other seeds, on the same levels. With x the scores of all N = sum n_g runs:

    mean                         (1/G) sum_g (1/n_g) sum_i x_gi
    IQM                          2 integral of Q from 1/4 to 3/4, Q the step function of sorted x: its middle half
    optimality gap               (1/G) sum_g (1/n_g) sum_i max(0, 1 - x_gi)
    probability of improvement   P(X > Y) = (1/G) sum_g (1/(n_g m_g)) sum_ij [x_gi > y_gj] + [x_gi = y_gj] / 2
    performance profile          F(tau) = (1/G) sum_g (1/n_g) sum_i [x_gi > tau]

Intervals are a stratified bootstrap: seeds are drawn with replacement within each game, `RESAMPLES` times. The middle
95 % of resamples is too narrow with few seeds: the variance of n resampled values is (n - 1)/n of what it should be,
and the normal distribution's 1.96 takes the place of Student's t. So the ends' distances from the statistic are
multiplied by

    t(.975, df) / 1.96 * sqrt(max_p n_p/(n_p - 1)),   df = (sum_p v_p)^2 / sum_p v_p^2/(n_p - 1)

over the parts p that are resampled independently: the games, and in a difference that is not paired the games of each
side. n_p is the number of seeds and v_p the part's share of the statistic's variance, from the jackknife over its seeds
(T_-i is the statistic without seed i):

    v_p = (n_p - 1)/n_p sum_i (T_-i - mean of all T_-i)^2

For the mean v_p is s_p^2 / (G^2 n_p), and df those of Welch (1947) and Satterthwaite (1946), which do not assume that
games or sides vary equally. For the other statistics v_p says how much a game matters: to the IQM, one whose runs are
outside the middle half does not.

Under the root is the largest n/(n - 1) of all parts, not their average weighted by v_p, because 2 or 3 seeds may agree
by accident: then v_p would give them little weight just where more care is needed. So the factor is never smaller than
with the pooled df = sum_p (n_p - 1). It is 1 for many runs, 1.22 for 10 seeds of one game and 2.69 for 3; for 4 games
with 3 seeds it is between 1.44, if they vary equally, and 2.69, if one does alone.

Where a game has one seed, there is no interval over seeds, nor where all resamples are equal, as of equal scores or of
variants of which one wins with every seed: few seeds that agree do not say how far others would differ. docs/studies.md
says how often the intervals contain the truth (`python -m benchmarks.seed_coverage`).
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from evaluator.scores.intervals import t_quantile

Scores = Sequence[np.ndarray]  # one float64 [seeds] for each game
Interval = tuple[float, float]
Statistic = Callable[[Scores], np.ndarray]  # of scores [..., seeds], one value for each leading index

RESAMPLES = 5_000
_KEY = 2021  # a fixed stream: the same scores give the same interval
_Z = NormalDist().inv_cdf(0.975)
_NO_WIDTH = 1e-9  # of normalized scores; sums of equal numbers differ by less


def mean(scores: Scores) -> np.ndarray:
    """The mean over games of the mean over seeds."""
    return np.mean([game.mean(axis=-1) for game in scores], axis=0)


def interquartile_mean(scores: Scores) -> np.ndarray:
    """The mean of the middle half of all runs; one on a border of that half counts in part.

    rliable leaves out floor(N/4) whole runs at each end: the same if 4 divides N, but otherwise more than half is left,
    of 7 runs 71 % and of 21 runs 52 %, so that variants with different numbers of runs cannot be compared.
    """
    pooled = np.sort(np.concatenate(scores, axis=-1), axis=-1)
    borders = np.linspace(0.0, 1.0, pooled.shape[-1] + 1)
    return np.asarray(pooled @ (2 * np.diff(np.clip(borders, 0.25, 0.75))))


def optimality_gap(scores: Scores) -> np.ndarray:
    """How far runs are below 1, on average; what is above 1 does not make up for it."""
    return mean([np.maximum(0.0, 1.0 - game) for game in scores])


def probability_of_improvement(first: Scores, second: Scores) -> np.ndarray:
    """The probability that a run of `second` is better than one of `first`, averaged over games; ties count half."""
    wins = []
    for one, other in zip(first, second, strict=True):
        difference = other[..., :, None] - one[..., None, :]
        wins.append(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(-2, -1)))
    return np.mean(wins, axis=0)


def performance_profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """float64 `[..., thresholds]`: the share of runs above each threshold, each game with the same weight."""
    return np.mean([(game[..., None, :] > thresholds[:, None]).mean(axis=-1) for game in scores], axis=0)


def resample(scores: Scores, stream: int = 0) -> list[np.ndarray]:
    """For each game float64 `[RESAMPLES, n_g]`; the same `stream` draws the same seeds, others independent ones."""
    generator = np.random.Generator(np.random.Philox(key=[_KEY, stream]))
    return [game[generator.integers(game.size, size=(RESAMPLES, game.size))] for game in scores]


def widening(variances: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """float64 `[...]`: the factor for the ends of an interval (see the module's docstring).

    Args:
        variances: v_p, float64 `[parts, ...]`.
        sizes: n_p.
    """
    freedom = np.array(sizes, np.float64).reshape(-1, *[1] * (variances.ndim - 1)) - 1
    fewest = freedom.min()
    with np.errstate(invalid="ignore"):  # 0/0 where no seed makes a difference
        df = np.nan_to_num(variances.sum(axis=0) ** 2 / (variances**2 / freedom).sum(axis=0), nan=fewest)
    return np.asarray(t_quantile(df) / _Z * np.sqrt((fewest + 1) / fewest))


def jackknife(statistic: Callable[..., np.ndarray], sides: Sequence[Scores], paired: bool) -> np.ndarray:
    """float64 `[parts, ...]`: v_p of `statistic(*sides)`, the games of the first side first.

    With `paired`, a seed is left out on all sides together.
    """
    variances = []
    for together in [range(len(sides))] if paired else [[side] for side in range(len(sides))]:
        for game, scores in enumerate(sides[together[0]]):
            without = []
            for seed in range(scores.size):
                rest = [list(side) for side in sides]
                for side in together:
                    rest[side][game] = np.delete(rest[side][game], seed)
                without.append(statistic(*rest))
            variances.append((scores.size - 1) * np.var(without, axis=0))
    return np.array(variances)


def interval(
    statistic: Callable[..., np.ndarray], sides: Sequence[Scores], resampled: np.ndarray, paired: bool = True
) -> np.ndarray | None:
    """float64 `[2, ...]`: the 95 % interval of `statistic(*sides)` from its resamples `[RESAMPLES, ...]`.

    With `paired`, all sides were resampled together. None if a game has a single seed.
    """
    parts = [size for side in (sides[:1] if paired else sides) for size in sizes(side)]
    if min(parts) < 2:
        return None
    value = statistic(*sides)
    ends = np.quantile(resampled, (0.025, 0.975), axis=0)
    return np.asarray(value + widening(jackknife(statistic, sides, paired), parts) * (ends - value))


def statistic_interval(statistic: Statistic, scores: Scores, low: float, high: float) -> Interval | None:
    """The 95 % interval of a statistic that lies between `low` and `high`; None with one seed or equal resamples."""
    if min(sizes(scores)) < 2:
        return None
    return clipped(interval(statistic, [scores], statistic(resample(scores))), low, high)


def sizes(scores: Scores) -> list[int]:
    """The number of seeds of each game."""
    return [game.size for game in scores]


def difference_interval(statistic: Statistic, first: Scores, second: Scores, paired: bool) -> Interval | None:
    """The interval of statistic(second) - statistic(first).

    With `paired`, position i of a game is the same seed on both sides, and both are resampled together: what a seed
    does to both cancels. None with one seed or equal resamples.
    """

    def difference(first: Scores, second: Scores) -> np.ndarray:
        return statistic(second) - statistic(first)

    return clipped(_two_sided(difference, first, second, paired), -np.inf, np.inf)


def improvement_interval(first: Scores, second: Scores, paired: bool) -> Interval | None:
    """The interval of `probability_of_improvement`; None with one seed or equal resamples."""
    return clipped(_two_sided(probability_of_improvement, first, second, paired), 0.0, 1.0)


def _two_sided(
    statistic: Callable[[Scores, Scores], np.ndarray], first: Scores, second: Scores, paired: bool
) -> np.ndarray | None:
    resampled = statistic(resample(first, stream=0 if paired else 1), resample(second))
    return interval(statistic, [first, second], resampled, paired)


def clipped(ends: np.ndarray | None, low: float, high: float) -> Interval | None:
    """Both ends as floats between `low` and `high`; None if they are equal."""
    if ends is None or ends[1] - ends[0] < _NO_WIDTH:
        return None
    return min(high, max(low, float(ends[0]))), min(high, max(low, float(ends[1])))
