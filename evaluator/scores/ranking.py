"""Which checkpoint is best: by validation levels, never by test levels."""

from collections.abc import Iterable
from typing import Any


def best_row(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The evaluation whose validation interval has the highest lower end, the earliest of equals; None without one."""
    scored = sorted((row for row in rows if "validation" in row), key=lambda row: row["policy_version"])
    return max(scored, key=_surely_at_least, default=None)


def _surely_at_least(row: dict[str, Any]) -> float:
    score = row["validation"]
    return score["interval"][0] if score["interval"] else score["mean"]
