"""Paths from the command line: checkpoints and runs to read, files to write."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from common.cli import UsageError
from common.storage.atomic_files import write_atomically
from common.storage.checkpoints import MANIFEST_FILE, Checkpoint, CheckpointError, load_checkpoint, load_newest_complete
from common.storage.run_directory import RunDirectory, follow_best


def open_checkpoint(path: Path) -> Checkpoint:
    """The policy of the checkpoint at `path`, or of the newest complete checkpoint of the run at `path`.

    Raises:
        UsageError: nothing complete was found there.
    """
    path = follow_best(path)
    run = RunDirectory(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if run.checkpoints.is_dir() or run.config.exists():
        damaged: list[str] = []
        newest = load_newest_complete(run.checkpoints, damaged.append, policy_only=True)
        if newest is None:
            raise UsageError(f"no complete checkpoint in {run.checkpoints}{f': {damaged[0]}' if damaged else ''}")
        for line in damaged:
            print(f"evaluator: {line}; using {newest.path}", file=sys.stderr)
        return newest
    if not (path / MANIFEST_FILE).exists() and not path.name.isdigit():
        raise UsageError(f"{path} is neither a run directory nor a checkpoint")
    # Any link to a checkpoint may be named, but a run's own names stay, so that `run_of` finds it.
    path = path.absolute() if path.name.isdigit() else path.resolve()
    if path.parent == RunDirectory(path.parent.parent).resume_points:
        raise UsageError(f"{path} is a resume point, which only --resume reads; name a checkpoint in checkpoints/")
    try:
        return load_checkpoint(path, policy_only=True)
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def open_run(path: Path) -> RunDirectory:
    """The run at `path`; UsageError if it is not a run directory."""
    run = RunDirectory(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if not run.config.exists():
        raise UsageError(f"{path} is not a run directory (it has no config.json)")
    return run


def run_of(checkpoint: Checkpoint) -> RunDirectory | None:
    """The run that contains the checkpoint; None for a checkpoint that was copied elsewhere.

    The run's directory of checkpoints may be a symbolic link, or the checkpoint's path one into a run.
    """
    for path in (checkpoint.path.absolute(), checkpoint.path.resolve()):
        run = RunDirectory(path.parent.parent)
        if run.config.exists() and run.checkpoints == path.parent:
            return run
    return None


def require_new_path(path: Path, flag: str = "--output") -> None:
    """Raises UsageError if a file or directory `path` cannot be created, before minutes are spent on playing."""
    if os.path.lexists(path):
        raise UsageError(f"{flag} {path} already exists and is not overwritten; choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: {path.parent} is not a directory")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{flag} {path}: {path.parent} is not writable")


def write_new_file(path: Path, data: bytes) -> None:
    """Writes --output `path`; UsageError if it exists or cannot be written, and then nothing is left of it."""
    require_new_path(path)
    try:
        write_atomically(path, data)
    except OSError as error:
        raise UsageError(f"cannot write --output {path}: {error.strerror}") from error


def write_new_directory(path: Path, files: Mapping[str, bytes], flag: str) -> None:
    """Creates the directory `path` of `flag` with these files.

    Raises:
        UsageError: it exists or cannot be written; nothing is left of it.
    """
    require_new_path(path, flag)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        os.rename(temporary, path)
    except OSError as error:
        raise UsageError(f"cannot write {flag} {path}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
