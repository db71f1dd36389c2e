"""Tables in the terminal."""

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
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
    """A plain table; the columns named in `left` are left-aligned text, all others right-aligned numbers.

    If the table is too wide, text continues on the next line, and so do numbers in `folded` columns, between words;
    text in `folded` columns also within words. Nothing is cut: `min_width` of every column is what it needs.
    """
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)  # so that the widest table fits into 80 columns
    for index, column in enumerate(columns):
        cells = [column, *(row[index] for row in rows)]
        is_text, is_folded = column in left, column in folded
        if is_text and is_folded:
            unbroken = [column]
        else:
            unbroken = " ".join(cells).split() if is_text or is_folded else cells
        table.add_column(
            column,
            justify="left" if is_text else "right",
            no_wrap=not (is_text or is_folded),
            overflow="fold",
            min_width=max(map(cell_len, unbroken), default=0),
        )
    for row in rows:
        table.add_row(*row)
    return table


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[str] = ("split",),
    folded: Sequence[str] = (),
) -> None:
    """Prints `make_table` between two empty lines; a terminal that is too narrow wraps the lines itself."""
    console = make_console(width=None if sys.stdout.isatty() else 120)
    table = make_table(columns, rows, left, folded)
    console.width = max(console.width, sum(column.min_width or 0 for column in table.columns) + len(columns) - 1)
    console.print()
    console.print(table, crop=False)
    console.print()
