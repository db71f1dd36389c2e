"""Statistics over runs against the paper's definitions, closed forms and cases computed by hand."""

import itertools

import numpy as np
import pytest

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


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227), (120, 1.97993)],
)
def test_students_quantile_is_that_of_the_tables(freedom, quantile):
    assert statistics.student_quantile(0.975, freedom) == pytest.approx(quantile, abs=1e-4)


def test_students_distribution_has_its_closed_forms():
    for t in (0.0, 0.7, 3.0):
        assert statistics.student_probability(t, 1) == pytest.approx(0.5 + np.arctan(t) / np.pi)
        assert statistics.student_probability(t, 2) == pytest.approx(0.5 + t / (2 * np.sqrt(2 + t * t)))


def test_widening_goes_to_one_with_many_seeds():
    assert statistics.widening([3]) == pytest.approx(4.30265 / 1.95996 * np.sqrt(3 / 2), abs=1e-3)
    assert statistics.widening([3] * 4) == pytest.approx(2.30600 / 1.95996 * np.sqrt(12 / 8), abs=1e-3)
    assert statistics.widening([10_000]) == pytest.approx(1, abs=1e-3)


def test_interval_of_many_seeds_is_the_normal_one():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    low, high = statistics.statistic_interval(statistics.mean, [values], -np.inf, np.inf)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)


@pytest.mark.parametrize(("games", "seeds"), [(1, 3), (1, 5), (4, 3)])
def test_95_percent_intervals_of_the_mean_cover_95_percent(monkeypatch, games, seeds):
    """600 studies whose true mean is known; without the widening, 75, 84 and 85 % are covered."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    generator = np.random.default_rng(1)
    truth = np.linspace(0.1, 0.9, games)
    covered = 0
    for study in range(600):
        sample = [generator.normal(mean, 0.15, seeds) for mean in truth]
        resampled = statistics.mean(statistics.resample(sample, stream=study))
        low, high = statistics.interval(statistics.mean(sample), resampled, statistics.sizes(sample))
        covered += low <= truth.mean() <= high
    assert 0.92 <= covered / 600 <= 0.98


@pytest.mark.parametrize("paired", [True, False])
def test_95_percent_intervals_of_a_difference_cover_95_percent(monkeypatch, paired):
    """600 comparisons of one game with three seeds, the least there is; the true difference is .1."""
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(600):
        first = generator.normal(0.3, 0.15, 3)
        second = generator.normal(0.1, 0.05, 3) + (first if paired else generator.normal(0.3, 0.15, 3))
        low, high = statistics.difference_interval(statistics.mean, [first], [second], paired)
        covered += low <= 0.1 <= high
    assert 0.92 <= covered / 600 <= 0.98


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
