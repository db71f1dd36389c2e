"""The files of a run: where they are, and whether a run can be written there."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config import BEFORE_SETTING, SETTINGS, Config, ConfigError
from common.storage.atomic_files import replace, write_atomically
from common.storage.file_system import existing_parent, probe, remove_quietly, why_and_remedy
from common.storage.jsonl import has_fields, read_jsonl
from common.text import format_cause

_NUMBER = (int, float)
# What every row of the logs has, with its type. Who edited a file must not break the commands that read it.
_METRICS_FIELDS = {"policy_version": int, "frames": int, "time": _NUMBER, "fps": _NUMBER}
_EVALUATION_FIELDS = {
    **dict.fromkeys(("policy_version", "frames", "updates_behind", "skipped"), int),
    **dict.fromkeys(("policy_sha256", "held_out_split"), str),
    **dict.fromkeys(("train", "held_out", "scoreboard"), dict),
    **dict.fromkeys(("generalization_gap", "seconds"), _NUMBER),
}
_SCORED = ("train", "validation", "test", "all", "held_out")  # a row has the scores of the splits that were played
_SCORE_FIELDS = {"mean": _NUMBER, "levels": int, "episodes": int}
_SHOWN_SCORE_FIELDS = {**_SCORE_FIELDS, **dict.fromkeys(("normalized", "success_rate", "timeout_rate"), _NUMBER)}
_SCOREBOARD_FIELDS = dict.fromkeys(("solved", "newly_solved", "forgotten"), int)


class RunDirectory:
    """The paths of one run; the layout is part of the public contract."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.evaluations = path / "evaluations.jsonl"
        self.levels = path / "levels.csv"
        self.level_sets = path / "levels.json"
        self.test_uses = path / "test_uses.jsonl"
        self.checkpoints = path / "checkpoints"
        self.resume_points = path / "resume"  # the newest updates, from which only a resumed run continues
        self.best = self.checkpoints / "best"  # a link to the checkpoint that is best on the validation levels
        self.best_text = self.checkpoints / "best.txt"  # its name, where the file system has no links
        self.tensorboard = path / "tensorboard"
        self.scores_plot = path / "scores.png"
        self.levels_plot = path / "levels.png"
        self.videos = path / "videos"
        self.report = path / "report.html"
        self.learner_log = path / "learner.log"
        self.evaluator_log = path / "evaluator.log"
        self.diagnosis = path / "diagnosis"  # batches whose loss or gradient was not finite, with the learner's state
        self.learner_lock = path / ".learner.lock"
        self.evaluator_lock = path / ".evaluator.lock"

    def holds_run(self) -> bool:
        """Whether there is a run, or what is left of one; OSError if that cannot be seen."""
        return self.config.exists() or self.checkpoints.exists() or self.metrics.exists()

    def require_unused(self) -> None:
        """Raises ConfigError if the directory holds a run or cannot be created."""
        try:
            holds_run = self.holds_run()
        except OSError as error:
            raise ConfigError(f"--run-dir: cannot create {self.path}: {error.strerror}") from error
        if holds_run:
            raise ConfigError(f"--run-dir: {self.path} already holds a run; continue it with --resume {self.path}")
        existing = existing_parent(self.path)
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"--run-dir: cannot create {self.path}: {existing} is not a writable directory")

    def create(self) -> None:
        """Creates the directory of a new run.

        Raises:
            ConfigError: it already holds a run or cannot be written.
        """
        self.require_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--run-dir: cannot create {self.path}: {error.strerror}") from error
        self.require_writable()

    def require_writable(self) -> None:
        """Raises ConfigError unless files can be created in the directory, and in those of its checkpoints if it has
        them.
        """
        for directory in (self.path, self.checkpoints, self.resume_points):
            if directory != self.path and not directory.is_dir():
                continue
            probe = directory / f".write-test-{os.getpid()}"
            try:
                probe.write_bytes(b"x")
                probe.unlink()
            except OSError as error:
                remove_quietly(probe)  # a full disk may have room for a file without contents
                what = f"run directory {self.path}" if directory == self.path else directory
                raise ConfigError(f"{what} is not writable: {why_and_remedy(error)}") from error

    def require_present(self) -> None:
        """Raises OSError unless the run is there: a network mount can be away, and its mount point be empty."""
        os.stat(self.config)

    def change_modes(self, group_readable: bool) -> None:
        """Gives all files and directories of the run the modes that new ones get, where that is possible.

        Whatever else somebody keeps in the directory is left alone.
        """
        for path in (self.path.resolve(), *self._files()):
            if not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.chmod(
                        (0o750 if path.is_dir() else 0o640) if group_readable else 0o700 if path.is_dir() else 0o600
                    )

    def _files(self) -> Iterator[Path]:
        """What a run and its commands write: the paths above, what was set aside (NAME.abandoned), and all below."""
        own = {path.name for path in vars(self).values() if path.parent == self.path}
        for path in self.path.iterdir():
            if path.name in own or any(path.name.startswith(f"{name}.") for name in own):
                yield path
                yield from path.rglob("*")

    def check_file_system(self) -> str:
        """What the file system lacks and what happens instead, in one line; "" if it has everything.

        Raises:
            ConfigError: a run cannot be written there.
        """
        directory = existing_parent(self.path)
        features = probe(directory)
        if features.unusable is not None:
            remedies = ["free some space"] if features.is_full else []
            if not self.config.exists():  # a stored run stays where it is
                remedies.append("choose a directory on another file system with --run-dir")
            elif not features.is_full:
                remedies.append("move the run to another file system")
            found = f"in {directory}, {features.unusable}"
            raise ConfigError(f"run directory {self.path} cannot be used: {found}; {' or '.join(remedies)}")
        return features.describe()

    def best_checkpoint(self) -> str | None:
        """The name of the checkpoint that is best on the validation levels, if one is known."""
        try:
            return self.best.readlink().name
        except OSError:
            pass
        try:
            return self.best_text.read_text().strip() or None
        except OSError:
            return None

    def set_best_checkpoint(self, name: str | None) -> None:
        """Points checkpoints/best to a checkpoint, or writes its name to best.txt without symbolic links; None: none.

        Raises:
            OSError: neither can be written.
        """
        if name is None:
            self.best.unlink(missing_ok=True)
            self.best_text.unlink(missing_ok=True)
            return
        temporary = self.best.with_name(f".best.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.symlink(name, temporary)
            replace(temporary, self.best)
        except OSError:
            remove_quietly(temporary)
            write_atomically(self.best_text, f"{name}\n".encode())
            remove_quietly(self.best)  # a link from another file system, which would contradict the text
        else:
            remove_quietly(self.best_text)

    def write_config(
        self, config: Config, versions: Mapping[str, str], requested: Mapping[str, Any] | None = None
    ) -> None:
        """Writes config.json: what the user asked for, the resolved settings, and the software versions."""
        contents = {"requested": dict(requested or {}), "settings": asdict(config), "versions": dict(versions)}
        write_atomically(self.config, (json.dumps(contents, indent=2) + "\n").encode())

    def read_config(self) -> Config:
        """The stored, resolved settings.

        Raises:
            ConfigError: the directory holds no run, or config.json cannot be read.
        """
        return config_from_dict(self._read("settings"), str(self.config))

    def read_requested(self) -> dict[str, Any]:
        """The settings that the user named when the run was started or resumed, by field name.

        Raises:
            ConfigError: as for `read_config`.
        """
        requested = self._read("requested")
        if not isinstance(requested, dict) or not requested.keys() <= SETTINGS.keys():
            raise ConfigError(f"{self.config} was written by another version of heldout (requested: {requested})")
        return requested

    def read_versions(self) -> dict[str, str]:
        """The software that config.json was written with.

        Raises:
            ConfigError: as for `read_config`.
        """
        versions = self._read("versions")
        if not isinstance(versions, dict):
            raise ConfigError(f"{self.config} was written by another version of heldout (versions: {versions})")
        return versions

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl by policy_version; empty if there is no file."""
        return sorted(read_jsonl(self.metrics, _METRICS_FIELDS), key=_version)

    def read_evaluations(self) -> list[dict[str, Any]]:
        """The rows of evaluations.jsonl by policy_version; empty if there is no file."""
        rows = [row for row in read_jsonl(self.evaluations, _EVALUATION_FIELDS) if _is_evaluation(row)]
        return sorted(rows, key=_version)

    def read_scores(self) -> list[dict[str, Any]]:
        """The rows of evaluations.jsonl by frames, also those with nothing but scores; empty if there is no file."""
        rows = [row for row in read_jsonl(self.evaluations, {"frames": int}) if _has_scores(row, _SCORE_FIELDS)]
        return sorted(rows, key=lambda row: row["frames"])

    def _read(self, part: str) -> Any:
        try:
            return json.loads(self.config.read_bytes())[part]
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} is not a run directory (it has no config.json)") from error
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self.config} cannot be read: it has no {part}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.config} cannot be read: {format_cause(error)}") from error


def follow_best(path: Path) -> Path:
    """The checkpoint that RUN_DIR/checkpoints/best is a link to, or that best.txt names where there are no links."""
    run = RunDirectory(path.absolute().parent.parent)
    if path.absolute() not in (run.best, run.best_text):
        return path
    name = run.best_checkpoint()
    return path if name is None else path.with_name(name)


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    return (
        _has_scores(row, _SHOWN_SCORE_FIELDS)
        and row["held_out_split"] in row["scoreboard"]
        and all(has_fields(board, _SCOREBOARD_FIELDS) for board in row["scoreboard"].values())
        and _is_interval(row.get("generalization_gap_interval"))
    )


def _has_scores(row: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Whether everything that is said to be a score is one, of at least one episode on each level."""
    return all(
        has_fields(score, fields) and 1 <= score["levels"] <= score["episodes"] and _is_interval(score.get("interval"))
        for score in (row[name] for name in _SCORED if name in row)
    )


def _is_interval(value: Any) -> bool:
    """Also None: a score may have no interval, and those of the oldest versions have no entry for it."""
    return value is None or (isinstance(value, list) and [isinstance(end, _NUMBER) for end in value] == [True, True])


def _version(row: Mapping[str, Any]) -> int:
    version: int = row["policy_version"]
    return version


def claim_directory(path: Path) -> Path:
    """Creates a directory that no other process gets: `path`, or `path` with -2, -3, ... appended to its name.

    Raises:
        ConfigError: it cannot be created.
    """
    claimed, number = path, 1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                claimed.mkdir()
                return claimed
            except FileExistsError:
                number += 1
                claimed = path.with_name(f"{path.name}-{number}")
    except OSError as error:
        raise ConfigError(f"cannot create run directory {claimed}: {error.strerror}") from error


def config_from_dict(settings: Any, source: str) -> Config:
    """A Config from stored settings; ConfigError names `source` if a setting is missing or unknown.

    Settings that did not exist when they were stored get the value that runs had then.
    """
    if isinstance(settings, dict) and settings.keys() | BEFORE_SETTING.keys() == SETTINGS.keys():
        settings = {**{name: value(settings) for name, value in BEFORE_SETTING.items()}, **settings}
    if not isinstance(settings, dict) or settings.keys() != SETTINGS.keys():
        differing = _differing(settings) if isinstance(settings, dict) else "no settings"
        raise ConfigError(f"{source} was written by another version of heldout ({differing})")
    try:
        return Config(**settings)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _differing(settings: dict[str, Any]) -> str:
    """`unknown: codec; missing: encoder, gamma, width and 12 more`."""
    found = {"unknown": sorted(settings.keys() - SETTINGS.keys()), "missing": sorted(SETTINGS.keys() - settings.keys())}
    parts = []
    for what, names in found.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts += [f"{what}: {', '.join(names[:3])}{more}"] if names else []
    return "; ".join(parts)
