"""What `watch` shows of a run: functions of its config and rows, without files or a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from common.config import Config
from common.staleness import stale_after
from common.text import format_duration, format_number, format_score
from evaluator.output.text import make_table

SHOWN_EVALUATIONS = 15
_NUM_ESSENTIAL_COLUMNS = 4

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Status:
    """What a run is doing, one line each; `warning` says that it seems to have stopped."""

    title: str
    progress: str
    warning: str | None = None


def status(config: Config, metrics: Sequence[Row], age: float | None) -> Status:
    """The status of a run with these metrics rows, whose newest update is `age` seconds old."""
    title = f"{config.env_name} {config.distribution_mode}, preset {config.preset}"
    if not metrics:
        return Status(title, "no update yet")
    row = metrics[-1]
    total = config.num_updates * config.batch_size
    facts = [
        f"{row['frames']:,} of {total:,} frames ({row['frames'] / total:.0%})",
        f"update {row['policy_version']} of {config.num_updates}",
        f"{row['fps']:,.0f} frames/s",
    ]
    warning = None
    if row["policy_version"] >= config.num_updates:
        facts.append("training has finished")
    elif age is not None:
        facts.append(f"last update {format_duration(age)} ago")
        if age > stale_after(metrics):
            warning = f"no update for {format_duration(age)}: is the run still alive?"
    return Status(title, ", ".join(facts), warning)


def evaluation_table(rows: Sequence[Row], best: Row | None, width: int) -> Table:
    """The newest evaluations, newest last; a star marks the best. The last columns go where `width` is too small."""
    shown = rows[-SHOWN_EVALUATIONS:]
    columns = {
        "version": [f"{'* ' if row is best else ''}{row['policy_version']}" for row in shown],
        "frames": [f"{row['frames']:,}" for row in shown],
        "train [95 %]": [format_score(row["train"]) for row in shown],
        f"{shown[-1]['held_out_split']} [95 %]": [format_score(row["held_out"]) for row in shown],
        "gap": [format_number(row["generalization_gap"]) for row in shown],
        "solved": [_solved(row, "{solved}/{levels} +{newly_solved} -{forgotten}") for row in shown],
        "seconds": [f"{row['seconds']:.0f}" for row in shown],
        "behind": [str(row["updates_behind"]) for row in shown],
        "skipped": [str(row["skipped"]) for row in shown],
    }
    names = list(columns)
    while len(names) > _NUM_ESSENTIAL_COLUMNS and _table_width(columns, names) > width:
        names.pop()
    return make_table(names, list(zip(*(columns[name] for name in names), strict=True)), left=())


def evaluation_line(row: Row, is_best: bool) -> str:
    """One evaluation as a plain line, for pipes and log files."""
    behind, skipped = row["updates_behind"], row["skipped"]
    facts = [
        f"train {format_score(row['train'])}",
        f"{row['held_out_split']} {format_score(row['held_out'])}",
        f"gap {format_number(row['generalization_gap'])}",
        _solved(row, "solved {solved} of {levels} ({newly_solved} newly, {forgotten} forgotten)"),
        f"{row['seconds']:.0f} s",
        f"{behind} update{'s' if behind > 1 else ''} behind" if behind else "",
        f"{skipped} skipped before it" if skipped else "",
        "best so far" if is_best else "",
    ]
    return (
        f"evaluation of policy_version {row['policy_version']}, {row['frames']:,} frames: "
        f"{', '.join(fact for fact in facts if fact)}"
    )


def why_no_interval(row: Row) -> str:
    """What the row says about missing intervals, in one line; "" if it has all of them."""
    return "; ".join(
        f"{split}: no interval, {reason}"
        for split, score in (("train", row["train"]), (row["held_out_split"], row["held_out"]))
        if (reason := score.get("no_interval"))
    )


def _solved(row: Row, template: str) -> str:
    """How many held-out levels are solved, newly solved and forgotten."""
    return template.format(levels=row["held_out"]["levels"], **row["scoreboard"][row["held_out_split"]])


def _table_width(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> int:
    return sum(max(len(name), *map(len, columns[name])) for name in names) + len(names) - 1
