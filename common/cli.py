"""What all command lines share: one-line errors with exit code 2 that say what to do, and argparse types."""

import argparse
import contextlib
import difflib
import importlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from common.games import MAX_LEVEL_SEED

USAGE_EXIT_CODE = 2
# Inherited variables that can keep Python's libraries from being imported begin with these.
_VARIABLES_OF_LIBRARIES = ("PYTHONPATH", "PYTHONHOME", "LD_", "TORCH_", "PYTORCH_", "OMP_", "KMP_", "MKL_")

Number = TypeVar("Number", int, float)


class UsageError(ValueError):
    """The user asked for something that cannot be done; the message is one line for them to read."""


def require_current_directory() -> None:
    """Raises UsageError if the current directory was deleted; libraries then end the process without saying why."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("the current directory no longer exists; change to another one") from error


def import_module(name: str) -> ModuleType:
    """Imports a module that needs large libraries.

    Raises:
        UsageError: one of them cannot be imported; names the inherited variables that may be the cause.
        Exception: any other error, if no such variable is set: a bug, whose traceback is needed.
    """
    try:
        with _ended_by_ctrl_c():
            return importlib.import_module(name)
    except Exception as error:  # libraries fail in many ways
        if (reason := _library_failure(error)) is None:
            raise
        raise UsageError(reason) from error


@contextlib.contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Ctrl-C ends the process immediately. A KeyboardInterrupt would come out of a library's import as any error."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _library_failure(error: Exception) -> str | None:
    """Why an import failed, in one line, if a library is missing or an inherited variable may be the cause."""
    suspects = sorted(name for name in os.environ if name.startswith(_VARIABLES_OF_LIBRARIES))
    if not suspects and not isinstance(error, ImportError):
        return None
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if suspects:
        return f"libraries cannot be imported: {reason}; unset any of these that you do not need: {', '.join(suspects)}"
    return f"libraries cannot be imported: {reason}; install them (make setup, or pip install -c constraints.txt .)"


def closest(word: str, choices: Sequence[str]) -> str | None:
    """The choice that `word` is probably a misspelling of, if any."""
    return next(iter(difflib.get_close_matches(word, choices, n=1, cutoff=0.7)), None)


def suggestion(word: str, choices: Sequence[str]) -> str:
    """What to type instead of `word`: `did you mean 'easy'?` or `choose from lab, easy, hard`."""
    near = closest(word, choices)
    return f"choose from {', '.join(choices)}" if near is None else f"did you mean {near!r}?"


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are `PROG: message` on stderr, without the usage text, and say what to do.

    The usage text shows `prog` as it is typed; errors leave out its `python -m`.
    """

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog.removeprefix('python -m ')}: {message.removeprefix('argument ')}", file=sys.stderr)
        sys.exit(USAGE_EXIT_CODE)

    # argparse's stub declares three overloads; this signature accepts all of them.
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            word = unknown[0].split("=")[0]
            if not word.startswith("-"):
                self.error(f"unexpected argument {word!r}; --help lists what is expected")
            self.error(f"{word}: unknown flag; {self.remedy(word)}")
        return options

    def remedy(self, unknown: str) -> str:
        """What to type instead of an unknown flag."""
        near = closest(unknown, self.flags())
        return "--help lists the flags" if near is None else f"did you mean {near}?"

    def flags(self) -> list[str]:
        """Every flag, also those of the commands."""
        flags = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags += [name for parser in action.choices.values() for name in parser._option_string_actions]
        return flags

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(action, f"unknown value {str(value)!r}; {suggestion(str(value), choices)}")


def directory_path(text: str) -> Path:
    """An argparse type for the path of a run. Ray and TensorBoard accept only what can be written in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(
            f"expected a path in UTF-8, got {text!r}: rename it, or if it is UTF-8, unset PYTHONUTF8 and LC_ALL"
        ) from error
    if not text:  # an unset variable; it would be the current directory
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def cluster_address(text: str) -> str:
    """An argparse type for the address of a Ray cluster; only an empty one is refused here."""
    if not text:  # an unset variable; it would be no cluster, or that of RAY_ADDRESS
        raise argparse.ArgumentTypeError("expected auto or HOST:PORT, got an empty text; leave it out for a local Ray")
    return text


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


# Suffixes that whole numbers may have, as exponents.
_SUFFIXES = {"k": "e3", "K": "e3", "M": "e6"}


def parse_whole_number(text: str) -> int:
    """An int, also written 10e6, 200_000, 500k or 1.5M; ValueError for anything else."""
    if (exponent := _SUFFIXES.get(text[-1:])) is not None:
        if not text[:-1].replace(".", "").isdigit():  # refuses 1e3k
            raise ValueError(f"{text}: digits must come before the suffix")
        text = text[:-1] + exponent
    if not math.isfinite(float(text)):  # refuses 1e999, and 2__0, which Decimal accepts
        raise ValueError(f"{text} is not finite")
    try:
        value = Decimal(text)  # exact: 4.00000000000000000001 is a whole number as a float
    except InvalidOperation as error:
        raise ValueError(f"{text} has too large an exponent") from error
    if value != value.to_integral_value():
        raise ValueError(f"{text} has a fraction")
    return int(value)


number = number_type(float, "a number")
seconds = number_type(float, "a number of seconds", 0.1, 86_400)
whole_number = number_type(parse_whole_number, "a whole number")
at_least_one = number_type(parse_whole_number, "a whole number", 1)
level_seed = number_type(parse_whole_number, "a whole number", 0, MAX_LEVEL_SEED - 1)
