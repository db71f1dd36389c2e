"""Intervals against closed forms, published tables, resampling, and simulated coverage."""

import math

import numpy as np
import pytest

from benchmarks.coverage import coverage, sources
from evaluator.scores.intervals import (
    as_interval,
    difference_bounds,
    matrix,
    mean_bounds,
    paired_bounds,
    t_quantile,
    why_no_interval,
)

TEN = (0.0, 10.0)  # the limits of a game that pays all or nothing


def normal(levels: int, episodes: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).normal(5.0, 2.0, (levels, episodes))


def successes(*counts: int, of: int) -> np.ndarray:
    """Returns 10 or 0 on levels with these numbers of successes."""
    return np.array([[10.0] * count + [0.0] * (of - count) for count in counts])


def interval(returns: np.ndarray, whole: bool, limits: tuple[float, float] | None = TEN) -> tuple[float, float]:
    found = as_interval(mean_bounds(returns, whole, limits))
    assert found is not None
    return found


def covers(share: float | None, data_sets: int, at_most: float = 0.97) -> bool:
    """Whether a simulated share is between .93 and .97, give or take what simulating so few data sets adds."""
    error = 2.5 * math.sqrt(0.95 * 0.05 / data_sets)
    return share is None or 0.93 - error <= share <= at_most + error


@pytest.mark.parametrize("source", ["Beta(2, 1)", "Beta(.5, .25)", "real run"])
@pytest.mark.parametrize(("levels", "data_sets"), [(20, 2500), (200, 700)])
def test_stated_95_percent_intervals_cover_93_to_97_percent(source: str, levels: int, data_sets: int) -> None:
    for episodes in (1, 3, 10):
        shares = coverage(sources()[source], levels, episodes, data_sets, seed=0)
        for kind in ("train", "held-out", "gap"):
            share = shares[kind]
            if episodes == 1 and kind != "held-out":
                assert share is None  # one episode does not show how much a level's episodes vary
            else:
                assert share is not None and covers(share, data_sets), (kind, episodes, share)
        # With few episodes the differences of similar policies are few: wider is possible, narrower is not.
        assert all(covers(share, data_sets, at_most=1.0) for share in shares.values()), (episodes, shares)


@pytest.mark.parametrize("source", ["normal", "skewed"])
def test_intervals_of_returns_without_limits_cover_too(source: str) -> None:
    for episodes in (1, 3):
        shares = coverage(sources()[source], 20, episodes, 2500, seed=0)
        assert all(covers(share, 2500) for share in shares.values()), (episodes, shares)


def test_interval_covers_an_improvement_on_few_levels() -> None:
    """Few levels that differ say little about how much levels differ; without that discount, .90 would be covered."""
    generator = np.random.RandomState(0)
    before = generator.beta(2, 1, (1500, 20, 1))
    after = np.where(generator.random_sample(before.shape) < 0.15, 1.0, before)
    noise = generator.random_sample((1500, 20, 10))
    pairs = 1.0 * (noise < after) - (noise < before)
    low, high = paired_bounds(pairs, False, (0.0, 1.0))
    truth = 0.15 * (1 - 2 / 3)
    assert np.mean((low <= truth) & (truth <= high)) >= 0.93


@pytest.mark.parametrize(("levels", "data_sets"), [(20, 2500), (50, 1500), (200, 700)])
def test_held_out_interval_covers_rare_levels_that_a_sample_may_lack(levels: int, data_sets: int) -> None:
    """Without the extension of Wilson's interval, .63 would be covered with 20 episodes on each of 20 levels."""
    for source in ("5 % never", "1 % never"):
        for episodes in (2, 10, 20):
            shares = coverage(sources()[source], levels, episodes, data_sets, seed=0)
            for kind in ("held-out", "gap"):
                assert covers(shares[kind], data_sets, at_most=1.0), (source, episodes, kind, shares[kind])


def test_wilsons_interval_is_extended_only_where_sampled_levels_are_alike() -> None:
    share = 1.959964**2 / (20 + 1.959964**2)  # of levels of which none is among 20
    alike = successes(*[10] * 16, *[9] * 4, of=10)
    assert interval(alike, False)[0] == pytest.approx(9.8 * (1 - share))
    assert interval(10 - alike, False)[1] == pytest.approx(0.2 + 9.8 * share)
    assert interval(alike, True)[0] > 9.4  # these levels are all there are
    low, high = interval(successes(*[10] * 8, *[5] * 4, *[0] * 8, of=10), False)
    assert low < 5 * (1 - share) and high > 5 + 5 * share
    count = 25 * (1.959964 / 2.093) ** 2  # .25 / V, and t has 19 degrees of freedom
    assert high - low == pytest.approx(10 * 1.959964 / math.sqrt(count + 1.959964**2), rel=1e-3)


def test_t_quantiles_invert_the_distribution_function() -> None:
    def cdf(t: float, df: int) -> float:  # for even df, Abramowitz and Stegun 26.7.4
        theta = math.atan(t / math.sqrt(df))
        total = term = 1.0
        for i in range(1, df // 2):
            term *= (2 * i - 1) / (2 * i) * math.cos(theta) ** 2
            total += term
        return 0.5 + math.sin(theta) * total / 2

    for df in (2, 4, 6, 8, 10, 12, 20, 30, 60, 120):
        assert cdf(float(t_quantile(df)), df) == pytest.approx(0.975, abs=1e-5)
    for df in (14, 18, 24, 40, 80, 200):  # between the entries of the table: never too little
        assert 0.975 <= cdf(float(t_quantile(df)), df) < 0.9752
    assert float(t_quantile(1)) == pytest.approx(math.tan(0.475 * math.pi), abs=1e-4)


def test_held_out_interval_of_one_episode_per_level_is_wilsons() -> None:
    # 81 of 263 (Newcombe 1998, Statistics in Medicine 17, 857-872, table I): .2553 to .3662; 0 of 20: 0 to .1611.
    assert interval(successes(*[1] * 81, *[0] * 182, of=1), False) == pytest.approx((2.553, 3.662), abs=1e-3)
    assert interval(successes(*[0] * 20, of=1), False) == pytest.approx((0, 1.611), abs=1e-3)


def test_paired_interval_with_few_different_pairs_is_bonett_and_prices() -> None:
    pairs = np.zeros((20, 1))
    pairs[:3], pairs[3] = 10.0, -10.0  # b = 3, c = 1, n = 20
    b, c = 4 / 22, 2 / 22
    half = 1.959964 * math.sqrt((b + c - (b - c) ** 2) / 22)
    low, high = paired_bounds(pairs, False, TEN)
    assert (low, high) == pytest.approx((10 * (b - c - half), 10 * (b - c + half)))


def test_paired_interval_with_many_different_levels_is_students() -> None:
    pairs = normal(16, 3)
    means = pairs.mean(axis=1)
    half = 2.1314 * means.std(ddof=1) / 4  # 15 degrees of freedom
    assert paired_bounds(pairs, False) == pytest.approx((means.mean() - half, means.mean() + half))


@pytest.mark.parametrize("limits", [TEN, None])
def test_negated_differences_have_the_negated_interval(limits: tuple[float, float] | None) -> None:
    for pairs in few_values():
        for whole in (True, False):
            low, high = paired_bounds(pairs, whole, limits)
            other_low, other_high = paired_bounds(-pairs, whole, limits)
            assert np.array_equal((low, high), (-other_high, -other_low), equal_nan=True), pairs
            assert why_no_interval(pairs, whole) == why_no_interval(-pairs, whole)


def test_levels_that_differ_are_counted_from_both_typical_levels() -> None:
    """With an even number of levels there can be two: five of 10 levels differ from the upper one, six from 0."""
    pairs = np.array([[-10.0], *[[0.0]] * 4, *[[10.0]] * 5])
    b, c = 6 / 12, 2 / 12
    half = 1.959964 * math.sqrt((b + c - (b - c) ** 2) / 12)
    assert paired_bounds(pairs, False, TEN) == pytest.approx((10 * (b - c - half), 10 * (b - c + half)))
    assert as_interval(paired_bounds(pairs, False)) is None and as_interval(mean_bounds(-pairs, False)) is None


def few_values() -> list[np.ndarray]:
    """Differences on 4 to 10 levels with 1 to 3 episodes, most of them equal to others."""
    generator = np.random.RandomState(0)
    values = ([-10.0, 0.0, 10.0], [0.0, 10.0], [-2.5, 0.0, 1.0, 3.0])
    drawn = []
    for number in range(3000):
        shape = generator.randint(4, 11), generator.randint(1, 4)
        pairs = generator.choice(values[number % 3], shape)
        pairs[generator.random_sample(shape[0]) < 0.5] = generator.choice(values[number % 3])
        drawn.append(pairs)
    return drawn


def test_training_interval_is_about_episodes_only() -> None:
    levels = 10.0 * np.arange(30)[:, None]  # far apart, which is certain about these levels
    returns = levels + normal(30, 2)
    low, high = interval(returns, True, None)
    # Equal variances: about 30 degrees of freedom, standard error 2 / sqrt(60).
    assert high - low == pytest.approx(2 * 2.04 * 2 / math.sqrt(60), rel=0.3)
    low, high = interval(returns, False, None)
    assert high - low > 2 * 1.96 * levels.std() / math.sqrt(30)


def test_known_levels_narrow_the_training_interval() -> None:
    pooled = interval(successes(*[1] * 30, *[0] * 30, of=1), False)  # 60 independent episodes, half of them won
    stratified = interval(successes(*[3] * 8, *[2, 1] * 2, *[0] * 8, of=3), True)
    assert stratified[1] - stratified[0] < 0.7 * (pooled[1] - pooled[0])
    assert interval(successes(*[3] * 10, *[0] * 10, of=3), True) == pytest.approx(pooled)  # V = 0 is not certain


def test_interval_is_never_of_zero_width() -> None:
    for whole in (True, False):
        low, high = interval(np.full((20, 3), 10.0), whole)
        assert high == 10 and 8 < low < 9.5
        assert as_interval(paired_bounds(np.zeros((20, 3)), whole, TEN)) not in (None, (0.0, 0.0))
        same = np.full((20, 3), 7.0)
        assert as_interval(mean_bounds(same, whole)) is None and why_no_interval(same, whole) == "all values are equal"
        same[:3, 0] = 9.0  # too little to estimate a variance from
        assert as_interval(mean_bounds(same, whole)) is None and "fewer than 6 levels" in why_no_interval(same, whole)
        assert as_interval(paired_bounds(same, whole)) is None


def test_hundred_successes_cover_by_the_exact_binomial_test() -> None:
    """All of n succeed with probability p^n: the interval must hold all p with p^n > .025."""
    for count in (20, 60, 200):
        low, _ = interval(np.full((count, 1), 10.0), False)
        assert low / 10 < 0.05 ** (1 / count)


def test_sampled_interval_agrees_with_the_studentized_bootstrap() -> None:
    for returns in (normal(40, 2), np.random.RandomState(1).gamma(4, 2.5, (40, 1))):
        means = returns.mean(axis=1)
        drawn = means[np.random.RandomState(2).randint(40, size=(20_000, 40))]
        t = (drawn.mean(axis=1) - means.mean()) / drawn.std(axis=1, ddof=1)
        high, low = means.mean() - np.quantile(t, (0.025, 0.975)) * means.std(ddof=1)
        width = high - low
        assert interval(returns, False, None) == pytest.approx((low, high), abs=0.1 * width)


def test_resampled_episodes_have_the_variance_of_the_training_interval() -> None:
    """Drawing k of k episodes within every level has the variance (k - 1) / k V."""
    returns = normal(30, 10) + 10 * np.arange(30)[:, None]
    episodes = np.random.RandomState(3).randint(10, size=(5000, 30, 10))
    drawn = returns[np.arange(30)[:, None], episodes].mean(axis=(1, 2))
    low, high = interval(returns, True, None)
    half = 1.97 * drawn.std() * math.sqrt(10 / 9)  # about 270 degrees of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=0.04)


def test_difference_of_independent_means_adds_variances() -> None:
    mean, bounds = 5.0, (np.array(4.0), np.array(6.0))
    low, high = difference_bounds(mean, bounds, mean, bounds)
    assert (low, high) == pytest.approx((-math.sqrt(2), math.sqrt(2)))
    nothing = (np.array(np.nan), np.array(np.nan))
    assert as_interval(difference_bounds(mean, bounds, mean, nothing)) is None


def test_uneven_numbers_of_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of episodes"):
        matrix([[1.0, 2.0], [3.0]])
