import argparse
from typing import Any

import pytest

from common.cli import (
    USAGE_EXIT_CODE,
    OneLineParser,
    UsageError,
    at_least_one,
    level_seed,
    number,
    seconds,
    whole_number,
)
from common.config import ConfigError


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole_number, "-3", -3),
        (whole_number, "10e6", 10_000_000),
        (whole_number, "200_000", 200_000),
        (whole_number, "2.0", 2),
        (at_least_one, "1", 1),
        (level_seed, "0", 0),
        (level_seed, "2147483646", 2147483646),
        (number, "-0.5", -0.5),
        (seconds, "0.1", 0.1),
        (seconds, "86400", 86400.0),
    ],
)
def test_number_is_read(read: Any, text: str, value: float) -> None:
    assert read(text) == value and type(read(text)) is type(value)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (whole_number, "2.5", "expected a whole number, got '2.5'"),
        (whole_number, "", "expected a whole number, got ''"),
        (whole_number, "nan", "expected a whole number, got 'nan'"),
        (whole_number, "1e999", "expected a whole number, got '1e999'"),
        (at_least_one, "0", "expected a whole number of at least 1, got '0'"),
        (level_seed, "x", "expected a whole number from 0 to 2147483646, got 'x'"),
        (level_seed, "2147483647", "expected a whole number from 0 to 2147483646, got '2147483647'"),
        (number, "much", "expected a number, got 'much'"),
        (seconds, "0", "expected a number of seconds from 0.1 to 86400, got '0'"),
        (seconds, "nan", "expected a number of seconds from 0.1 to 86400, got 'nan'"),
        (seconds, "inf", "expected a number of seconds from 0.1 to 86400, got 'inf'"),
    ],
)
def test_wrong_number_is_named_with_what_was_expected(read: Any, text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        read(text)
    assert str(raised.value) == message


def test_parser_reports_an_error_in_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="program")
    parser.add_argument("--seed", type=level_seed)
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--seed", "x"])
    assert raised.value.code == USAGE_EXIT_CODE == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "program: --seed: expected a whole number from 0 to 2147483646, got 'x'\n"


def test_config_error_is_a_usage_error() -> None:
    assert issubclass(ConfigError, UsageError)
