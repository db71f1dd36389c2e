"""What benchmarks and drills share: their command line, tables, timing and the description of the machine.

It does not import torch, which would cost each process that imports it several hundred MB.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common import output
from common.cli import OneLineParser

Row = Mapping[str, Any]
# A format string that is filled with a row's values, or a function of the row.
Column = str | Callable[[Row], str]


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the description and adds each flag's default to its help."""


def make_parser(description: str | None) -> OneLineParser:
    """A parser whose description is a module's docstring."""
    return OneLineParser(description=description, formatter_class=_HelpFormatter)


def make_console(stderr: bool = True) -> Console:
    """A console that is wide enough for the tables: without a terminal rich assumes 80 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return output.make_console(width=None if stream.isatty() else 180, stderr=stderr)


def show_table(console: Console, title: str | None, rows: Iterable[Row], columns: Mapping[str, Column]) -> None:
    """Prints a table with one line for each row. "-" stands for a value that is missing or None.

    Args:
        columns: what each column shows, by heading; columns that begin with {name!s} are text and aligned left.
    """
    table = Table(title=title)
    for heading, column in columns.items():
        is_text = isinstance(column, str) and "!s}" in column
        table.add_column(heading, justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(escape(_cell(column, row)) for column in columns.values()))
    console.print(table)


def _cell(column: Column, row: Row) -> str:
    try:
        return column.format_map(row) if isinstance(column, str) else column(row)
    except (KeyError, TypeError):
        return "-"


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """The median time of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work per second; `work` does some and returns how much. The first call is not counted."""
    work()
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
    return done / elapsed


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """The processor, the number of cores that this process may use, and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": available_cores(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }
