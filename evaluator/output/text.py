"""Tables in the terminal."""

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import JustifyMethod
from rich.table import Table

from common.output import make_console
from common.storage.checkpoints import has_other_weights
from common.storage.run_directory import RunDirectory


def other_weights_warning(run: RunDirectory) -> str | None:
    """One line about rows of evaluations.jsonl that are not about this run's checkpoints; None if there are none."""
    rows = [row for row in run.read_evaluations() if has_other_weights(row, run.checkpoints)]
    if not rows:
        return None
    versions = ", ".join(str(row["policy_version"]) for row in rows)
    return f"{run.evaluations}: rows with policy_version {versions} do not match the weights of their checkpoints"


def make_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = ("split",),
    folded: Sequence[str] = (),
) -> Table:
    """A plain table; the columns named in `left` are left-aligned, all others right-aligned.

    Long text in `folded` columns continues on the next line; elsewhere it is cut if the table is too wide.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)  # so that the widest table fits into 80 columns
    for column in columns:
        justify: JustifyMethod = "left" if column in left else "right"
        table.add_column(column, justify=justify, no_wrap=column not in folded, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = ("split",),
    folded: Sequence[str] = (),
) -> None:
    """Prints `make_table` between two empty lines."""
    console = make_console(width=None if sys.stdout.isatty() else 120)
    console.print()
    console.print(make_table(columns, rows, left, folded))
    console.print()
