"""How numbers and causes are shown to people: the same in the live display, tables, plain lines and the HTML report."""

from collections.abc import Mapping, Sequence
from typing import Any

MISSING = "-"


def format_duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s` or `1 h 02 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_count(number: float, noun: str) -> str:
    """`1 run`, `2 runs`, `1,024 runs`, `1.5 CPUs`; `noun` is a singular whose plural adds an s."""
    amount = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{amount} {noun}" if number == 1 else f"{amount} {noun}s"


def format_cause(error: Exception) -> str:
    """Why something failed, for a line that already names the file: an OSError's text would repeat its path."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def format_interval(interval: Sequence[float] | None, spec: str = ".2f") -> str:
    """`6.50 to 9.00` with both ends in the format `spec`; `-` for None."""
    return MISSING if interval is None else f"{interval[0]:{spec}} to {interval[1]:{spec}}"


def format_score(score: Mapping[str, Any] | None) -> str:
    """`7.83 [6.50, 9.00]` from a split's `mean` and 95 % `interval`, `7.83` without an interval; `-` for None."""
    if score is None:
        return MISSING
    interval = score.get("interval")
    return f"{score['mean']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def format_number(value: float | None, spec: str = ".2f") -> str:
    """`value` in the format `spec`; `-` for None."""
    return MISSING if value is None else format(value, spec)


def format_ranges(numbers: Sequence[int]) -> str:
    """`2 to 4, 7, 8` for the ascending 2, 3, 4, 7, 8."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run) for run in runs)
    return ", ".join(part for run in parts for part in run)
