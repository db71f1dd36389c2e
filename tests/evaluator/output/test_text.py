import io

import pytest
from rich.console import Console

from evaluator.output import text
from evaluator.output.text import make_table


def test_widest_table_of_scores_fits_into_80_columns() -> None:
    columns = ["split", "levels", "episodes", "mean", "95 % interval", "normalized", "success", "time-outs"]
    widest = ["validation", "20000", "200000", "-10.57", "-10.57 to 12.39", "-10.06", "100%", "100%"]
    stream = io.StringIO()
    Console(file=stream, width=80).print(make_table(columns, [widest]))
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == " ".join(columns).split()
    assert lines[2].split() == " ".join(widest).split()


COLUMNS = ("split", "level", "frames", "return", "reason")
ROW = ("validation", "2147483640", "1,234,567 to 2,345,678", "-10.57", "has the layout of training level 2147483641")


@pytest.mark.parametrize("width", [80, 60, 40, 20])
def test_narrow_terminal_wraps_text_and_cuts_no_number(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(text, "make_console", lambda width=None, columns=width: Console(width=columns))
    text.print_table(COLUMNS, [ROW], left=("split", "reason"), folded=("frames",))
    words = capsys.readouterr().out.split()
    assert {word for cell in (*COLUMNS, *ROW) for word in cell.split()} <= set(words)


def test_folded_column_continues_on_the_next_line_and_numbers_are_not_cut() -> None:
    stream = io.StringIO()
    Console(file=stream, width=40).print(make_table(["name", "runs"], [["n" * 60, "123456"]], ["name"], ["name"]))
    lines = stream.getvalue().splitlines()
    assert "123456" in lines[2] and lines[2].count("n") + lines[3].count("n") == 60
