import random

import numpy as np
import pytest

from common.games import Game
from evaluator.scores.comparison import Comparison, compare, enough_episodes, sentence
from evaluator.scores.statistics import Episode

STARPILOT, COINRUN = Game("starpilot", "easy"), Game("coinrun", "easy")  # any return; 0 or 10


def compared(first: np.ndarray, second: np.ndarray, game: Game = STARPILOT, whole: bool = False) -> Comparison:
    return compare(episodes(first), episodes(second), game, whole)


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
    result = compared(levels, levels + 0.5 + 0.1 * noise(50, 3, 1))
    assert result.difference == pytest.approx(0.5, abs=0.05)
    assert result.interval is not None and 0.4 < result.interval[0] < result.interval[1] < 0.6
    assert (result.levels, result.episodes_per_level) == (50, 3)
    assert sentence(result, "held-out levels").startswith("B is better on held-out levels by 0.5")
    low, high = result.interval
    swapped = compared(levels + 0.5 + 0.1 * noise(50, 3, 1), levels)
    expected = f"A is better on held-out levels by {result.difference:.2f} [{low:.2f}, {high:.2f}]"
    assert sentence(swapped, "held-out levels") == expected


@pytest.mark.parametrize("game", [COINRUN, STARPILOT])
def test_swapping_a_and_b_swaps_the_verdict(game: Game) -> None:
    generator = np.random.RandomState(0)
    unclear = np.array([[10.0, 10]] * 5 + [[10, 0]] * 2 + [[0, 0]] * 2 + [[-10, -10]])  # two levels are typical: 0, 10
    drawn = [generator.choice([-10.0, 0, 0, 10, 10], (generator.randint(4, 11), 2)) for _ in range(300)]
    opposite = {"A is better": "B is better", "B is better": "A is better"}
    verdicts = set()
    for pairs in [unclear, *drawn]:
        first, second = np.maximum(-pairs, 0), np.maximum(pairs, 0)
        result, swapped = compared(first, second, game), compared(second, first, game)
        assert (result.interval is None) == (swapped.interval is None), pairs
        if result.interval is not None and swapped.interval is not None:
            assert result.interval == (-swapped.interval[1], -swapped.interval[0]), pairs
        assert (result.no_interval, result.enough_episodes) == (swapped.no_interval, swapped.enough_episodes), pairs
        says, swapped_says = (sentence(each, "all levels")[:11] for each in (result, swapped))
        assert swapped_says == opposite.get(says, says), pairs
        verdicts |= {says, swapped_says}
    assert verdicts > opposite.keys()


def test_episodes_are_paired_by_level_and_number_in_any_order() -> None:
    returns = 100 * noise(50, 3)
    first, second = episodes(returns), episodes(returns + 0.5 + 0.1 * noise(50, 3, 1))
    expected = compare(first, second, STARPILOT, False)
    random.Random(0).shuffle(second)
    result = compare(first, second, STARPILOT, False)
    assert result == expected
    assert result.interval is not None and 0.4 < result.interval[0] < result.interval[1] < 0.6


def test_inconclusive_result_names_the_episodes_needed() -> None:
    result = compared(np.zeros((20, 2)), np.tile([1.2, -0.8], (20, 1)), whole=True)
    assert result.interval is not None and result.interval[0] < 0 < result.interval[1]
    # within = 2, L = 20: 2 / (20 (0.2 / 1.96)^2) = 9.6
    assert "inconclusive; about 10 episodes per level would be enough" in sentence(result, "held-out levels")


def test_episodes_needed_match_the_closed_form() -> None:
    # Differences 1 +- 3 within each of 8 levels: t sqrt(18 / (8 n)) < 1, with t of 8 (n - 1) degrees of freedom.
    pairs = np.tile([4.0, -2.0], (8, 1))
    assert enough_episodes(pairs, True, None) == 9
    # Levels that differ by more than the mean do not get clearer by more episodes.
    unequal = np.array([[10.5, 9.5], [-8.5, -9.5]] * 4) + 0.5 * noise(8, 2)
    assert enough_episodes(unequal, False, None) is None
    assert enough_episodes(unequal, True, None) is not None  # about these levels it does
    assert enough_episodes(np.zeros((4, 2)), False, None) is None


@pytest.mark.parametrize("whole", [False, True])
def test_episodes_needed_are_enough(whole: bool) -> None:
    few = compared(np.zeros((20, 4)), noise(20, 4) + 0.25, whole=whole)
    needed = few.enough_episodes
    assert needed is not None and needed > 4
    told = [compared(np.zeros((20, 2 * needed)), noise(20, 2 * needed, s) + 0.25, whole=whole) for s in range(10)]
    assert sum(result.interval is not None and result.interval[0] > 0 for result in told) >= 8


@pytest.mark.parametrize("episodes", [2, 6, 100])
def test_no_number_of_episodes_is_promised_where_levels_decide(episodes: int) -> None:
    """On 4 of 20 sampled levels B always wins: the interval is the same for any number of episodes."""
    pairs = np.zeros((20, episodes))
    pairs[:4] = 10
    sampled = compared(np.zeros_like(pairs), pairs, COINRUN)
    assert sampled.interval is not None and sampled.interval[0] < 0 and sampled.enough_episodes is None
    assert "1,000 episodes per level would not be enough, more levels might" in sentence(sampled, "validation levels")
    assert compared(np.zeros_like(pairs), pairs, COINRUN, whole=True).enough_episodes is not None


def test_one_episode_per_sampled_level_gives_the_least_number_needed() -> None:
    pairs = np.zeros((20, 1))
    pairs[:4] = 10
    result = compared(np.zeros_like(pairs), pairs, COINRUN)
    assert f"at least about {result.enough_episodes} episodes per level would be needed" in sentence(result, "all")


def test_training_levels_have_no_more_levels_to_play() -> None:
    pairs = 10 * noise(20, 3)
    result = compared(np.zeros_like(pairs), pairs - pairs.mean() + 0.05, whole=True)
    assert "inconclusive; more than 1,000 episodes per level would be needed" in sentence(result, "training levels")


def test_equal_policies_show_no_difference() -> None:
    same = 10.0 * (noise(10, 2) > 0)
    result = compared(same, same, COINRUN)
    assert (result.difference, result.enough_episodes) == (0.0, None)
    assert result.interval is not None and result.interval[0] == -result.interval[1] < 0  # equality is not certain
    assert "no difference was seen" in sentence(result, "training levels")
    unlimited = compared(same, same, STARPILOT)  # any difference might be seen next
    assert (unlimited.interval, unlimited.no_interval) == (None, "all values are equal")


def test_training_levels_need_two_episodes_each_and_one_level_is_enough() -> None:
    one_episode = compared(np.zeros((20, 1)), noise(20, 1), whole=True)
    assert (one_episode.interval, one_episode.about) == (None, "these levels")
    assert "no interval (one episode per level; two" in sentence(one_episode, "training levels")
    assert compared(np.zeros((1, 8)), noise(1, 8), whole=True).interval is not None


def test_single_level_and_too_few_levels_are_inconclusive() -> None:
    assert "no interval (one level; two" in sentence(compared(np.zeros((1, 5)), noise(1, 5)), "held-out levels")
    unclear = Comparison(0.1, (-1.0, 1.2), None, "all levels", 20, 5, None)
    assert "more levels might" in sentence(unclear, "held-out levels")


def test_different_episodes_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same episodes of the same levels"):
        compared(noise(3, 2), noise(3, 1))
