"""The runs of a study, read from their directories: settings, scores over time, and which variant each one is.

Nothing but run directories is needed: they may be copies, unfinished, or not made by a study at all.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from common.cli import UsageError
from common.config import (
    PRESETS,
    SETTINGS,
    Config,
    ConfigError,
    algorithm,
    describe_differences,
    flag,
)
from common.resolution import WITHOUT_EFFECT
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from common.text import format_cause, format_count
from evaluator.levels.level_sets import Split
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import unlike_published

ONLY_VARIANT = "default"
# Settings that tell runs of one variant apart, or say how and for how long a run is carried out. They make variants
# only where a study varies them or where they change the algorithm.
_NOT_A_VARIANT = frozenset(
    {
        *("seed", "env_name", "total_frames", "checkpoint_interval", "keep_checkpoints", "keep_every", "device"),
        *("group_readable", "num_actors", "min_actors", "envs_per_actor", "actor_gpus", "actor_timeout"),
        *("cluster_timeout", "compression", "micro_batch", "compile", "learner_threads", "evaluator"),
        *("eval_episodes_per_level", "live_split", "backfill", "eval_timeout"),
    }
)
# What a setting follows from if nobody asks for it.
_FOLLOWS_FROM: dict[str, set[str]] = {
    **{name: {"preset"} for values in PRESETS.values() for name in values},
    "num_envs": {"preset", "num_actors", "envs_per_actor"},
    "max_policy_lag": {"mode"},
    "objective": {"mode", "max_policy_lag"},
    "repeatable": {"num_actors", "min_actors"},
}
# The settings that determine which levels are scored.
_LEVEL_SETTINGS = ("distribution_mode", "start_level", "num_levels", "held_out", "held_out_levels")

Row = dict[str, Any]
Difference = TypeVar("Difference")


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


# For each setting in which runs differ, one run with each of its values.
Differences = dict[str, dict[Any, ScoredRun]]


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


def varied_settings(runs: Sequence[ScoredRun]) -> list[str]:
    """The settings that somebody asked for and in which the runs differ, in the order of their declaration.

    Instead of --num-actors and --envs-per-actor their product counts, num_envs, unless a study varies them.
    """
    differing = _differences(runs)
    asked = {name for run in runs for name in run.requested}
    varied = {name for run in runs for name in run.varied}
    if "num_actors" in varied and any(run.config.min_actors < run.config.num_actors for run in runs):
        varied.add("min_actors")  # --num-actors LOW:HIGH
    candidates = asked & (SETTINGS.keys() - _NOT_A_VARIANT | differing.keys()) | varied
    names = [name for name in SETTINGS if name in candidates and len({getattr(run.config, name) for run in runs}) > 1]
    shares = {"num_actors", "envs_per_actor"}
    if "num_envs" in differing and shares & asked and not shares & set(names):
        names.append("num_envs")
    return names


def by_variant(runs: Sequence[ScoredRun]) -> dict[str, dict[str, dict[int, ScoredRun]]]:
    """The runs by variant, game and seed. A variant is named by the settings in which the runs differ.

    Raises:
        UsageError: runs of easy and hard levels, or two runs of the same game, variant and seed.
    """
    modes = {run.config.distribution_mode: run for run in runs}
    if len(modes) > 1:
        named = ", ".join(f"{mode}: {run.run.path}" for mode, run in modes.items())
        raise UsageError(f"easy and hard levels cannot be compared ({named})")
    names = varied_settings(runs)
    grouped: dict[str, dict[str, dict[int, ScoredRun]]] = {}
    for run in runs:
        pairs = [setting_text(name, getattr(run.config, name)) for name in names]
        seeds = grouped.setdefault(" ".join(pairs) or ONLY_VARIANT, {}).setdefault(run.config.env_name, {})
        other = seeds.setdefault(run.config.seed, run)
        if other is not run:
            differing = _describe(_causes(_differences([other, run])))
            raise UsageError(
                f"{other.run.path} and {run.run.path} have the same game, variant and seed ({run.config.seed})"
                f"{f', although {differing}' if differing else ''}; give one of them"
            )
    return grouped


def unnamed_differences(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """A line for each variant whose runs differ in what they train with, and one if variants differ in more than their
    names say.

    Nobody asked for such a difference: `auto` means something else on another machine, or a preset has changed.
    """
    notes: list[str] = []
    found: set[str] = set()
    for variant, runs in variants.items():
        if differing := _causes(_differences(runs)):
            found |= differing.keys()
            notes.append(f"{variant}: its runs differ in settings that are not in its name: {_describe(differing)}")
    runs = [run for own in variants.values() for run in own]
    differing = _causes(_differences(runs), varied_settings(runs))
    if between := {name: values for name, values in differing.items() if name not in found}:
        notes.append(f"variants differ in settings that are not in their names: {_describe(between)}")
    return notes


def differences_from_published(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """A line for each way in which runs of a variant train otherwise than the published ones on their levels.

    Without what the variants are named by and what follows from that.
    """
    named = varied_settings([run for own in variants.values() for run in own])
    notes: dict[str, None] = {}
    for variant, runs in variants.items():
        for run in runs:
            if differing := _causes(unlike_published(run.config), named):
                notes[f"{variant}: not the settings of {PUBLISHED}: {describe_differences(differing)}"] = None
    return list(notes)


def _differences(runs: Sequence[ScoredRun]) -> Differences:
    """How runs differ in what they train with: preset, training levels and algorithm.

    A setting counts for the runs in which it has an effect.
    """
    found: Differences = {}
    for run in runs:
        config = run.config
        trains_with = {name: getattr(config, name) for name in ("preset", "start_level", "num_levels")}
        for name, value in {**trains_with, **algorithm(config)}.items():
            if name not in WITHOUT_EFFECT or not WITHOUT_EFFECT[name][0](config):
                found.setdefault(name, {}).setdefault(value, run)
    return {name: values for name, values in found.items() if len(values) > 1}


def _causes(differing: Mapping[str, Difference], named: Sequence[str] = ()) -> dict[str, Difference]:
    """The differences that are not `named` and follow neither from another one nor from a named setting."""
    causes = {*differing, *named}
    return {
        name: values
        for name, values in differing.items()
        if name not in named and not causes & _FOLLOWS_FROM.get(name, set())
    }


def _describe(differing: Differences) -> str:
    """`mode is sync in runs/a and overlap in runs/b`."""
    return ", ".join(
        f"{name} is {' and '.join(f'{value} in {run.run.path}' for value, run in values.items())}"
        for name, values in differing.items()
    )


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


def setting_text(name: str, value: Any) -> str:
    """As in the name of a variant: `max-policy-lag=4`, `repeatable=no`."""
    shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    return f"{flag(name)[2:]}={shown}"
