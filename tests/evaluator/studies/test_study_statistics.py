"""Statistics over runs against the paper's definitions, closed forms and cases computed by hand."""

import itertools

import numpy as np
import pytest

from benchmarks.seed_coverage import STUDIES, coverage
from evaluator.scores.intervals import t_quantile
from evaluator.studies import statistics


def scores(*games):
    return [np.array(game, np.float64) for game in games]


TWO_GAMES = scores([0.1, 0.5, 0.9, 1.3], [0.0, 0.2, 0.4, 0.6])


def test_statistics_of_two_games_are_those_computed_by_hand():
    # Sorted: 0 .1 .2 .4 .5 .6 .9 1.3; two are left out at each end.
    assert statistics.interquartile_mean(TWO_GAMES) == pytest.approx((0.2 + 0.4 + 0.5 + 0.6) / 4)
    assert statistics.mean(TWO_GAMES) == pytest.approx((0.7 + 0.3) / 2)
    # Below 1 by .9 .5 .1 0 and 1 .8 .6 .4.
    assert statistics.optimality_gap(TWO_GAMES) == pytest.approx((1.5 / 4 + 2.8 / 4) / 2)
    # Above 0, .4, 1: all but one; 3 and 1 of 4; 1 and 0 of 4.
    profile = statistics.performance_profile(TWO_GAMES, np.array([0.0, 0.4, 1.0]))
    assert profile == pytest.approx([7 / 8, (3 / 4 + 1 / 4) / 2, 1 / 8])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], 1.0),
        ([1.0, 5.0], 3.0),
        ([0, 1, 2, 99], 1.5),
        # Of 3 runs the middle half is one and a half: the outer two count a quarter each.
        ([0.0, 1.0, 50.0], (0.25 * 0 + 1 + 0.25 * 50) / 1.5),
        # Of 5 it is two and a half.
        ([9, 0, 1, 2, -7], (0.75 * 0 + 1 + 0.75 * 2) / 2.5),
    ],
)
def test_interquartile_mean_is_of_the_middle_half_also_if_its_borders_divide_a_run(values, expected):
    assert statistics.interquartile_mean(scores(values)) == pytest.approx(expected)


@pytest.mark.parametrize("number", range(1, 12))
def test_interquartile_mean_does_not_depend_on_how_often_all_runs_are_repeated(number):
    values = np.random.default_rng(number).gamma(1.0, size=number)
    once = statistics.interquartile_mean([values])
    assert statistics.interquartile_mean([values, values, values]) == pytest.approx(once)
    # Of four copies no border divides a run, so that whole runs can be left out.
    four = np.sort(np.tile(values, 4))
    assert four[number:-number].mean() == pytest.approx(once)


def test_interquartile_mean_ignores_outliers_and_is_the_mean_of_a_symmetric_sample():
    symmetric = np.linspace(-1, 1, 41)
    assert statistics.interquartile_mean([symmetric]) == pytest.approx(0)
    assert statistics.interquartile_mean([np.append(symmetric, 1e9)]) < 0.1


def test_statistics_of_games_with_different_numbers_of_seeds_weigh_games_equally():
    uneven = scores([1.0], [0.0, 0.2, 0.4])
    assert statistics.mean(uneven) == pytest.approx(0.6)
    assert statistics.optimality_gap(uneven) == pytest.approx(0.4)
    assert statistics.performance_profile(uneven, np.array([0.3])) == pytest.approx([(1 + 1 / 3) / 2])


def test_probability_of_improvement_counts_pairs_and_half_of_ties():
    first, second = scores([0.0, 0.5], [1.0, 1.0]), scores([0.5, 0.6, -1.0], [1.0, 0.0])
    # Game 1: .5 beats 0 and ties .5; .6 beats both; -1 loses both: 3.5 of 6. Game 2: two ties, two losses: 1 of 4.
    assert statistics.probability_of_improvement(first, second) == pytest.approx((3.5 / 6 + 1 / 4) / 2)
    other_way = statistics.probability_of_improvement(second, first)
    assert statistics.probability_of_improvement(first, second) + other_way == pytest.approx(1)
    assert statistics.probability_of_improvement(first, first) == pytest.approx(0.5)


def test_statistics_take_leading_axes():
    stacked = [np.stack([game, game + 0.1]) for game in TWO_GAMES]
    shifted = [game + 0.1 for game in TWO_GAMES]
    for statistic in (statistics.mean, statistics.interquartile_mean, statistics.optimality_gap):
        assert statistic(stacked) == pytest.approx(np.array([statistic(TWO_GAMES), statistic(shifted)]))
    assert statistics.performance_profile(stacked, np.array([0.5]))[1] == pytest.approx(
        statistics.performance_profile(shifted, np.array([0.5]))
    )


def test_resamples_draw_seeds_within_their_game():
    drawn = statistics.resample(scores([1, 2, 3], [10, 20]))
    assert [game.shape for game in drawn] == [(statistics.RESAMPLES, 3), (statistics.RESAMPLES, 2)]
    assert set(np.unique(drawn[0])) == {1, 2, 3} and set(np.unique(drawn[1])) == {10, 20}


def test_resampled_means_have_the_distribution_of_all_equally_probable_draws():
    """The exact bootstrap of three seeds: 27 draws."""
    seeds = [0.0, 1.0, 5.0]
    exact = [np.mean(draw) for draw in itertools.product(seeds, repeat=3)]
    drawn = statistics.mean(statistics.resample(scores(seeds)))
    for value in set(exact):
        expected = exact.count(value) / 27
        assert np.mean(np.isclose(drawn, value)) == pytest.approx(expected, abs=0.02)


def t_for(df):
    return float(t_quantile(df)) / 1.959964


def test_widening_of_equal_variances_is_that_of_pooled_ones():
    assert statistics.widening(np.array([0.3]), [3]) == pytest.approx(4.30265 / 1.95996 * np.sqrt(3 / 2), abs=1e-3)
    assert statistics.widening(np.full(4, 0.2), [3] * 4) == pytest.approx(2.30600 / 1.95996 * np.sqrt(3 / 2), abs=1e-3)
    assert statistics.widening(np.array([0.3]), [2]) == pytest.approx(12.7062 / 1.95996 * np.sqrt(2), abs=1e-3)
    assert statistics.widening(np.array([0.3]), [10_000]) == pytest.approx(1, abs=1e-3)


def test_widening_has_the_degrees_of_freedom_of_welch_and_satterthwaite():
    # Variances of .04 with 2 and .01 with 9 degrees of freedom, so .05^2 / (.04^2/2 + .01^2/9) = 3.0822 in all.
    assert statistics.widening(np.array([0.04, 0.01]), [3, 10]) == pytest.approx(t_for(3.0822) * np.sqrt(3 / 2), 1e-4)
    # One game that varies alone counts alone.
    alone = statistics.widening(np.array([1e-9, 1e-9, 1e-9, 1.0]), [3] * 4)
    assert alone == pytest.approx(statistics.widening(np.array([1.0]), [3]), rel=1e-6)


def test_widening_takes_trailing_axes():
    variances = np.array([[0.04, 0.2, 0.0], [0.01, 0.2, 0.0]])
    expected = [float(statistics.widening(column, [3, 10])) for column in variances.T]
    assert statistics.widening(variances, [3, 10]) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("sizes", [[2, 10], [10, 2], [3, 3], [2, 5, 5, 5], [3, 30]])
def test_widening_is_never_smaller_than_with_pooled_variances(sizes):
    """Nor where seeds agree, so that their variance is 0."""
    parts, fewest = len(sizes), min(sizes)
    pooled = t_for(sum(sizes) - parts) * np.sqrt(fewest / (fewest - 1))
    generator = np.random.default_rng(0)
    variances = generator.gamma(0.3, size=(parts, 50)) * (generator.random((parts, 50)) < 0.7)
    widening = statistics.widening(np.column_stack([variances, np.zeros(parts)]), sizes)
    assert np.isfinite(widening).all() and widening.min() >= pooled


def test_jackknife_of_the_mean_is_its_variance_by_games_and_sides():
    first, second = scores([0.1, 0.5, 0.9], [0.2, 0.3]), scores([0.4, 0.1, 0.2], [0.9, 0.5])

    def variance(values):
        return sum((x - np.mean(values)) ** 2 for x in values) / (len(values) - 1) / len(values)

    def difference(one, other):
        return statistics.mean(other) - statistics.mean(one)

    one_side = statistics.jackknife(statistics.mean, [first], paired=True)
    assert one_side == pytest.approx([variance(game) / 4 for game in first])
    unpaired = statistics.jackknife(difference, [first, second], paired=False)
    assert unpaired == pytest.approx([variance(game) / 4 for game in first + second])
    paired = statistics.jackknife(difference, [first, second], paired=True)
    assert paired == pytest.approx([variance(b - a) / 4 for a, b in zip(first, second, strict=True)])


def test_jackknife_of_the_iqm_counts_only_games_in_the_middle_half():
    games = scores([-9, -8, -9.5], [0.4, 0.5, 0.7], [0.5, 0.6, 0.3], [8, 9, 9.5])
    low, *middle, high = statistics.jackknife(statistics.interquartile_mean, [games], paired=True)
    assert low == high == pytest.approx(0, abs=1e-20) and min(middle) > 1e-4


def test_interval_of_many_seeds_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    low, high = statistics.statistic_interval(statistics.mean, [values], -np.inf, np.inf)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


def test_unpaired_interval_of_many_different_seeds_is_that_of_welch():
    generator = np.random.default_rng(4)
    first, second = generator.normal(0.5, 0.3, 12), generator.normal(0.6, 0.1, 40)
    low, high = statistics.difference_interval(statistics.mean, [first], [second], paired=False)
    one, other = first.var(ddof=1) / 12, second.var(ddof=1) / 40
    half = t_quantile((one + other) ** 2 / (one**2 / 11 + other**2 / 39)) * np.sqrt(one + other)
    assert (high - low) / 2 == pytest.approx(half, rel=0.04)


# With pooled degrees of freedom the last six cover the mean in .80 to .88, and without any widening the first in .75.
@pytest.mark.parametrize(
    ("study", "least"),
    [
        ("1 game, 3 seeds", 0.93),
        ("1 game, 5 seeds", 0.92),
        ("4 games, 3 seeds", 0.93),
        ("pairs: 1 game, 3 seeds", 0.92),
        ("1 game, 3 and 3 seeds", 0.93),
        ("4 games, 5 seeds, one varies 10 times as much", 0.92),
        ("4 games, 3 seeds, one varies 10 times as much", 0.91),
        ("2 games, 3 and 10 seeds, the first varies 3 times as much", 0.89),
        ("pairs: 4 games, 3 seeds, one varies 10 times as much", 0.91),
        ("1 game, 3 and 30 seeds", 0.90),
        ("1 game, 3 and 10 seeds, the first vary twice as much", 0.91),
    ],
)
def test_intervals_cover_also_if_games_or_sides_vary_differently(study, least):
    (simulated,) = (one for one in STUDIES if one.name == study)
    shares = coverage(simulated, "normal", 700)
    assert all(least <= share <= 0.99 for share in shares.values()), shares


def test_one_seed_has_no_interval():
    one = scores([0.5, 0.6], [0.5])
    assert statistics.statistic_interval(statistics.mean, one, 0, 1) is None
    assert statistics.difference_interval(statistics.mean, one, one, paired=True) is None
    assert statistics.improvement_interval(one, one, paired=False) is None


def test_paired_difference_cancels_what_a_seed_does_to_both():
    seeds = np.array([0.1, 0.5, 0.9])
    first, second = [seeds], [seeds + np.array([0.05, 0.06, 0.04])]
    low, high = statistics.difference_interval(statistics.mean, first, second, paired=True)
    assert 0 < low < 0.05 < high < 0.1
    low, high = statistics.difference_interval(statistics.mean, first, second, paired=False)
    assert low < -0.5 and high > 0.5


def test_paired_probability_of_improvement_cancels_what_a_seed_does_to_both():
    seeds = np.linspace(0, 1, 20)
    first, second = [seeds], [seeds + np.random.default_rng(0).normal(0.0, 0.02, 20)]
    paired, unpaired = (np.ptp(statistics.improvement_interval(first, second, paired)) for paired in (True, False))
    assert 0 < paired < unpaired / 2


def test_paired_difference_of_means_is_the_interval_of_the_mean_difference():
    first, second = scores([0.1, 0.5, 0.7, 0.2]), scores([0.3, 0.4, 0.9, 0.6])
    paired = statistics.difference_interval(statistics.mean, first, second, paired=True)
    own = statistics.statistic_interval(statistics.mean, [second[0] - first[0]], -np.inf, np.inf)
    assert paired == pytest.approx(own)


def test_same_scores_give_the_same_interval_within_its_bounds():
    gap = [statistics.statistic_interval(statistics.optimality_gap, TWO_GAMES, 0.0, np.inf) for _ in range(2)]
    assert gap[0] == gap[1] and gap[0][0] >= 0
    low, high = statistics.improvement_interval(scores([0, 0.2]), scores([0.1, 0.3]), paired=False)
    assert low == 0.0 and high == 1.0


def test_seeds_that_agree_completely_have_no_interval():
    same = scores([0.3, 0.3, 0.3], [0.7, 0.7, 0.7])
    assert statistics.statistic_interval(statistics.interquartile_mean, same, 0, 1) is None
    assert statistics.statistic_interval(statistics.optimality_gap, scores([1.0, 1.2]), 0, 1) is None
    first, second = scores([0.1, 0.5, 0.9]), scores([0.3, 0.7, 1.1])
    assert statistics.difference_interval(statistics.mean, first, second, paired=True) is None
    assert statistics.difference_interval(statistics.mean, first, second, paired=False) is not None
    assert statistics.improvement_interval(first, second, paired=True) is not None
    assert statistics.improvement_interval(scores([0, 0.1]), scores([5, 6]), paired=False) is None


@pytest.mark.parametrize("paired", [True, False])
def test_game_whose_seeds_agree_leaves_the_interval_of_all_games_defined(paired):
    first, second = scores([0.3, 0.3], [0.1, 0.5]), scores([0.3, 0.3], [0.2, 0.8])
    for statistic in (statistics.mean, statistics.interquartile_mean):
        low, high = statistics.difference_interval(statistic, first, second, paired)
        assert -10 < low <= statistic(second) - statistic(first) <= high < 10 and low < high


def test_interval_is_defined_where_leaving_out_one_seed_changes_nothing():
    outlier = scores([0, 0, 0, 0, 0, 0, 0, 1])
    assert not statistics.jackknife(statistics.interquartile_mean, [outlier], paired=True).any()
    low, high = statistics.statistic_interval(statistics.interquartile_mean, outlier, -np.inf, np.inf)
    assert low == 0 and 0 < high < 1
