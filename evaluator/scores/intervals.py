"""95 % intervals of mean returns, as closed forms; docs/statistics.md explains them and shows their coverage.

What an interval is about decides its variance. For returns y of L levels with k episodes each, level means m_l, mean M:

    whole      the L levels are the whole population: only episodes vary   V = sum_l s_l^2 / (k L^2)
    sampled    the L levels are a sample: the level is the unit            V = S^2 / L, S^2 the variance of the m_l

    mean           with known limits of y, Wilson's interval (1927) with an effective number of episodes in place of
                   the number of independent ones, as for surveys (Korn and Graubard 1998; Dean and Pagano 2015),
                   extended for levels of which the sample has none (sampled);
                   without, a t interval (whole) or Hall's (1992), which corrects t for skewness (sampled)
    paired mean    a t interval; with known limits and few levels that differ, Bonett and Price's (2012)
    difference     of two independent means: the square-and-add rule (Newcombe 1998, Zou and Donner 2008)

Arrays of returns are float `[..., L, k]`: leading axes are independent data sets. Bounds are float64 `[...]`, nan where
the data support no interval.
"""

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Bounds = tuple[np.ndarray, np.ndarray]
Limits = tuple[float, float]  # the lowest and the highest possible return

_Z = 1.959964  # of a two-sided 95 % interval
# With fewer levels that vary (whole) or differ from the others (sampled), V is not estimated well enough for t.
MIN_VARYING_LEVELS = 6

# Student's t, 97.5 % quantile, by degrees of freedom. It is convex in 1/df: interpolating never gives too little.
_T_DF = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 30, 60, 120, np.inf)
_T_VALUES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.1788, 2.1314, 2.0860, 2.0423, 2.0003, 1.9799, _Z),
)


def t_quantile(df: np.ndarray | float) -> np.ndarray:
    """float64 `[...]`: the 97.5 % quantile of Student's t for `df` >= 1, at most 2 % too large for df >= 2."""
    return np.interp(1 / np.asarray(df, np.float64), 1 / np.array(_T_DF[::-1]), _T_VALUES[::-1])


def mean_bounds(returns: np.ndarray, whole: bool, limits: Limits | None = None) -> Bounds:
    """The interval of the mean return; see the module's docstring. `limits` are those of every return."""
    if returns.shape[-1 if whole else -2] < 2:
        return _nothing(returns)
    if limits is None:
        bounds = _t_bounds(returns, whole) if whole else _skewed_t_bounds(returns)
        return _where(_vary(returns, whole), bounds, _nothing(returns))
    low, high = limits
    shares = (returns - low) / (high - low)
    mean = shares.mean(axis=(-2, -1))
    count = _effective_count(shares, mean * (1 - mean), whole)
    # Wilson: the values p with |mean - p| <= z sqrt(p (1 - p) / count).
    center = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
    lower, upper = np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)
    if not whole and returns.shape[-1] > 1:  # with one episode per level, Wilson's interval reaches as far already
        # Levels that the sample lacks may be solved never or always. Their share is at most Wilson's limit for 0 of L.
        unseen = _Z**2 / (returns.shape[-2] + _Z**2)
        lower, upper = np.minimum(lower, mean * (1 - unseen)), np.maximum(upper, mean + (1 - mean) * unseen)
    return low + (high - low) * lower, low + (high - low) * upper


def paired_bounds(
    differences: np.ndarray, whole: bool, limits: Limits | None = None, planned: int | None = None
) -> Bounds:
    """The interval of the mean of paired differences of returns that lie within `limits`.

    With `planned`, the one to expect from that many episodes per level, at least 2 if `whole`, where the mean and the
    variances between and within levels are as they were seen.
    """
    if differences.shape[-1 if whole else -2] < 2:
        return _nothing(differences)
    by_t, varies = _t_bounds(differences, whole, planned), _vary(differences, whole)
    if limits is None:
        return _where(varies, by_t, _nothing(differences))
    span = limits[1] - limits[0]
    shares = differences / span
    mean, square = shares.mean(axis=(-2, -1)), (shares**2).mean(axis=(-2, -1))
    count = _effective_count(shares, square - mean**2, whole, planned)
    # Bonett and Price: one more pair in favor of each side.
    better, worse = (
        (count * (square + mean) / 2 + 1) / (count + 2),
        (count * (square - mean) / 2 + 1) / (count + 2),
    )
    center, half = better - worse, _Z * np.sqrt((better + worse - (better - worse) ** 2) / (count + 2))
    lower, upper = _where(varies, by_t, (span * (center - half), span * (center + half)))
    return np.clip(lower, -span, span), np.clip(upper, -span, span)


def difference_bounds(
    first: np.ndarray | float, first_bounds: Bounds, second: np.ndarray | float, second_bounds: Bounds
) -> Bounds:
    """The interval of `first` minus `second`, independent means with their own intervals."""
    (low1, high1), (low2, high2) = first_bounds, second_bounds
    difference = np.asarray(first) - second
    lower = difference - np.sqrt((first - low1) ** 2 + (high2 - second) ** 2)
    return lower, difference + np.sqrt((high1 - first) ** 2 + (second - low2) ** 2)


def standard_error(returns: np.ndarray, whole: bool) -> float | None:
    """sqrt(V) of returns `[L, k]`; None where V cannot be estimated."""
    if returns.shape[-1 if whole else -2] < 2:
        return None
    return float(np.sqrt(_variance(returns, whole)))


def as_interval(bounds: Bounds) -> Interval | None:
    """The bounds of one data set; None if they are nan."""
    low, high = map(float, bounds)
    return None if np.isnan(low) else (low, high)


def why_no_interval(returns: np.ndarray, whole: bool) -> str:
    """Why returns or differences `[L, k]` have no interval, in a few words for people."""
    if whole and returns.shape[1] < 2:
        return "one episode per level; two are needed for an interval about these levels"
    if not whole and returns.shape[0] < 2:
        return "one level; two are needed for an interval about all levels"
    if np.ptp(returns) == 0:
        return "all values are equal"
    if whole:
        return f"episodes differ on fewer than {MIN_VARYING_LEVELS} levels"
    return f"fewer than {MIN_VARYING_LEVELS} levels differ from the others"


def matrix(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """float64 `[levels, episodes]`; ValueError if the levels have different numbers of episodes."""
    if len({len(row) for row in rows}) != 1:
        raise ValueError("every level needs the same number of episodes")
    return np.array(rows, np.float64)


def _nothing(returns: np.ndarray) -> Bounds:
    nothing = np.full(returns.shape[:-2], np.nan)
    return nothing, nothing


def _where(condition: np.ndarray, bounds: Bounds, otherwise: Bounds) -> Bounds:
    return np.where(condition, bounds[0], otherwise[0]), np.where(condition, bounds[1], otherwise[1])


def _vary(returns: np.ndarray, whole: bool) -> np.ndarray:
    """Whether enough levels vary (whole), or differ from the most typical level (sampled), to estimate `_variance`."""
    num_levels = returns.shape[-2]
    if whole:
        enough: np.ndarray = (np.ptp(returns, axis=-1) > 0).sum(axis=-1) >= min(MIN_VARYING_LEVELS, num_levels)
        return enough
    means = returns.mean(axis=-1)
    # The lower and the upper median, so that a sign changes nothing. Each is the mean of some level: of levels without
    # equals all but one differ from it.
    typical = np.sort(means, axis=-1)[..., [(num_levels - 1) // 2, num_levels // 2]]
    differing = (means[..., None] != typical[..., None, :]).sum(axis=-2).min(axis=-1)
    differ: np.ndarray = differing >= min(MIN_VARYING_LEVELS, num_levels - 1)
    return differ


def _variance(returns: np.ndarray, whole: bool, planned: int | None = None) -> np.ndarray:
    """V of the module's docstring; with `planned`, the one to expect from that many episodes per level.

    S^2 has a part that more episodes do not reduce. With one episode per level the parts cannot be separated, and all
    of it counts as variance within levels.
    """
    num_levels, num_episodes = returns.shape[-2:]
    if whole:
        sums: np.ndarray = returns.var(axis=-1, ddof=1).sum(axis=-1)
        return sums / ((planned or num_episodes) * num_levels**2)
    of_means: np.ndarray = returns.mean(axis=-1).var(axis=-1, ddof=1)
    if planned is not None:
        within = of_means if num_episodes == 1 else returns.var(axis=-1, ddof=1).mean(axis=-1)
        of_means = np.maximum(of_means - within / num_episodes, 0) + within / planned
    return of_means / num_levels


def _degrees_of_freedom(returns: np.ndarray, whole: bool, planned: int | None = None) -> np.ndarray:
    """Of `_variance`, at least 1: few levels that vary, or few that differ from the rest, give few.

    whole: Satterthwaite (1946), (k - 1) (sum s_l^2)^2 / sum s_l^4. sampled: from the variance of S^2, which the
    kurtosis b of the level means determines, 2 L / (b - 1), at most L - 1.
    """
    num_levels, num_episodes = returns.shape[-2], planned or returns.shape[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        if whole:
            variances = returns.var(axis=-1, ddof=1)
            most = num_levels * (num_episodes - 1)
            df = (num_episodes - 1) * variances.sum(axis=-1) ** 2 / (variances**2).sum(axis=-1)
        else:
            means = returns.mean(axis=-1)
            squares = (means - means.mean(axis=-1, keepdims=True)) ** 2
            most = num_levels - 1
            df = 2 * num_levels * squares.mean(axis=-1) ** 2 / squares.var(axis=-1)
    return np.clip(np.nan_to_num(df, nan=1, posinf=most), 1, most)


def _effective_count(shares: np.ndarray, pooled: np.ndarray, whole: bool, planned: int | None = None) -> np.ndarray:
    """How many independent episodes would give the mean the same precision; `pooled` is the variance of one of them.

    pooled / V, less for an uncertain V. Playing every level of a population equally often is at least as precise as
    L k independent episodes; on sampled levels, L k episodes are worth at least L and at most L k independent ones.
    """
    num_levels, num_episodes = shares.shape[-2], planned or shares.shape[-1]
    variance = _variance(shares, whole, planned)
    discount = (_Z / t_quantile(_degrees_of_freedom(shares, whole, planned))) ** 2
    if not whole:  # with one episode per level, this makes it exactly pooled / L
        variance = variance * (num_levels - 1) / num_levels
    least, most = (num_levels * num_episodes, np.inf) if whole else (num_levels, num_levels * num_episodes)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.where(variance > 0, discount * pooled / variance, least)
    return np.clip(count, least, most)


def _t_bounds(returns: np.ndarray, whole: bool, planned: int | None = None) -> Bounds:
    """Student's t interval."""
    mean = returns.mean(axis=(-2, -1))
    df = _degrees_of_freedom(returns, whole, planned) if whole else returns.shape[-2] - 1
    half = t_quantile(df) * np.sqrt(_variance(returns, whole, planned))
    return mean - half, mean + half


def _skewed_t_bounds(returns: np.ndarray) -> Bounds:
    """Hall's interval about all levels: his monotone transformation of t removes its skewness."""
    num_levels = returns.shape[-2]
    means = returns.mean(axis=-1)
    mean, scale = means.mean(axis=-1), means.std(axis=-1, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = ((means - mean[..., None]) ** 3).mean(axis=-1) / means.std(axis=-1) ** 3
    skewness = np.where(np.abs(skewness) > 1e-6, skewness, 1e-6)  # in its limit, 0, this is the t interval
    t = t_quantile(num_levels - 1) / np.sqrt(num_levels)

    def inverse(value: np.ndarray) -> np.ndarray:
        root: np.ndarray = np.cbrt(1 + skewness * (value - skewness / (6 * num_levels)))
        return 3 / skewness * (root - 1)

    return mean - scale * inverse(t), mean - scale * inverse(-t)
