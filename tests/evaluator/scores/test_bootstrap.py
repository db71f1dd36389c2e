import numpy as np
import pytest

from evaluator.scores.bootstrap import RESAMPLES, difference_interval, matrix, mean_interval, resampled_means


def normal(levels: int, episodes: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).normal(5.0, 2.0, (levels, episodes))


def test_interval_with_one_episode_per_level_is_the_normal_interval() -> None:
    values = normal(400, 1)
    low, high = mean_interval(values)  # type: ignore[misc]
    standard_error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * standard_error, abs=0.1 * standard_error)
    assert high == pytest.approx(values.mean() + 1.96 * standard_error, abs=0.1 * standard_error)


def test_variance_of_two_stages_matches_the_closed_form() -> None:
    """Drawing levels, then episodes: Var = (between' + within' / k) / L, of the sample's own (ddof 0) variances."""
    values = normal(12, 4) + np.arange(12)[:, None]
    between, within = values.mean(axis=1).var(), values.var(axis=1).mean()
    expected = (between + within / 4) / 12
    assert resampled_means(values).var() == pytest.approx(expected, rel=0.05)


def test_resamples_of_two_levels_have_the_three_possible_means() -> None:
    means = resampled_means(np.array([[0.0], [10.0]]))
    assert len(means) == RESAMPLES
    assert set(means) == {0.0, 5.0, 10.0}
    assert np.mean(means == 5.0) == pytest.approx(0.5, abs=0.02)


def test_episodes_within_a_level_are_resampled() -> None:
    assert set(resampled_means(np.array([[0.0, 4.0], [0.0, 4.0]]))) == {0.0, 1.0, 2.0, 3.0, 4.0}


def test_equal_returns_give_zero_width_and_one_level_no_interval() -> None:
    assert mean_interval(np.full((5, 3), 7.0)) == (7.0, 7.0)
    assert mean_interval(np.array([[1.0, 2.0]])) is None
    assert difference_interval(np.ones((2, 1)), np.ones((1, 1))) is None


def test_interval_is_repeatable_and_differences_use_separate_resamples() -> None:
    values = normal(30, 2)
    assert mean_interval(values) == mean_interval(values.copy())
    low, high = difference_interval(values, values)  # type: ignore[misc]
    standard_error = np.sqrt(2 * resampled_means(values).var())
    assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.06)  # not 0, as with the same resamples
    assert low < 0 < high


def test_interval_covers_the_true_mean_at_about_its_stated_rate() -> None:
    hits = sum(low <= 5.0 <= high for low, high in (mean_interval(normal(40, 1, seed)) for seed in range(200)))  # type: ignore[misc]
    assert 0.88 * 200 <= hits <= 0.99 * 200


def test_uneven_numbers_of_episodes_are_refused() -> None:
    with pytest.raises(ValueError, match="same number of episodes"):
        matrix([[1.0, 2.0], [3.0]])
