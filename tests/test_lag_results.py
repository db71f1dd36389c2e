"""The tables of docs/results/lag follow from the runs beside them: Student's t by hand."""

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from evaluator.studies.runs import find_runs
from evaluator.studies.selection import select
from evaluator.studies.summary import summarize
from tests.conftest import PROJECT

RESULTS = PROJECT / "docs" / "results" / "lag"
PAGE = (RESULTS / "README.md").read_text()
SPLITS = {"training levels": "train", "test levels": "test", "validation levels": "validation"}
T_TWO_DEGREES = 4.302653  # 97.5 % point of Student's t


def tables() -> list[dict[str, dict[str, str]]]:
    """For each table its rows by their first cell, each with its cells by column."""
    found: list[dict[str, dict[str, str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines()]
        found.append({row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]})
    return found


SCORES, DIFFERENCES = tables()


def runs_of(variant: str) -> list[Path]:
    """The directories of `sync`, `sync (lag 0)` or `lag 4, standard`, by seed."""
    if variant.startswith("sync"):
        return sorted((RESULTS / "sync" / "coinrun" / "default").glob("seed-*"))
    lag, objective = variant.removeprefix("lag ").split(", ")
    return sorted((RESULTS / "overlap" / "coinrun" / f"max-policy-lag={lag}_objective={objective}").glob("seed-*"))


def rows_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def returns(variant: str, column: str) -> list[float]:
    """What a column is about, for each seed."""
    if column == "training episodes":
        last = [rows_of(run, "metrics.jsonl")[-5:] for run in runs_of(variant)]
        return [statistics.fmean(row["episode_return"] for row in rows) for rows in last]
    return [
        rows_of(run, "evaluations.jsonl")[-1][SPLITS[column.removeprefix("20 ")]]["mean"] for run in runs_of(variant)
    ]


def interval(values: list[float]) -> list[float]:
    """Mean and Student's 95 % interval of three values."""
    mean, half = statistics.fmean(values), T_TWO_DEGREES * statistics.stdev(values) / math.sqrt(3)
    return [mean, mean - half, mean + half]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d*\.\d+", cell)]


def pair_of(difference: str) -> tuple[str, str]:
    """The variants of `lag 1, standard, minus sync` or `lag 1, decoupled minus standard`."""
    if difference.endswith(", minus sync"):
        return difference.removesuffix(", minus sync"), "sync"
    lag, objectives = difference.split(", ")
    first, second = objectives.split(" minus ")
    return f"{lag}, {first}", f"{lag}, {second}"


def test_every_run_has_a_row() -> None:
    named = [run for variant in SCORES for run in runs_of(variant)]
    assert sorted(named) == sorted(path.parent for path in RESULTS.glob("*/coinrun/*/*/config.json"))
    assert all(len(runs_of(variant)) == 3 for variant in SCORES)


@pytest.mark.parametrize("variant", SCORES)
def test_settings_and_end_of_a_row_are_those_of_its_runs(variant: str) -> None:
    for run in runs_of(variant):
        settings = json.loads((run / "config.json").read_text())["settings"]
        lag, objective = ("0", "standard") if "sync" in variant else variant.removeprefix("lag ").split(", ")
        assert (settings["max_policy_lag"], settings["objective"]) == (int(lag), objective)
        last = rows_of(run, "evaluations.jsonl")[-1]
        assert (last["policy_version"], last["frames"]) == (19, 311_296)
        assert {last[split]["episodes"] for split in SPLITS.values()} == {200}


@pytest.mark.parametrize("variant", SCORES)
@pytest.mark.parametrize("column", [f"20 {name}" for name in SPLITS])
def test_scores_are_those_of_the_files(variant: str, column: str) -> None:
    assert numbers(SCORES[variant][column]) == pytest.approx(interval(returns(variant, column)), abs=0.0051)


@pytest.mark.parametrize("difference", DIFFERENCES)
@pytest.mark.parametrize("column", [*SPLITS, "training episodes"])
def test_differences_are_those_of_the_files(difference: str, column: str) -> None:
    first, second = pair_of(difference)
    if column == "training episodes" and first.startswith("lag 16"):
        assert DIFFERENCES[difference][column] == "-"
        return
    pairs = zip(returns(first, column), returns(second, column), strict=True)
    expected = interval([one - other for one, other in pairs])
    assert numbers(DIFFERENCES[difference][column]) == pytest.approx(expected, abs=0.0051)


def test_untrained_policy_collected_the_batches_that_the_page_says() -> None:
    for run in runs_of("lag 16, standard") + runs_of("lag 16, decoupled"):
        rows = rows_of(run, "metrics.jsonl")
        lags = [row["policy_lag"] for row in rows]
        assert lags == [min(version, 16) for version in range(19)]  # so updates 1 to 17 had version 0


def test_largest_importance_weights_and_untrained_scores_are_those_of_the_files() -> None:
    largest = {
        lag: max(
            row["max_importance_weight"]
            for run in runs_of(f"lag {lag}, decoupled")
            for row in rows_of(run, "metrics.jsonl")
        )
        for lag in (16, 4, 1)
    }
    said = re.search(r"importance weight was (\S+)\s+at lag 16, (\S+) at lag 4 and (\S+) at lag 1 ", PAGE)
    assert said is not None and list(said.groups()) == [f"{largest[lag]:.1f}" for lag in (16, 4, 1)]
    for variant in SCORES:
        untrained = [rows_of(run, "evaluations.jsonl")[0]["train"]["mean"] for run in runs_of(variant)]
        assert untrained == [3.00, 3.00, 2.35]
    assert "The untrained policies score 3.00, 3.00 and 2.35 on the training levels" in " ".join(PAGE.split())


def test_difference_of_aggregate_is_what_it_prints() -> None:
    selection = select(find_runs([RESULTS])[0], "train", None, require_equal_evaluations=True)
    (pair,) = (
        pair
        for pair in summarize(selection, "openai")["comparisons"]
        if "max-policy-lag=1 objective=decoupled" in pair["first"] and "mode=sync" in pair["second"]
    )
    difference = pair["iqm_difference"]  # of sync minus lag 1; the page says the opposite
    low, high = (-end for end in reversed(difference["interval"]))
    text = f"{-difference['value']:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".")
    assert f"on the training levels {text}, which is" in " ".join(PAGE.split())
