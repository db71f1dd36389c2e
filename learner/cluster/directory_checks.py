"""Checks of the directory that a run is written to.

They change no existing file; `file_system_check` creates temporary files and removes them.
"""

import os
import shutil
from pathlib import Path

from common.config import ConfigError
from common.resolution import edited
from common.storage.checkpoints import list_checkpoints, load_first_complete
from common.storage.file_lock import lock_holder
from common.storage.file_system import existing_parent, probe
from common.storage.run_directory import RunDirectory
from learner.cluster.machine_checks import GIB, Check
from learner.startup.preparation import restorable

# About what a run of the preset `hard` with all its checkpoints takes.
DISK_FOR_A_RUN = 4 * GIB
OTHER_DIRECTORY = "choose another with --run-dir, or fix the problem"


def run_directory_check(path: Path, is_named: bool) -> Check:
    """Whether a run could be created at `path`, or continued in it if the user named it."""
    name, run = "run directory", RunDirectory(path)
    state, damaged = "free for a new run", list[str]()
    try:
        if is_named and run.config.exists():
            state, damaged = _stored_run(run)
        else:
            run.require_unused()
    except ConfigError as error:
        return Check(name, "fatal", str(error), OTHER_DIRECTORY)
    except OSError as error:
        return Check(name, "fatal", f"{path} cannot be read: {error.strerror}", OTHER_DIRECTORY)
    free = shutil.disk_usage(existing_parent(path)).free
    found = f"{path}: {state}, {free / GIB:.1f} GiB of disk free"
    if damaged:
        return Check(name, "warning", "; ".join((found, *damaged)), "the run continues from an older checkpoint")
    if free < DISK_FOR_A_RUN:
        return Check(name, "warning", found, "free some space, or keep fewer checkpoints with --keep-checkpoints N")
    return Check(name, "ok", found)


def _stored_run(run: RunDirectory) -> tuple[str, list[str]]:
    """What a resume would find: a description, and the damaged checkpoints that it would pass over.

    Raises:
        ConfigError: the run cannot be continued.
    """
    damaged: list[str] = []
    stored = run.read_config()
    for directory in (run.path, run.checkpoints, run.resume_points):
        if directory.is_dir() and not _can_write(directory):
            raise ConfigError(f"{directory} is not writable")
    if (holder := lock_holder(run.learner_lock)) is not None:
        raise ConfigError(f"run directory {run.path} is in use by another learner ({holder})")
    checkpoint = load_first_complete(restorable(run), damaged.append)
    if checkpoint is None:
        raise ConfigError("; ".join((f"{run.path} has no complete checkpoint in {run.checkpoints}", *damaged)))
    if changed := edited(stored, checkpoint.config):
        raise ConfigError(f"{run.config} was edited: {'; '.join(changed)}")
    num_checkpoints = len(list_checkpoints(run.checkpoints))
    return f"holds a run with {num_checkpoints} checkpoints, at policy_version {checkpoint.policy_version}", damaged


def file_system_check(path: Path) -> Check:
    """What the file system of the run directory `path` lacks.

    That can only be found out by trying. It is tried beside a directory that exists, and inside only where that is a
    mount or its parent is not writable; the files are removed again.
    """
    name, directory = "file system", existing_parent(path)
    if directory == path and path.is_dir():
        target = path.resolve()  # beside a link is another file system than in the directory that it names
        if _can_write(target.parent) and not os.path.ismount(target):
            directory = target.parent
    if not _can_write(directory):
        return Check(name, "fatal", f"{directory} is not writable", OTHER_DIRECTORY)
    features = probe(directory)
    if features.unusable is not None:
        remedy = "free some space" if features.is_full else "use --run-dir on another file system"
        return Check(name, "fatal", f"{directory}: {features.unusable}", remedy)
    if features.missing:
        remedy = "training works; for full safety use --run-dir on a local disk, and see docs/run-directory.md"
        return Check(name, "warning", f"{directory}: {features.describe()}", remedy)
    return Check(name, "ok", f"{directory}: links, locks, fsync, rename and modes work")


def _can_write(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)
