"""Chooses the best checkpoint by its validation score, never by its test score."""

from collections.abc import Iterable
from typing import Any


def best_row(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation whose validation interval has the highest lower end, the earliest if tied; None without any.

    The untrained policy is not a candidate. Rows without an interval come after all rows with one, and are ranked by
    their means.
    """
    trained = (row for row in rows if "validation" in row and row["policy_version"] > 0)
    scored = sorted(trained, key=lambda row: row["policy_version"])
    return max(scored, key=_lower_end, default=None)


def _lower_end(row: dict[str, Any]) -> tuple[bool, float]:
    score = row["validation"]
    return (True, score["interval"][0]) if score.get("interval") else (False, score["mean"])
