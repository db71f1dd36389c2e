import io

from rich.console import Console

from evaluator.output.text import make_table


def test_widest_table_of_scores_fits_into_80_columns() -> None:
    columns = ["split", "levels", "episodes", "mean", "95 % interval", "normalized", "success", "time-outs"]
    widest = ["validation", "20000", "200000", "-10.57", "-10.57 to 12.39", "-10.06", "100%", "100%"]
    stream = io.StringIO()
    Console(file=stream, width=80).print(make_table(columns, [widest]))
    lines = stream.getvalue().splitlines()
    assert lines[0].split() == " ".join(columns).split()
    assert lines[2].split() == " ".join(widest).split()


def test_folded_column_continues_on_the_next_line_and_numbers_are_not_cut() -> None:
    stream = io.StringIO()
    Console(file=stream, width=40).print(make_table(["name", "runs"], [["n" * 60, "123456"]], ["name"], ["name"]))
    lines = stream.getvalue().splitlines()
    assert "123456" in lines[2] and lines[2].count("n") + lines[3].count("n") == 60
