from typing import Any

from evaluator.scores.ranking import best_row


def row(version: int, mean: float, interval: list[float] | None) -> dict[str, Any]:
    return {"policy_version": version, "validation": {"mean": mean, "interval": interval}}


def test_best_has_the_highest_lower_end_and_the_earliest_wins_a_tie() -> None:
    rows = [row(3, 6.0, [4.0, 8.0]), row(2, 7.0, [4.0, 9.0]), row(1, 9.0, [3.0, 9.5])]
    best = best_row(rows)
    assert best is not None and best["policy_version"] == 2
    assert best_row([{"policy_version": 0}]) is None


def test_untrained_policy_is_never_the_best() -> None:
    """With `easy` and `hard` it is scored on validation levels, too, and wins a tie as the earliest."""
    best = best_row([row(0, 0.0, [0.0, 1.9]), row(10, 0.0, [0.0, 1.9])])
    assert best is not None and best["policy_version"] == 10
    assert best_row([row(0, 5.0, [4.0, 6.0])]) is None


def test_row_without_interval_is_not_better_than_one_with_an_interval() -> None:
    """Its mean would be compared with the lower ends of others."""
    best = best_row([row(1, 5.0, None), row(2, 6.0, [4.0, 8.0])])
    assert best is not None and best["policy_version"] == 2
    best = best_row([row(1, 5.0, None), row(2, 6.0, None)])
    assert best is not None and best["policy_version"] == 2
