"""What a directory's file system can do: checked once, before anything starts, so that a run can say what it replaces.

Network mounts, FUSE file systems and object stores lack some of what POSIX promises. Each function that needs such a
feature has a fallback, which it uses when the operation fails with an error in `UNSUPPORTED`:

    symbolic links      checkpoints/best.txt names the best checkpoint
    hard links          levels.json is renamed into place
    flock               a lock file that names its owner's process (common/storage/file_lock.py)
    directory fsync     left out
    replacing rename    the old file is deleted first
    file modes          none: the mount decides who can read the files
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# What file systems answer to an operation that they do not have.
UNSUPPORTED = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK})
# What they answer where nothing more can be written: no space, no inodes, or the user's quota is used up.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_unsupported(error: OSError) -> bool:
    """Whether the file system lacks the operation that failed, as opposed to a full or read-only disk."""
    return error.errno in UNSUPPORTED


def why_and_remedy(error: OSError) -> str:
    """Why something could not be written and what to do: `No space left on device; free some space`."""
    return f"{error.strerror or error}; {'free some space' if error.errno in FULL else 'make it writable'}"


@dataclass(frozen=True, slots=True)
class FileSystemFeatures:
    """`missing`: the optional features that are absent, each with its fallback. `unusable`: what a run cannot do.

    `is_full`: what it cannot do, it could with more space.
    """

    missing: tuple[str, ...] = ()
    unusable: str | None = None
    is_full: bool = False

    def describe(self) -> str:
        """One line: what is missing and what happens instead; "" if nothing is missing."""
        return "; ".join(self.missing)


def existing_parent(path: Path) -> Path:
    """`path` or its nearest parent that exists: where a directory would be created. `path` is absolute."""
    return next(parent for parent in (path, *path.parents) if os.path.lexists(parent))  # False if it cannot be asked


def probe(directory: Path) -> FileSystemFeatures:
    """Tries each operation in a temporary directory inside `directory`, which must exist, and removes it again."""
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".heldout-probe-", dir=directory))
    except OSError as error:
        return _unusable("directories cannot be created", error)
    try:
        for operation, check in _REQUIRED.items():
            try:
                check(scratch)
            except OSError as error:
                return _unusable(operation, error)
        return FileSystemFeatures(tuple(text for text, check in _OPTIONAL.items() if not _works(check, scratch)))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unusable(operation: str, error: OSError) -> FileSystemFeatures:
    is_full = error.errno in FULL
    return FileSystemFeatures(unusable=f"{operation}: {error.strerror}", is_full=is_full)


def _works(check: Callable[[Path], None], scratch: Path) -> bool:
    try:
        check(scratch)
    except OSError:
        return False
    return True


def _write_and_append(scratch: Path) -> None:
    path = scratch / "file"
    path.write_bytes(b"a")
    with open(path, "ab") as file:
        file.write(b"b")
    if path.read_bytes() != b"ab":
        raise OSError(errno.EIO, "what was appended is not read back")


def _rename_directory(scratch: Path) -> None:
    (scratch / "directory").mkdir()
    (scratch / "directory" / "file").write_bytes(b"a")
    os.rename(scratch / "directory", scratch / "renamed")


def _symlink(scratch: Path) -> None:
    os.symlink("file", scratch / "symlink")


def _hard_link(scratch: Path) -> None:
    os.link(scratch / "file", scratch / "hard-link")


def _flock(scratch: Path) -> None:
    with open(scratch / "file", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fsync_directory(scratch: Path) -> None:
    descriptor = os.open(scratch, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(scratch: Path) -> None:
    for name in ("old", "new"):
        (scratch / name).write_bytes(b"a")
    os.replace(scratch / "new", scratch / "old")


def _modes(scratch: Path) -> None:
    descriptor = os.open(scratch / "private", os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        if os.fstat(descriptor).st_mode & 0o077:
            raise OSError(errno.ENOTSUP, "modes are ignored")
    finally:
        os.close(descriptor)


_REQUIRED: dict[str, Callable[[Path], None]] = {
    "files cannot be written and appended to": _write_and_append,
    "directories cannot be renamed": _rename_directory,
}
_OPTIONAL: dict[str, Callable[[Path], None]] = {
    "no symbolic links: checkpoints/best.txt names the best checkpoint": _symlink,
    "no hard links: levels.json is renamed into place": _hard_link,
    "no flock: lock files name their owner's process": _flock,
    "no fsync of directories: a power failure may lose the newest files": _fsync_directory,
    "no rename over an existing file: the old file is deleted first": _replace,
    "no file modes: the mount decides who can read the run": _modes,
}


def remove_quietly(path: Path) -> None:
    """Deletes a file that may be missing or may not be deletable."""
    with contextlib.suppress(OSError):
        path.unlink()
