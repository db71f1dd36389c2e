"""Tables on the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table


def make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ("split",)) -> Table:
    """A plain table; columns named in `left` are flush left, the others, numbers, flush right."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)  # the widest of them fits into 80 columns
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = ("split",)) -> None:
    """`make_table`, printed."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:  # nothing to wrap for
        console = Console(highlight=False, width=120)
    console.print()
    console.print(make_table(columns, rows, left))
    console.print()
