"""A run as one HTML file that can be mailed, printed and kept: pictures inside, no network, no scripts.

It shows what the run directory has, also while the run goes on, and says what is missing. Everything is read from
files; nothing is played.
"""

import base64
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from common.cli import UsageError
from common.config import ConfigError
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.levels.level_sets import HELD_OUT_SPLITS, SPLITS, Split
from evaluator.output.scoreboard import LevelHistory, scoreboard
from evaluator.scores.ranking import best_row

_TEMPLATE = "report.html.j2"
_FILM_NAME = re.compile(r"(\d+)-(.+)-level(\d+)\.gif")
_FILM_ORDER = {"worst": 0, "forgotten": 1, "typical": 2}
_FILM_MEANING = {
    "worst": "the lowest mean return",
    "forgotten": "fell furthest below its best of earlier checkpoints",
    "typical": "the median mean return",
}
_LONG_LIST = 24  # level seeds; longer lists are folded
_UNKNOWN = "–"


class NothingScored(UsageError):
    """The run has no evaluations, so there is nothing to report."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A png or gif within the page."""

    uri: str
    alt: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Cells:
    """A table: the first cell of a row is its heading."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[str] = ()  # columns of words; numbers are flush right


@dataclass(frozen=True, slots=True)
class Seeds:
    """Some level seeds under a name."""

    name: str
    levels: Sequence[int]
    total: int | None = None  # of how many, where that is of interest

    @property
    def count(self) -> str:
        return str(len(self.levels)) if self.total is None else f"{len(self.levels)} of {self.total}"

    @property
    def is_long(self) -> bool:
        return len(self.levels) > _LONG_LIST

    @property
    def text(self) -> str:
        return ", ".join(map(str, self.levels)) or "none"


def render_report(run: RunDirectory) -> str:
    """The page, a function of the files in the run directory alone.

    Raises:
        NothingScored: evaluations.jsonl is missing or empty.
        ConfigError: config.json is missing or damaged.
    """
    stored = _stored(run.config)
    settings = stored["settings"]
    rows = sorted(read_jsonl(run.evaluations), key=lambda row: row["policy_version"])
    if not rows:
        raise NothingScored(f"{run.path} has no evaluations yet")
    newest, best = rows[-1], best_row(rows)
    history = LevelHistory.read(run.levels, {row["policy_version"] for row in rows})
    environment = Environment(
        loader=PackageLoader("evaluator.output", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        name=run.path.resolve().name,
        game=f"{settings.get('env_name', 'unknown game')} {settings.get('distribution_mode', '')}".strip(),
        summary=_summary(newest),
        facts=_facts(settings, stored["versions"], read_jsonl(run.metrics)),
        settings=Cells(("setting", "value"), [(name, _plain(value)) for name, value in settings.items()], ("value",)),
        versions=Cells(
            ("package", "version"), [(name, _plain(value)) for name, value in stored["versions"].items()], ("version",)
        ),
        scores=_scores(newest, best),
        gaps=_gaps(newest, best),
        best=best,
        curves=_picture(run.scores_plot, "png", _curves_alt(rows)),
        level_curves=_picture(
            run.levels_plot, "png", "Mean return of every level at every scored checkpoint, one panel for each split."
        ),
        newest=newest,
        boards=_boards(history, newest),
        films=_films(run, rows, history),
        level_sets=_level_sets(run.level_sets),
        test_uses=_test_uses(run.test_uses),
        is_old=any("held_out_split" not in row for row in rows),
        live_tests=sum("test" in row for row in rows),
        evaluations=_evaluations(rows, best),
        num_evaluations=len(rows),
        skipped=sum(row.get("skipped") or 0 for row in rows),
        unscored=_unscored(run.checkpoints, rows),
    )


def _stored(path: Path) -> dict[str, dict[str, Any]]:
    """config.json as it is: a report of a run of an older version is still worth having."""
    try:
        stored = json.loads(path.read_bytes())
        return {"settings": dict(stored["settings"]), "versions": dict(stored.get("versions") or {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _summary(newest: dict[str, Any]) -> str:
    text = f"After {newest['frames']:,} frames the agent scores"
    if "train" in newest:
        text += f" {_with_interval(newest['train'])} on its training levels and"
    split = newest.get("held_out_split", "held-out")
    text += f" {_with_interval(newest['held_out'])} on {split} levels, which it never trained on"
    gap = newest.get("generalization_gap")
    return f"{text}; the gap is {gap:.2f}." if gap is not None else f"{text}."


def _facts(
    settings: dict[str, Any], versions: dict[str, Any], metrics: Sequence[dict[str, Any]]
) -> list[tuple[str, str]]:
    """What a reader wants to know first; all settings are listed further down."""
    done = metrics[-1] if metrics else {}
    frames = f"{done['frames']:,} of {_thousands(settings.get('total_frames'))}" if "frames" in done else _UNKNOWN
    speeds = sorted(row["fps"] for row in metrics if row.get("fps") is not None)
    return [
        ("Game", f"{settings.get('env_name', _UNKNOWN)}, {settings.get('distribution_mode', _UNKNOWN)}"),
        ("Preset", _plain(settings.get("preset", _UNKNOWN))),
        ("Mode", _plain(settings.get("mode", _UNKNOWN))),
        ("Frames", frames),
        ("Updates", f"{done['policy_version']:,}" if "policy_version" in done else _UNKNOWN),
        ("Speed", f"{speeds[len(speeds) // 2]:,.0f} frames/s, median" if speeds else _UNKNOWN),
        ("Training levels", _training_levels(settings)),
        ("Held-out levels", f"{_plain(settings.get('held_out_levels', _UNKNOWN))} in each split"),
        ("Episodes a level", _plain(settings.get("eval_episodes_per_level", _UNKNOWN))),
        ("Seed", _plain(settings.get("seed", _UNKNOWN))),
        ("Last update", _date(done["time"]) if done.get("time") is not None else _UNKNOWN),
        ("Versions", ", ".join(f"{name} {_plain(version)}" for name, version in versions.items()) or _UNKNOWN),
    ]


def _training_levels(settings: dict[str, Any]) -> str:
    start, count = settings.get("start_level"), settings.get("num_levels")
    if not isinstance(start, int) or not isinstance(count, int):
        return _UNKNOWN
    return f"{count:,}, from {start} to {start + count - 1}" if count else "all there are"


def _scores(newest: dict[str, Any], best: dict[str, Any] | None) -> Cells:
    chosen = [("last", newest), *([("best", best)] if best is not None else [])]
    return Cells(
        ("split", "checkpoint", "mean", "95 % interval", "normalized", "success", "time-outs", "episodes", "levels"),
        [
            (
                split,
                f"{name}, version {row['policy_version']}",
                f"{row[split]['mean']:.2f}",
                _interval(row[split].get("interval")),
                f"{row[split]['normalized']:.2f}",
                _share(row[split]["success_rate"]),
                _share(row[split]["timeout_rate"]),
                str(row[split]["episodes"]),
                str(row[split]["levels"]),
            )
            for split in _splits([row for _, row in chosen])
            for name, row in chosen
            if split in row
        ],
        left=("checkpoint",),
    )


def _gaps(newest: dict[str, Any], best: dict[str, Any] | None) -> list[str]:
    lines = []
    for name, row in (("last", newest), ("best", best)):
        gap = row.get("generalization_gap") if row is not None else None
        if row is not None and gap is not None:
            interval = row.get("generalization_gap_interval")
            between = f", 95 % interval {_interval(interval)}" if interval else ""
            held_out = row.get("held_out_split", "held-out")
            lines.append(f"Generalization gap of the {name}, training minus {held_out}: {gap:.2f}{between}")
    return lines


def _splits(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Those played; older runs have one set of held-out levels, without a split's name."""
    played: list[str] = [split for split in SPLITS if any(split in row for row in rows)]
    return played if any(split in played for split in HELD_OUT_SPLITS) else [*played, "held_out"]


def _curves_alt(rows: Sequence[dict[str, Any]]) -> str:
    last = rows[-1]
    ends = ", ".join(f"{split} {last[split]['mean']:.2f}" for split in _splits([last]))
    return f"Episode return against frames, {len(rows)} evaluations. At {last['frames']:,} frames: {ends}."


def _boards(history: LevelHistory, newest: dict[str, Any]) -> list[tuple[str, list[Seeds]]]:
    """Level seeds by split; empty where levels.csv has none of this version."""
    return [
        (
            split,
            [
                Seeds("solved", board.solved, len(history.at(split, newest["policy_version"]))),
                Seeds("newly solved", board.newly_solved),
                Seeds("forgotten", board.forgotten),
                Seeds("never solved", board.never_solved),
            ],
        )
        for split, board in scoreboard(history, newest["policy_version"]).items()
    ]


def _films(run: RunDirectory, rows: Sequence[dict[str, Any]], history: LevelHistory) -> list[Picture]:
    """Of the newest scored version that has any."""
    scored = {row["policy_version"]: row for row in rows}
    found = [
        (int(match[1]), match[2], int(match[3]), path)
        for path in sorted(run.videos.glob("*.gif"))
        if (match := _FILM_NAME.fullmatch(path.name)) and int(match[1]) in scored
    ]
    newest = max((version for version, *_ in found), default=None)
    shown = sorted(
        (film for film in found if film[0] == newest), key=lambda film: _FILM_ORDER.get(film[1], len(_FILM_ORDER))
    )
    pictures = []
    for version, kind, level, path in shown:
        split = next((split for split in SPLITS if split == scored[version].get("held_out_split")), None)
        score = None if split is None else history.score(split, level, version)
        caption = f"{split or 'held-out'} level {level}, {kind}"
        if kind in _FILM_MEANING:
            caption += f": {_FILM_MEANING[kind]}"
        if score is not None:
            episodes = "1 episode" if score.episodes == 1 else f"{score.episodes} episodes"
            caption += f". Return {score.mean_return:.2f}, success {_share(score.success_rate)} of {episodes}"
        alt = f"Film of one episode of policy version {version} on level {level}, frame by frame with its probabilities"
        if (picture := _picture(path, "gif", alt, f"Version {version}, {caption}.")) is not None:
            pictures.append(picture)
    return pictures


def _level_sets(path: Path) -> dict[str, Any] | None:
    """None where there is no levels.json that can be read."""
    try:
        contents = json.loads(path.read_bytes())
        removed = contents.get("audit", {}).get("removed", [])
        reasons = Counter(removal["reason"] for removal in removed)
        return {
            "sets": [(Seeds(split, contents[split]), _rule(contents, split)) for split in SPLITS],
            "judged": contents.get("audit", {}).get("judged"),
            "reasons": ", ".join(f"{count} {_REASONS.get(reason, reason)}" for reason, count in reasons.items()),
            "removed": Cells(
                ("level", "split", "why"),
                [(str(removal["level"]), str(removal["split"]), _why(removal)) for removal in removed],
                ("split", "why"),
            ),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_REASONS = {"same_picture": "looked like a training level", "ends_at_once": "ended at once under every action"}


def _rule(contents: dict[str, Any], split: Split) -> str:
    rule = contents.get("rule", {})
    return str(rule.get(split, "")) if isinstance(rule, dict) else ""


def _why(removal: dict[str, Any]) -> str:
    if removal["reason"] == "same_picture" and removal.get("same_as") is not None:
        return f"looks like training level {removal['same_as']}"
    return str(_REASONS.get(removal["reason"], removal["reason"]))


def _test_uses(path: Path) -> Cells:
    return Cells(
        ("use", "when", "command", "policy version", "episodes a level"),
        [
            (
                str(number),
                _date(use["time"]) if "time" in use else _UNKNOWN,
                _plain(use.get("command", _UNKNOWN)),
                _plain(use.get("policy_version", _UNKNOWN)),
                _plain(use.get("episodes_per_level", _UNKNOWN)),
            )
            for number, use in enumerate(read_jsonl(path), start=1)
        ],
        left=("when", "command"),
    )


def _evaluations(rows: Sequence[dict[str, Any]], best: dict[str, Any] | None) -> Cells:
    splits = _splits(rows)
    best_version = None if best is None else best["policy_version"]
    return Cells(
        ("version", "frames", *splits, "gap", "solved", "newly", "forgotten", "seconds", "behind", "skipped"),
        [
            (
                f"{row['policy_version']}{' (best)' if row['policy_version'] == best_version else ''}",
                f"{row['frames']:,}",
                *(_with_interval(row[split]) if split in row else _UNKNOWN for split in splits),
                _UNKNOWN if row.get("generalization_gap") is None else f"{row['generalization_gap']:.2f}",
                *(_count(_held_out_board(row).get(name)) for name in ("solved", "newly_solved", "forgotten")),
                f"{row['seconds']:.0f}",
                _count(row.get("updates_behind")),
                _count(row.get("skipped")),
            )
            for row in reversed(rows)
        ],
    )


def _held_out_board(row: dict[str, Any]) -> dict[str, int]:
    board: dict[str, int] = row.get("scoreboard", {}).get(row.get("held_out_split"), {})
    return board


def _unscored(checkpoints: Path, rows: Sequence[dict[str, Any]]) -> int:
    """Checkpoints on the disk that have no scores."""
    scored = {row["policy_version"] for row in rows}
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return sum(name.isdigit() and int(name) not in scored for name in names)


def _picture(path: Path, kind: str, alt: str, caption: str = "") -> Picture | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode()}", alt, caption)


def _with_interval(score: dict[str, Any]) -> str:
    interval = score.get("interval")
    return f"{score['mean']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _interval(interval: Sequence[float] | None) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else _UNKNOWN


def _share(rate: float) -> str:
    return f"{rate:.0%}"


def _count(number: int | None) -> str:
    return _UNKNOWN if number is None else str(number)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _thousands(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _UNKNOWN


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
