"""The runs of a study, read from their directories: settings and scores over time.

Nothing but run directories is needed: they may be copies, unfinished, or not made by a study at all.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.cli import UsageError
from common.config import SETTINGS, Config, ConfigError, flag
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from common.text import format_cause, format_count
from evaluator.levels.level_sets import Split

# The settings that determine which levels are scored.
_LEVEL_SETTINGS = ("distribution_mode", "start_level", "num_levels", "held_out", "held_out_levels")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """A run and its evaluations, oldest first; `frames` is what it has trained, `fps` its median speed.

    `curve` are the evaluations made during training; `rows` are the same, unless the run was scored again.
    """

    run: RunDirectory
    config: Config
    requested: dict[str, Any]
    rows: list[Row]
    curve: list[Row]
    frames: int
    fps: float | None
    varied: frozenset[str]  # settings that the study around it varies

    @property
    def total_frames(self) -> int:
        """What it trains in all, in whole updates."""
        return self.config.num_updates * self.config.batch_size

    @property
    def is_trained(self) -> bool:
        """Whether it has trained all its frames."""
        return self.frames >= self.total_frames

    @property
    def is_finished(self) -> bool:
        """Whether it has trained all its frames and the last checkpoint has a score."""
        return self.is_trained and bool(self.rows) and self.rows[-1]["frames"] >= self.total_frames

    def scored(self, split: Split) -> list[Row]:
        """The evaluations that played `split`."""
        return [row for row in self.rows if split in row]

    def at(self, split: Split, frames: int) -> Row | None:
        """The newest evaluation of `split` at or before `frames`."""
        return next((row for row in reversed(self.scored(split)) if row["frames"] <= frames), None)

    def played(self, split: Split, frames: int) -> tuple[int, int] | None:
        """The number of levels, and of episodes on each, of the evaluation `at` these frames."""
        if (row := self.at(split, frames)) is None:
            return None
        return row[split]["levels"], row[split]["episodes"] // row[split]["levels"]

    def levels(self, split: Split) -> tuple[int, ...] | None:
        """The level seeds of `split`; None if levels.json is missing or damaged."""
        try:
            levels = json.loads(self.run.level_sets.read_bytes())[split]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_valid = isinstance(levels, list) and all(type(level) is int for level in levels)
        return tuple(sorted(levels)) if is_valid else None


def find_runs(paths: Sequence[Path]) -> tuple[list[ScoredRun], list[str]]:
    """The runs at or below `paths`, in the order of `paths` and of the names below each, numbers by their value.

    Also a line for each directory that has the scores of a run but not its settings.

    Raises:
        UsageError: a path does not exist or has no run below it, or a run cannot be read.
    """
    found: dict[Path, ScoredRun] = {}
    without_config: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            raise UsageError(f"{path} {'is not a directory' if path.exists() else 'does not exist'}")
        try:
            directories = list(_run_directories(path, set(), without_config))
        except OSError as error:
            raise UsageError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not directories:
            raise UsageError(f"{path} holds no runs: no directory in it has a config.json")
        for directory in directories:
            try:
                found.setdefault(directory.resolve(), _read(RunDirectory(directory)))
            except ConfigError as error:
                raise UsageError(f"{error}; {_remedy(directory)}") from error
            except OSError as error:
                raise UsageError(
                    f"{error.filename} cannot be read: {format_cause(error)}; {_remedy(directory)}"
                ) from error
    return list(found.values()), list(without_config.values())


def _remedy(unreadable: Path) -> str:
    return f"to compare the other runs, move {unreadable} away or name only them"


def evaluation_differences(runs: Sequence[ScoredRun], split: Split, frames: int) -> str | None:
    """How the evaluations of runs of one game differ, in one line; None if all scored the same levels equally often.

    The levels of runs without levels.json are not known, so only their number can be compared.
    """
    for name in _LEVEL_SETTINGS:
        if split == "train" or name not in ("start_level", "num_levels"):
            values = _by_value(runs, attrgetter(f"config.{name}"))
            if len(values) > 1:
                return f"{flag(name)} is {' and '.join(f'{value} in {path}' for value, path in values.items())}"
    sets = _by_value(runs, lambda run: run.levels(split))
    if len(sets) > 1:
        return f"{' and '.join(map(str, sets.values()))} have different {split} levels"
    counts = _by_value(runs, lambda run: run.played(split, frames))
    if len(counts) > 1:
        scored = [
            f"{path} on {format_count(levels, f'{split} level')} with {format_count(episodes, 'episode')} each"
            for (levels, episodes), path in counts.items()
        ]
        return " and ".join(scored)
    return None


def _by_value(runs: Sequence[ScoredRun], value: Callable[[ScoredRun], Any]) -> dict[Any, Path]:
    """Where the first run with each value is; runs without one (None) are left out."""
    found: dict[Any, Path] = {}
    for run in runs:
        if (own := value(run)) is not None:
            found.setdefault(own, run.run.path)
    return found


def _run_directories(path: Path, seen: set[Path], without_config: dict[Path, str]) -> Iterator[Path]:
    """Runs at or below `path`; a directory that symbolic links reach twice, or in a circle, is searched once."""
    if (resolved := path.resolve()) in seen:
        return
    seen.add(resolved)
    run = RunDirectory(path)
    if run.config.exists():
        yield path
        if not (path / "study.json").exists():
            return
    elif run.config.is_symlink():
        without_config[resolved] = f"{path} is left out: its config.json is a link to a file that does not exist"
    elif run.evaluations.exists():
        without_config[resolved] = f"{path} is left out: it has evaluations.jsonl but no config.json"
    for child in sorted(path.iterdir(), key=_numeric_order):
        if child.is_dir() and not child.name.startswith("."):
            yield from _run_directories(child, seen, without_config)


def _numeric_order(path: Path) -> list[str | int]:
    """The name with its numbers as numbers: max-policy-lag=4 comes before max-policy-lag=16, seed-2 before seed-10."""
    words = re.split(r"(\d+)", path.name)  # text and numbers alternate, beginning with text
    return [int(word) if index % 2 else word for index, word in enumerate(words)]


def _read(run: RunDirectory) -> ScoredRun:
    config = run.read_config()
    rows = run.read_scores()
    metrics = read_jsonl(run.metrics, {"frames": int})
    frames = max([0, *(row["frames"] for row in (*metrics[-1:], *rows[-1:]))])
    speeds = [row["fps"] for row in metrics if isinstance(row.get("fps"), int | float) and row["fps"]]
    return ScoredRun(
        run,
        config,
        run.read_requested(),
        rows,
        rows,
        frames,
        statistics.median(speeds) if speeds else None,
        _study(run.path),
    )


def _study(run: Path) -> frozenset[str]:
    """What the study varies whose directory is DIR in DIR/<game>/<variant>/seed-<k>; empty without a study."""
    try:
        vary = json.loads((run.absolute().parents[2] / "study.json").read_bytes())["study"]["vary"]
        return frozenset(vary) & SETTINGS.keys()
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return frozenset()
