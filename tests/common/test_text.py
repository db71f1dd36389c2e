import errno
import os

import pytest

from common.text import (
    format_cause,
    format_count,
    format_duration,
    format_interval,
    format_number,
    format_ranges,
    format_score,
)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3720, "1 h 02 min"),
        (90_000, "25 h 00 min"),
    ],
)
def test_duration_is_shown_in_its_two_largest_units(duration: float, text: str) -> None:
    assert format_duration(duration) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 CPUs"),
        (1, "1 CPU"),
        (1.0, "1 CPU"),
        (2, "2 CPUs"),
        (4 / 3, "1.33333 CPUs"),
        (1_234_567, "1,234,567 CPUs"),
    ],
)
def test_noun_agrees_with_its_number(number: float, text: str) -> None:
    assert format_count(number, "CPU") == text


def test_score_is_shown_with_its_interval_where_it_has_one() -> None:
    assert format_score({"mean": 7.826, "interval": [6.5, 9.0]}) == "7.83 [6.50, 9.00]"
    assert format_score({"mean": 7.826, "interval": None}) == "7.83"


def test_interval_is_shown_from_low_to_high() -> None:
    assert format_interval((6.5, 9.0)) == "6.50 to 9.00"
    assert format_interval([-1.0, 0.25], "+.1f") == "-1.0 to +0.2"


def test_missing_values_are_shown_as_a_dash() -> None:
    assert format_score(None) == format_interval(None) == format_number(None) == "-"
    assert format_number(2.5) == "2.50" and format_number(3, "d") == "3"


@pytest.mark.parametrize(
    ("numbers", "text"), [([3], "3"), ([2, 3], "2, 3"), ([0, 2, 3, 4, 7], "0, 2 to 4, 7"), ([], "")]
)
def test_consecutive_numbers_are_shown_as_a_range(numbers: list[int], text: str) -> None:
    assert format_ranges(numbers) == text


def test_cause_of_a_failure_does_not_repeat_the_path():
    error = OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "a/b")
    assert format_cause(error) == "Not a directory"
    assert format_cause(OSError("no number")) == "no number"
    assert format_cause(ValueError("wrong")) == "wrong"
