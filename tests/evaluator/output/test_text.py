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
