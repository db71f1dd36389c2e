"""Everything decided before the first process starts: settings, run directory, checkpoint to continue from."""

import contextlib
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from common.config import DEFAULTS, Config, ConfigError, describe_differences, differs_from_preset
from common.limits import available_memory
from common.messages import rollout_bytes
from common.resolution import contradictions, edited, resolve, resolve_resumed
from common.storage.checkpoints import Checkpoint, list_checkpoints, load_first_complete, remove_leftovers, set_aside
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.file_system import why_and_remedy
from common.storage.jsonl import set_aside_rows
from common.storage.run_directory import RunDirectory, claim_directory
from common.storage.videos import set_aside_videos
from common.versions import PROCGEN_BUILDS, installed_versions, named_build, procgen_build
from learner.startup.flags import CommandLine

AUTO = Path("auto")
RECORDED_PACKAGES = ("heldout", "torch", "ray", *PROCGEN_BUILDS, "numpy")


@dataclass(slots=True)
class NewRun:
    """A run that starts from scratch. Nothing is written before `begin`, except an empty directory by `claim`.

    `lock` is held from the start where an earlier attempt left a config.json but no checkpoint to continue from.
    `is_named_by_us`: nobody chose the directory's name, so it can be changed.
    """

    config: Config
    requested: dict[str, Any]
    run: RunDirectory
    lock: FileLock | None = None
    is_named_by_us: bool = False
    _claimed: list[Path] = field(default_factory=list)  # empty directories, to be removed if the run does not begin

    def claim(self) -> None:
        """Creates the directory if we chose its name: runs that start in the same second get different ones.

        Raises:
            ConfigError: it cannot be created.
        """
        if self.is_named_by_us:
            parents = [] if self.run.path.parent.exists() else [self.run.path.parent]
            self.run = RunDirectory(claim_directory(self.run.path))
            self._claimed = [self.run.path, *parents]

    def begin(self) -> None:
        """Creates the run directory, or sets aside what the earlier attempt left, and writes config.json.

        Raises:
            ConfigError: the directory cannot be written, or another run took it meanwhile.
        """
        with disk_failures_refused(self.run):
            if self.lock is None:
                self.run.create()
                self.lock = lock_for_learner(self.run)
                self._claimed.clear()
            else:
                _set_aside_after(self.run, policy_version=-1)
            self.run.write_config(self.config, versions(), self.requested)

    def close(self) -> None:
        """Lets another learner use the run; removes the directory if the run did not begin."""
        if self.lock is not None:
            self.lock.close()
        with contextlib.suppress(OSError):  # another run may be in the parent directory
            for directory in self._claimed:
                directory.rmdir()
        self._claimed.clear()


@dataclass(frozen=True, slots=True)
class ResumedRun:
    """A stored run and the checkpoint to continue from."""

    config: Config
    requested: dict[str, Any]
    run: RunDirectory
    checkpoint: Checkpoint
    lock: FileLock
    stored_versions: dict[str, str]

    @property
    def environments_continue(self) -> bool:
        """Whether this run has the actors that the checkpoint was saved with."""
        before = self.checkpoint.config
        return (self.config.num_actors, self.config.envs_per_actor) == (before.num_actors, before.envs_per_actor)

    @property
    def preset_change(self) -> str | None:
        """How the run's preset differed when the run was started; None: it was the same, apart from what was asked for.

        The run keeps its values. To continue with the preset's present ones, start a new run.
        """
        preset = self.config.preset
        differing = differs_from_preset(self.config, preset)
        unasked = {
            name: values
            for name, values in differing.items()
            if name not in self.requested
            and not (name == "num_envs" and {"num_actors", "envs_per_actor"} & self.requested.keys())
        }
        if not unasked:
            return None
        return f"preset {preset} has changed since this run was started; the run keeps {describe_differences(unasked)}"

    @property
    def procgen_change(self) -> str | None:
        """What another build of Procgen than the one that ran before means; None: it is the same build."""
        before, now = named_build(self.stored_versions), procgen_build()
        if before == now:
            return None
        return f"Procgen changed from {before} to {now}: levels and rewards are the same, but some pixels may differ"

    def claim(self) -> None:
        """Nothing to do: the lock is held."""

    def begin(self) -> None:
        """Sets aside what was written after the checkpoint; updates config.json if settings or software changed.

        Raises:
            ConfigError: that cannot be written; it may be tried again.
        """
        with disk_failures_refused(self.run):
            _set_aside_after(self.run, self.checkpoint.policy_version)
            if self.config.group_readable != self.run.read_config().group_readable:
                self.run.change_modes(self.config.group_readable)
            now = versions()
            stored = self.run.read_config(), self.run.read_requested(), self.stored_versions
            if (self.config, self.requested, now) != stored:
                self.run.write_config(self.config, now, self.requested)

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
    preset, game = command_line.preset_of_new_run, command_line.overrides.get("env_name", DEFAULTS["env_name"])
    return RunDirectory((Path("runs") / f"{game}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}").absolute())


def _prepare_new(command_line: CommandLine, run: RunDirectory) -> NewRun:
    config = resolve(command_line.preset_of_new_run, command_line.overrides)
    return NewRun(config, _requested(command_line), run, is_named_by_us=command_line.run_dir is None)


def _prepare_auto(command_line: CommandLine) -> PreparedRun:
    """The run in --run-dir, or a new one there; never a new one where there is something to continue from."""
    if command_line.run_dir is None:
        raise ConfigError("--resume: auto needs --run-dir DIR, the directory of the run to continue or start")
    run = RunDirectory(command_line.run_dir.absolute())
    if not run.config.exists():
        run.require_unused()
        return _prepare_new(command_line, run)
    if restorable(run):
        return _prepare_resumed(command_line, command_line.run_dir)
    new = _prepare_new(command_line, run)
    new.lock = lock_for_learner(run)
    return new


def _prepare_resumed(command_line: CommandLine, path: Path) -> ResumedRun:
    run = RunDirectory(path.absolute())
    if command_line.run_dir is not None and command_line.run_dir.absolute() != run.path:
        raise ConfigError("--run-dir and --resume name different directories; give --resume alone")
    stored, overrides = run.read_config(), _requested(command_line)
    requested = {**run.read_requested(), **overrides}
    config = resolve_resumed(stored, requested, overrides)
    # Another number of actors has changed what each gets, and the other way round.
    requested |= {name: getattr(config, name) for name in ("num_actors", "envs_per_actor") if name in requested}
    if differing := contradictions(stored, config, overrides):
        raise ConfigError(
            f"--resume: {path} was started with other settings: {'; '.join(differing)}; leave these flags out or start "
            "a new run"
        )
    stored_versions = run.read_versions()
    run.require_writable()
    lock = lock_for_learner(run)  # before choosing a checkpoint, so that no other learner writes a newer one
    try:
        checkpoint = _newest_complete_checkpoint(run)
        if changed := edited(stored, checkpoint.config):
            raise ConfigError(f"{run.config} was edited: {'; '.join(changed)}; restore the value or start a new run")
    except BaseException:  # a notebook's process lives on
        lock.close()
        raise
    return ResumedRun(config, requested, run, checkpoint, lock, stored_versions)


def require_memory(config: Config) -> None:
    """Raises ConfigError if several staging buffers do not fit into the memory that is free.

    One buffer is as large as what the object store must hold, which is checked when a cluster is joined.
    """
    buffers = config.max_policy_lag + 1
    each = config.num_actors * rollout_bytes(config.unroll_length, config.envs_per_actor)
    free = available_memory(psutil.virtual_memory().available)
    if buffers == 1 or buffers * each <= free:
        return
    fitting = free // each - 1
    remedy = f"use at most {fitting}" if fitting > 0 else "use --mode sync or a smaller batch"
    raise ConfigError(
        f"--max-policy-lag: {config.max_policy_lag} needs {buffers:,} staging buffers of {each:,} bytes, "
        f"{buffers * each:,} bytes of memory, and {free:,} bytes are free; {remedy}"
    )


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
        raise ConfigError(f"run directory {run.path} is not writable: {why_and_remedy(error)}") from error


@contextlib.contextmanager
def disk_failures_refused(run: RunDirectory) -> Iterator[None]:
    """Inside, an error of the disk becomes a ConfigError."""
    try:
        yield
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        raise ConfigError(
            f"run directory {run.path} cannot be changed{where}: {why_and_remedy(error)}, then repeat the command"
        ) from error


def restorable(run: RunDirectory) -> list[Path]:
    """Checkpoints and resume points, complete or damaged, the newest first; of one version the checkpoint first."""
    paths = [*list_checkpoints(run.checkpoints), *list_checkpoints(run.resume_points)]
    return sorted(paths, key=lambda path: int(path.name), reverse=True)  # stable


def _newest_complete_checkpoint(run: RunDirectory) -> Checkpoint:
    damaged: list[str] = []
    checkpoint = load_first_complete(restorable(run), damaged.append)
    for line in damaged:
        print(f"learner: {line}", file=sys.stderr)
    if checkpoint is None:
        raise ConfigError(f"--resume: {run.path} has no complete checkpoint in {run.checkpoints}")
    if damaged:
        print(f"learner: falling back to the newest complete checkpoint {checkpoint.path}", file=sys.stderr)
    return checkpoint


def _set_aside_after(run: RunDirectory, policy_version: int) -> None:
    """Later versions will be computed again: renames what is stored of them and removes unfinished checkpoints.

    None of them stays the best one.
    """
    for directory in (run.checkpoints, run.resume_points):
        remove_leftovers(directory)
        for path in list_checkpoints(directory):
            if int(path.name) > policy_version:
                set_aside(path)
    set_aside_videos(run.videos, lambda version: version > policy_version)
    best = run.best_checkpoint() or ""
    if best.isdigit() and int(best) > policy_version:
        run.set_best_checkpoint(None)
    for log in (run.metrics, run.evaluations):
        set_aside_rows(log, lambda row: not _is_later(row.get("policy_version"), policy_version))


def _is_later(version: Any, policy_version: int) -> bool:
    """Whether a row is about a later version; not one that no run wrote."""
    return isinstance(version, int) and version > policy_version


def versions() -> dict[str, str]:
    """The software that the run was made with."""
    return {"python": platform.python_version(), **installed_versions(*RECORDED_PACKAGES)}
