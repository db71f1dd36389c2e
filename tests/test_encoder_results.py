"""The tables of docs/results/encoders follow from the runs beside them."""

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from common.policy_network import num_parameters
from common.storage.run_directory import RunDirectory
from evaluator.studies.runs import find_runs
from evaluator.studies.selection import select
from evaluator.studies.summary import summarize
from tests.conftest import PROJECT

RESULTS = PROJECT / "docs" / "results" / "encoders"
PAGE = (RESULTS / "README.md").read_text()
# Printed when the run was scored, and not saved.
NOT_SAVED = {"impoola, seed 0": "6.14 [5.83, 6.44]"}


def directory(column: str) -> Path:
    encoder, seed = column.split(", seed ")
    return RESULTS / "coinrun" / encoder / f"seed-{seed}"


def tables() -> list[dict[str, list[str]]]:
    """For each table its rows by their first cell; the row of the header has the key ''."""
    found: list[dict[str, list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        found.append({"": rows[0][1:], **{row[0]: row[1:] for row in rows[2:]}})
    return found


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def shown(score: dict[str, Any]) -> str:
    interval = score["interval"]
    return f"{score['mean']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


COLUMNS = tables()[0][""]


def test_every_run_has_a_column() -> None:
    assert sorted(map(directory, COLUMNS)) == sorted((RESULTS / "coinrun").glob("*/seed-*"))


@pytest.mark.parametrize("column", COLUMNS)
def test_column_of_a_run_has_the_numbers_of_its_files(column: str) -> None:
    run, table = directory(column), tables()[0]
    cells = {row: cells[COLUMNS.index(column)] for row, cells in table.items()}
    assert cells["parameters"] == f"{num_parameters(RunDirectory(run).read_config().network):,}"
    returns = [row["episode_return"] for row in rows_of(run, "metrics.jsonl") if row["frames"] <= 1_000_000][-10:]
    assert cells["training episodes, ten updates up to 1M frames"] == f"{statistics.fmean(returns):.2f}"
    last = rows_of(run, "evaluations.jsonl")[-1]
    assert last["frames"] == 1_015_808
    assert cells["200 training levels"] == shown(last["train"])
    assert cells["200 validation levels"] == shown(last["validation"])
    saved = run / "all_levels.json"
    expected = shown(json.loads(saved.read_text())["all"]) if saved.exists() else NOT_SAVED.get(column, "not scored")
    assert cells["1,000 levels drawn from all (`--split all`)"] == expected


@pytest.mark.parametrize("column", COLUMNS)
def test_scores_against_frames_are_those_of_the_files(column: str) -> None:
    _, table = tables()
    rows = [row for row in rows_of(directory(column), "evaluations.jsonl") if row["frames"]]
    # A stop adds a checkpoint between the regular ones of every tenth update.
    rows = [row for row in rows if row["policy_version"] % 10 == 0 or row is rows[-1]]
    place = COLUMNS.index(column)
    own = {frames: cells[place] for frames, cells in table.items() if frames and cells[place] != "-"}
    assert own == {f"{row['frames']:,}": f"{row['train']['mean']:.2f}, {row['validation']['mean']:.2f}" for row in rows}


@pytest.mark.parametrize(("split", "phrase"), [("train", "On training levels"), ("validation", "On validation levels")])
def test_paired_differences_are_those_of_aggregate(split: str, phrase: str) -> None:
    """Written as `On training levels impoola is .240 [.148, .332] below impala`."""
    selection = select(find_runs([RESULTS])[0], split, None, require_equal_evaluations=True)
    (pair,) = summarize(selection, "openai")["comparisons"]
    assert (pair["first"], pair["second"]) == ("encoder=impala", "encoder=impoola")
    difference = pair["mean_difference"]
    low, high = (-end for end in reversed(difference["interval"]))
    text = f"{-difference['value']:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".").replace("-", "−")
    assert f"{phrase} impoola is {text} below impala" in " ".join(PAGE.split())
