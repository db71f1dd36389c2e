import numpy as np
import pytest

from evaluator.scores.comparison import Comparison, compare, enough_episodes, sentence
from evaluator.scores.statistics import Episode


def episodes(returns: np.ndarray) -> list[Episode]:
    return [
        Episode("validation", level, number, float(value), 10, False, False, level)
        for level, row in enumerate(returns)
        for number, value in enumerate(row)
    ]


def noise(levels: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).normal(0.0, 1.0, (levels, count))


def test_pairing_removes_differences_between_levels() -> None:
    levels = 100 * noise(50, 3)  # the same hard and easy levels for both
    result = compare(episodes(levels), episodes(levels + 0.5 + 0.1 * noise(50, 3, 1)))
    assert result.difference == pytest.approx(0.5, abs=0.05)
    assert result.interval is not None and 0.4 < result.interval[0] < result.interval[1] < 0.6
    assert (result.levels, result.episodes_per_level) == (50, 3)
    assert sentence(result, "held-out levels").startswith("B is better on held-out levels by 0.5")
    swapped = compare(episodes(levels + 0.5), episodes(levels))
    assert sentence(swapped, "held-out levels") == "A is better on held-out levels by 0.50 [0.50, 0.50]"


def test_inconclusive_result_names_the_episodes_needed() -> None:
    result = compare(episodes(np.zeros((20, 2))), episodes(np.tile([1.2, -0.8], (20, 1))))
    assert result.interval is not None and result.interval[0] < 0 < result.interval[1]
    # within = 2, L = 20: 2 / (20 (0.2 / 1.96)^2) = 9.6
    assert "inconclusive; about 10 episodes per level would be enough" in sentence(result, "held-out levels")


def test_episodes_needed_match_the_closed_form() -> None:
    # Differences 1 +- 3 within each level, no variance between levels: within = 18, L = 8.
    pairs = np.tile([4.0, -2.0], (8, 1))
    assert enough_episodes(pairs) == int(np.ceil(18 / (8 * (1 / 1.96) ** 2)))
    # Levels that differ by more than the mean do not get clearer by more episodes.
    assert enough_episodes(np.array([[10.0, 10.0], [-9.0, -9.0], [10.0, 10.0], [-9.0, -9.0]])) is None
    assert enough_episodes(np.zeros((4, 2))) is None


def test_episodes_needed_are_enough() -> None:
    few = noise(20, 4) + 0.25
    needed = enough_episodes(few)
    assert needed is not None
    told = [compare(episodes(np.zeros((20, 2 * needed))), episodes(noise(20, 2 * needed, s) + 0.25)) for s in range(10)]
    assert sum(result.interval is not None and result.interval[0] > 0 for result in told) >= 8


def test_equal_policies_show_no_difference() -> None:
    same = noise(10, 2)
    result = compare(episodes(same), episodes(same))
    assert (result.difference, result.interval, result.enough_episodes) == (0.0, (0.0, 0.0), None)
    assert "no difference was seen" in sentence(result, "training levels")


def test_single_level_and_too_few_levels_are_inconclusive() -> None:
    assert "at least two levels" in sentence(Comparison(1.0, None, 1, 5, None), "held-out levels")
    assert "more levels might" in sentence(Comparison(0.1, (-1.0, 1.2), 20, 5, None), "held-out levels")


def test_different_episodes_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same episodes of the same levels"):
        compare(episodes(noise(3, 2)), episodes(noise(3, 1)))
