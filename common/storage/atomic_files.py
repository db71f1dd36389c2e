"""Files that are either complete or absent: temporary name, fsync, rename."""

import errno
import os
from pathlib import Path

from common.storage.file_system import is_unsupported, remove_quietly


def fsync(descriptor: int) -> None:
    """Waits until a file is on the disk, where the file system offers that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_unsupported(error):
            raise


def fsync_directory(path: Path) -> None:
    """Makes renames and new files in directory `path` survive a power failure, where the file system offers that."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EACCES) or is_unsupported(error):
            return  # this file system does not open directories
        raise
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Writes `data` to `path` and waits until it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Replaces the contents of `path` in one step; a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, data)
        replace(temporary, path)
    except BaseException:  # also Ctrl-C
        remove_quietly(temporary)
        raise
    fsync_directory(path.parent)


def replace(source: Path, target: Path) -> None:
    """Renames a file to `target`. Where a rename cannot replace a file, `target` is deleted first: not atomic."""
    try:
        os.replace(source, target)
    except OSError as error:
        if not (is_unsupported(error) or error.errno == errno.EEXIST) or not os.path.lexists(target):
            raise
        os.unlink(target)
        os.rename(source, target)
