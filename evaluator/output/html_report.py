"""A run as one HTML file that can be mailed, printed and archived: images are embedded, nothing is loaded or executed.

The page shows what the run directory contains, also while the run is in progress, and names what is missing. Everything
is read from files; nothing is played.
"""

import base64
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from common.cli import UsageError
from common.config import Config, describe_differences, differs_from_preset
from common.storage.checkpoints import list_checkpoints
from common.storage.jsonl import has_fields, read_jsonl
from common.storage.run_directory import RunDirectory
from common.storage.videos import list_videos
from common.text import MISSING, format_count, format_interval, format_score
from evaluator.levels.level_file import describe_finding
from evaluator.levels.level_sets import SPLITS, Split
from evaluator.output.scoreboard import LEVEL_CHOICES, LevelHistory, scoreboards
from evaluator.output.templates import page_environment
from evaluator.scores.ranking import best_row

_VIDEO_MEANING = {
    "worst": "the lowest mean return",
    "forgotten": "furthest below its best mean return at an earlier checkpoint that had a score by then",
    "typical": "the median mean return",
}

_NUMBER = (int, float)
_PUBLISHED_FIELDS: dict[str, Any] = {
    **{split: {"mean": _NUMBER, "runs": list} for split in ("train", "test")},
    **dict.fromkeys(("training_episodes", "training_levels", "held_out_levels"), (*_NUMBER, type(None))),
}
_TEST_USE_FIELDS = {"time": _NUMBER, "command": str, "policy_version": int, "episodes_per_level": int}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A png or gif embedded in the page."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The first cell of a row is its heading; columns named in `left` are left-aligned, the others right-aligned."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()


def render_report(run: RunDirectory) -> str:
    """The page, which depends only on the files in the run directory.

    Raises:
        UsageError: evaluations.jsonl is missing or empty.
        ConfigError: config.json is missing or damaged.
    """
    config = run.read_config()
    versions = run.read_versions()
    rows = run.read_evaluations()
    if not rows:
        raise UsageError(f"{run.path} has no evaluations yet")
    newest, best = rows[-1], best_row(rows)
    shown = [("last", newest), *([("best", best)] if best is not None else [])]
    scored = {row["policy_version"] for row in rows}
    history = LevelHistory.read(run.levels, scored)
    environment = page_environment("evaluator.output")
    environment.filters |= {"score": format_score, "interval": format_interval}
    return environment.get_template("report.html.j2").render(
        name=run.path.resolve().name,
        game=config.game,
        newest=newest,
        best=best,
        shown=shown,
        facts=_facts(config, versions, run.read_metrics()),
        settings=Table(("setting", "value"), [(key, str(value)) for key, value in asdict(config).items()], ("value",)),
        versions=Table(("package", "version"), list(versions.items()), ("version",)),
        scores=_scores(shown),
        published=_published(shown),
        no_intervals=_no_intervals(shown),
        curves=_figure(run.scores_plot, "png", _curves_alt(rows)),
        level_curves=_figure(
            run.levels_plot, "png", "Mean return of every level at every scored checkpoint, one panel per split."
        ),
        boards={
            split: board
            for split, board in scoreboards(history).get(newest["policy_version"], {}).items()
            if split in newest
        },
        videos=_videos(run, rows, history),
        level_sets=_level_sets(run.level_sets),
        test_uses=_test_uses(run.test_uses),
        live_tests=sum("test" in row for row in rows),
        evaluations=_evaluations(rows, best),
        num_evaluations=len(rows),
        skipped=sum(row["skipped"] for row in rows),
        unscored=sum(int(path.name) not in scored for path in list_checkpoints(run.checkpoints)),
    )


def _facts(config: Config, versions: dict[str, str], metrics: Sequence[Row]) -> list[tuple[str, str]]:
    """What readers look for first; the page lists all settings below."""
    levels = range(config.start_level, config.start_level + config.num_levels)
    facts = [
        ("Game", str(config.game)),
        ("Preset", _preset(config)),
        ("Mode", config.mode),
        ("Training levels", f"{len(levels):,}, from {levels[0]} to {levels[-1]}" if levels else "all"),
        ("Held-out levels", f"{config.held_out_levels} in each split"),
        ("Episodes per level", str(config.eval_episodes_per_level)),
        ("Seed", str(config.seed)),
    ]
    if metrics:
        done = metrics[-1]
        speeds = [row["fps"] for row in metrics if row["fps"] is not None]
        facts += [
            ("Frames", f"{done['frames']:,} of {config.total_frames:,}"),
            ("Updates", f"{done['policy_version']:,}"),
            ("Speed", f"{statistics.median(speeds):,.0f} frames/s, median" if speeds else MISSING),
            ("Last update", _date(done["time"])),
        ]
    return [*facts, ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def _scores(shown: Sequence[tuple[str, Row]]) -> Table:
    return Table(
        ("split", "checkpoint", "mean", "95 % interval", "normalized", "success", "time-outs", "episodes", "levels"),
        [
            (
                split,
                f"{name}, version {row['policy_version']}",
                f"{row[split]['mean']:.2f}",
                format_interval(row[split].get("interval")),
                f"{row[split]['normalized']:.2f}",
                f"{row[split]['success_rate']:.0%}",
                f"{row[split]['timeout_rate']:.0%}",
                str(row[split]["episodes"]),
                str(row[split]["levels"]),
            )
            for split in SPLITS
            for name, row in shown
            if split in row
        ],
        left=("checkpoint",),
    )


def _preset(config: Config) -> str:
    """The preset and what differs from its present values: chosen by the user, or the preset has changed since."""
    differing = describe_differences(differs_from_preset(config, config.preset))
    return f"{config.preset}, with {differing}" if differing else config.preset


def _published(shown: Sequence[tuple[str, Row]]) -> Table | None:
    """None if nothing comparable was published. Rows of older runs have no comparison."""
    compared = [
        (name, row, row["published"]) for name, row in shown if has_fields(row.get("published"), _PUBLISHED_FIELDS)
    ]
    if not compared:
        return None

    def runs(score: Row) -> str:
        return f"{score['mean']:.2f} ({', '.join(f'{value:.2f}' for value in score['runs'])})"

    def number(value: float | None) -> str:
        return MISSING if value is None else f"{value:.2f}"

    return Table(
        (
            "checkpoint",
            "published train",
            "training episodes",
            "training levels",
            "published test, all levels",
            "held-out levels",
        ),
        [
            (
                f"{name}, version {row['policy_version']}",
                runs(comparison["train"]),
                number(comparison.get("training_episodes")),
                number(comparison.get("training_levels")),
                runs(comparison["test"]),
                number(comparison.get("held_out_levels")),
            )
            for name, row, comparison in compared
        ],
    )


def _no_intervals(shown: Sequence[tuple[str, Row]]) -> list[str]:
    """One sentence for each score of `_scores` that has no interval."""
    return [
        f"No interval for the {name} checkpoint's {split} score: {reason}."
        for split in SPLITS
        for name, row in shown
        if split in row and (reason := row[split].get("no_interval"))
    ]


def _curves_alt(rows: Sequence[Row]) -> str:
    last = rows[-1]
    ends = ", ".join(f"{split} {last[split]['mean']:.2f}" for split in SPLITS if split in last)
    return f"Episode return against frames, {len(rows)} evaluations. At {last['frames']:,} frames: {ends}."


def _videos(run: RunDirectory, rows: Sequence[Row], history: LevelHistory) -> list[Figure]:
    """The videos of the newest scored version that has any."""
    splits: dict[int, Split] = {row["policy_version"]: cast(Split, row["held_out_split"]) for row in rows}
    found = [
        video for video in list_videos(run.videos) if video.policy_version in splits and video.kind in LEVEL_CHOICES
    ]
    figures = []
    shown = [video for video in found if video.policy_version == found[-1].policy_version]
    for video in sorted(shown, key=lambda video: list(LEVEL_CHOICES).index(video.kind)):
        version, level = video.policy_version, video.level
        caption = f"Version {version}, {splits[version]} level {level}, {video.kind}: {_VIDEO_MEANING[video.kind]}."
        if (score := history.at(splits[version], version).get(level)) is not None:
            episodes = format_count(score.episodes, "episode")
            caption += f" Return {score.mean_return:.2f}, success {score.success_rate:.0%} of {episodes}."
        alt = f"One episode of policy version {version} on level {level}, frame by frame with action probabilities"
        figures.append(_figure(video.path, "gif", alt, caption))
    return [figure for figure in figures if figure is not None]


def _level_sets(path: Path) -> dict[str, Any] | None:
    """None if levels.json is missing or damaged."""
    try:
        contents = json.loads(path.read_bytes())
        audit = contents["audit"]
        found = {"removed": audit["removed"], "flagged": audit.get("flagged", [])}  # format 1 has no flagged levels
        return {
            "sets": [(split, list(contents[split]), contents["rule"][split]) for split in SPLITS],
            "judged": audit["judged"],
            "num_ending": {
                outcome: sum(finding["reason"] == "ends_at_once" for finding in findings)
                for outcome, findings in found.items()
            },
            "found": {
                outcome: Table(
                    ("level", "split", "reason"),
                    [(str(each["level"]), each["split"], describe_finding(each)) for each in findings],
                    ("split", "reason"),
                )
                for outcome, findings in found.items()
            },
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _test_uses(path: Path) -> Table:
    named = ("command", "policy_version", "episodes_per_level")
    return Table(
        ("use", "when", "command", "policy version", "episodes per level"),
        [
            (str(number), _date(use["time"]), *(str(use[k]) for k in named))
            for number, use in enumerate(read_jsonl(path, _TEST_USE_FIELDS), start=1)
        ],
        left=("when", "command"),
    )


def _evaluations(rows: Sequence[Row], best: Row | None) -> Table:
    splits = [split for split in SPLITS if any(split in row for row in rows)]
    return Table(
        ("version", "frames", *splits, "gap", "solved", "newly", "forgotten", "seconds", "behind", "skipped"),
        [
            (
                f"{row['policy_version']}{' (best)' if row is best else ''}",
                f"{row['frames']:,}",
                *(format_score(row.get(split)) for split in splits),
                f"{row['generalization_gap']:.2f}",
                *(str(row["scoreboard"][row["held_out_split"]][k]) for k in ("solved", "newly_solved", "forgotten")),
                f"{row['seconds']:.0f}",
                str(row["updates_behind"]),
                str(row["skipped"]),
            )
            for row in reversed(rows)
        ],
    )


def _figure(path: Path, kind: str, alt: str, caption: str = "") -> Figure | None:
    """None if the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return Figure(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt, caption)


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
