"""Everything decided before the first process starts: settings, run directory, checkpoint to continue from."""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import DEFAULTS, Config, ConfigError, contradictions, edited, resolve, resolve_resumed
from common.storage.checkpoints import Checkpoint, list_checkpoints, load_newest_complete, remove_leftovers, set_aside
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.jsonl import set_aside_rows
from common.storage.run_directory import RunDirectory
from common.versions import installed_versions
from learner.startup.flags import CommandLine

AUTO = Path("auto")
RECORDED_PACKAGES = ("heldout", "torch", "ray", "procgen", "procgen-mirror", "numpy")


@dataclass(slots=True)
class NewRun:
    """A run that starts from scratch. Nothing is written before `begin`.

    `lock` is held from the start where an earlier attempt left a config.json but no checkpoint to continue from.
    """

    config: Config
    requested: dict[str, Any]
    run: RunDirectory
    lock: FileLock | None = None

    def begin(self) -> None:
        """Creates the run directory, or sets aside what the earlier attempt left, and writes config.json.

        Raises:
            ConfigError: the directory cannot be written, or another run took it meanwhile.
        """
        if self.lock is None:
            self.run.create()
            self.lock = lock_for_learner(self.run)
        else:
            _set_aside_after(self.run, policy_version=-1)
        self.run.write_config(self.config, versions(), self.requested)

    def close(self) -> None:
        """Lets another learner use the run."""
        if self.lock is not None:
            self.lock.close()


@dataclass(frozen=True, slots=True)
class ResumedRun:
    """A stored run and the checkpoint to continue from."""

    config: Config
    requested: dict[str, Any]
    run: RunDirectory
    checkpoint: Checkpoint
    lock: FileLock

    @property
    def environments_continue(self) -> bool:
        """Whether this run has the actors that the checkpoint was saved with."""
        before = self.checkpoint.config
        return (self.config.num_actors, self.config.envs_per_actor) == (before.num_actors, before.envs_per_actor)

    def begin(self) -> None:
        """Sets aside what was written after the checkpoint, and updates config.json if a setting changed."""
        _set_aside_after(self.run, self.checkpoint.policy_version)
        if (self.config, self.requested) != (self.run.read_config(), self.run.read_requested()):
            self.run.write_config(self.config, versions(), self.requested)

    def close(self) -> None:
        """Lets another learner use the run."""
        self.lock.close()


PreparedRun = NewRun | ResumedRun


def prepare_run(command_line: CommandLine) -> PreparedRun:
    """A new run, or a stored one with its newest complete checkpoint.

    Raises:
        ConfigError: a setting, the directory, the device or every checkpoint is unusable.
    """
    if command_line.resume == AUTO:
        return _prepare_auto(command_line)
    if command_line.resume is not None:
        return _prepare_resumed(command_line, command_line.resume)
    run = _directory_of_new_run(command_line)
    run.require_unused()
    return _prepare_new(command_line, run)


def _directory_of_new_run(command_line: CommandLine) -> RunDirectory:
    if command_line.run_dir is not None:
        return RunDirectory(command_line.run_dir.absolute())
    preset = command_line.preset or "lab"
    game = command_line.overrides.get("env_name", DEFAULTS["env_name"])
    return RunDirectory((Path("runs") / f"{game}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}").absolute())


def _prepare_new(command_line: CommandLine, run: RunDirectory, lock: FileLock | None = None) -> NewRun:
    config = resolve(command_line.preset or "lab", command_line.overrides)
    return NewRun(config, _requested(command_line), run, lock)


def _prepare_auto(command_line: CommandLine) -> PreparedRun:
    """The run in --run-dir, or a new one there; never a new one where there is something to continue from."""
    if command_line.run_dir is None:
        raise ConfigError("--resume: auto needs --run-dir DIR, the directory of the run to continue or start")
    run = RunDirectory(command_line.run_dir.absolute())
    if not run.config.exists():
        run.require_unused()
        return _prepare_new(command_line, run)
    if list_checkpoints(run.checkpoints):
        return _prepare_resumed(command_line, command_line.run_dir)
    return _prepare_new(command_line, run, lock_for_learner(run))


def _prepare_resumed(command_line: CommandLine, path: Path) -> ResumedRun:
    run = RunDirectory(path.absolute())
    if command_line.run_dir is not None and command_line.run_dir.absolute() != run.path:
        raise ConfigError("--run-dir and --resume name different directories; give --resume alone")
    stored, overrides = run.read_config(), _requested(command_line)
    requested = {**run.read_requested(), **overrides}
    config = resolve_resumed(stored, requested, overrides)
    if differing := contradictions(stored, config, overrides):
        raise ConfigError(f"--resume: {path} was started with other settings: {'; '.join(differing)}")
    run.require_writable()
    lock = lock_for_learner(run)  # before choosing a checkpoint, so that no other learner writes a newer one
    checkpoint = _newest_complete_checkpoint(run)
    if changed := edited(stored, checkpoint.config):
        lock.close()
        raise ConfigError(f"{run.config} was edited: {'; '.join(changed)}; restore the value or start a new run")
    return ResumedRun(config, requested, run, checkpoint, lock)


def _requested(command_line: CommandLine) -> dict[str, Any]:
    preset = {} if command_line.preset is None else {"preset": command_line.preset}
    return {**preset, **command_line.overrides}


def lock_for_learner(run: RunDirectory) -> FileLock:
    """Keeps other learners out of `run` until this process ends; ConfigError if another learner uses it."""
    try:
        return FileLock(run.learner_lock)
    except FileIsLocked as holder:
        raise ConfigError(f"run directory {run.path} is in use by another learner ({holder})") from holder
    except OSError as error:
        raise ConfigError(f"run directory {run.path} is not writable: {error.strerror}") from error


def _newest_complete_checkpoint(run: RunDirectory) -> Checkpoint:
    damaged: list[str] = []
    checkpoint = load_newest_complete(run.checkpoints, damaged.append)
    for line in damaged:
        print(f"learner: {line}", file=sys.stderr)
    if checkpoint is None:
        raise ConfigError(f"--resume: {run.path} has no complete checkpoint in {run.checkpoints}")
    if damaged:
        print(f"learner: falling back to the newest complete checkpoint {checkpoint.path}", file=sys.stderr)
    return checkpoint


def _set_aside_after(run: RunDirectory, policy_version: int) -> None:
    """Later versions will be computed again: renames what is stored of them and removes unfinished checkpoints."""
    remove_leftovers(run.checkpoints)
    for path in list_checkpoints(run.checkpoints):
        if int(path.name) > policy_version:
            set_aside(path)
    for log in (run.metrics, run.evaluations):
        set_aside_rows(log, lambda row: row.get("policy_version", 0) <= policy_version)


def versions() -> dict[str, str]:
    """The software that the run was made with."""
    return {"python": platform.python_version(), **installed_versions(*RECORDED_PACKAGES)}
