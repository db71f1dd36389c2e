"""What all command lines share: one-line errors with exit code 2, and argparse types for numbers."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

from common.games import MAX_LEVEL_SEED

USAGE_EXIT_CODE = 2

Number = TypeVar("Number", int, float)


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is one line for them to read."""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `PROG: message` on stderr, without the usage text."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message.removeprefix('argument ')}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)


def number_type(
    parse: Callable[[str], Number], kind: str, low: float | None = None, high: float | None = None
) -> Callable[[str], Number]:
    """An argparse type for numbers from `low` to `high`, both included; `high` needs a `low`.

    Its errors read `expected a whole number from 0 to 9, got '12'`.
    """
    bounds = "" if low is None else f" of at least {low}" if high is None else f" from {low} to {high}"

    def read(text: str) -> Number:
        try:
            value = parse(text)
            is_valid = (low is None or value >= low) and (high is None or value <= high)
        except ValueError:
            is_valid = False
        if not is_valid:
            raise argparse.ArgumentTypeError(f"expected {kind}{bounds}, got {text!r}")
        return value

    return read


def parse_whole_number(text: str) -> int:
    """An int, also written 10e6 or 200_000; ValueError for anything else."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():  # also true for nan and inf
            raise
        return int(number)


number = number_type(float, "a number")
seconds = number_type(float, "a number of seconds", 0.1, 86_400)
whole_number = number_type(parse_whole_number, "a whole number")
at_least_one = number_type(parse_whole_number, "a whole number", 1)
level_seed = number_type(parse_whole_number, "a whole number", 0, MAX_LEVEL_SEED - 1)
