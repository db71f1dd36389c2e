"""The tables of docs/results/published follow from the runs beside them and from OpenAI's logs."""

import json
import re
import statistics
from pathlib import Path

import pytest

from evaluator.studies.runs import find_runs
from evaluator.studies.selection import add_published, select
from evaluator.studies.summary import summarize
from tests.conftest import PROJECT

RESULTS = PROJECT / "docs" / "results" / "published"
PAGE = (RESULTS / "README.md").read_text()
PUBLISHED = json.loads((PROJECT / "evaluator" / "output" / "published.json").read_text())["easy"]
COLUMNS = (250_000, 500_000, 1_000_000)
T_TWO_DEGREES = 4.302653  # 97.5 % point of Student's t
RUNS = sorted(RESULTS.glob("*/default/seed-0"))


def number(text: str) -> float:
    return float(text.replace("−", "-"))


def tables() -> tuple[list[list[str]], list[list[str]]]:
    """The cells of the table of all games, and of the table of those outside."""
    lines = [line.strip("|") for line in PAGE.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [row for row in rows if len(row) == 9][1:], [row for row in rows if len(row) == 4][1:]


def published(game: str, kind: str, frames: int) -> list[float]:
    return sorted(PUBLISHED["games"][game][kind][PUBLISHED["frames"].index(frames)])


def training(run: Path, frames: int) -> float | None:
    """The mean of the last ten updates up to `frames`; None if no episode could have ended in any."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    returns = [row["episode_return"] for row in rows if row["frames"] <= frames][-10:]
    counted = [one for one in returns if one is not None]
    return statistics.fmean(counted) if counted else None


def outcome(own: float, theirs: list[float]) -> str:
    return "below" if own < theirs[0] else "above" if own > theirs[-1] else "inside"


def games() -> list[str]:
    return [run.parts[-3] for run in RUNS]


def test_each_run_has_one_row() -> None:
    assert sorted(row[0] for row in tables()[0]) == games()


@pytest.mark.parametrize("run", RUNS, ids=games())
def test_row_of_a_game_has_the_numbers_of_its_files(run: Path) -> None:
    game = run.parts[-3]
    (row,) = (row for row in tables()[0] if row[0] == game)
    for frames, own, theirs in zip(COLUMNS, row[1:7:2], row[2:7:2], strict=True):
        computed = training(run, frames)
        assert own == ("-" if computed is None else f"{computed:.2f}".replace("-", "−"))
        values = published(game, "train", frames)
        assert [number(value) for value in theirs.split(" to ")] == [values[0], values[-1]]
    if (run / "all_levels.json").exists():
        score = json.loads((run / "all_levels.json").read_text())["all"]
        low, high = score["interval"]
        assert row[7] == f"{score['mean']:.2f} [{low:.2f}, {high:.2f}]"
    else:
        assert row[7] == "not scored"
    values = published(game, "test", 1_000_000)
    assert [number(value) for value in row[8].split(" to ")] == [values[0], values[-1]]


def test_counts_and_the_table_of_those_outside_follow_from_the_rows() -> None:
    counts, outside = {"inside": 0, "below": 0, "above": 0}, {}
    for row in tables()[0]:
        game, cells = row[0], row[1:8:2]
        for kind, frames, cell in zip(("train",) * 3 + ("test",), (*COLUMNS, 1_000_000), cells, strict=True):
            if cell in ("-", "not scored"):
                continue
            own, theirs = number(cell.split(" ")[0]), published(game, kind, frames)
            counts[outcome(own, theirs)] += 1
            if frames == 1_000_000 and outcome(own, theirs) != "inside":
                half = T_TWO_DEGREES * statistics.stdev(theirs) * (4 / 3) ** 0.5
                name = f"{game}, {'training' if kind == 'train' else 'all levels'}"
                middle = statistics.fmean(theirs)
                outside[name] = [own, *theirs, round(middle - half, 2), round(middle + half, 2)]
    total = sum(counts.values())
    said = re.search(r"Of the (\d+) comparisons in\s+the table (\d+) are inside, (\d+) below and (\d+) above", PAGE)
    assert said is not None and [int(one) for one in said.groups()] == [total, *counts.values()]
    listed = {
        name: [number(own), *map(number, theirs.split(", ")), *map(number, predicted.split(" to "))]
        for name, own, theirs, predicted in tables()[1]
    }
    assert listed == outside
    assert all(low <= own <= high for own, *_, low, high in outside.values())


def test_numbers_over_games_are_those_of_aggregate() -> None:
    selection = select(find_runs([RESULTS])[0], "train", None, require_equal_evaluations=True)
    add_published(selection)
    own, theirs = (summarize(selection, "openai")["variants"][name] for name in selection.scores)

    def text(statistic: str) -> str:
        number, interval = theirs[statistic]["value"], theirs[statistic]["interval"]
        return f"{number:.3f} [{', '.join(f'{end:.3f}' for end in interval)}]".replace("0.", ".")

    iqm, mean = (f"{own[statistic]['value']:.3f}".removeprefix("0") for statistic in ("iqm", "mean"))
    sentence = f"at 1M is {iqm} here and {text('iqm')} there, the mean {mean} and {text('mean')} (`aggregate`"
    assert sentence in " ".join(PAGE.split())
