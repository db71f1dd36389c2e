"""A lock file. The lock ends with the process that holds it, so a stale lock cannot exist.

Where the file system has no `flock`, a second file, NAME.owner, is created by exactly one process and names it. It is
stale if it names a process that is gone on this host, and is then replaced. What another host or container wrote cannot
be checked: the error names the file to delete.
"""

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

from common.storage.file_system import is_unsupported, remove_quietly


class FileIsLocked(Exception):
    """Another process holds the lock; the message names it, if known."""


class FileLock:
    """Holds `path` from construction to `close` or the end of the process (advisory).

    Raises:
        FileIsLocked: another process, on this or another host sharing the directory, holds it.
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path):
        self._owner: Path | None = None
        self._descriptor: int | None = os.open(path, os.O_CREAT | os.O_RDWR, 0o640)
        try:
            if not _flock(self._descriptor):
                self._owner = _create_owner_file(path.with_name(path.name + ".owner"))
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 1000, 0).decode(errors="replace").strip()
            self.close()
            raise FileIsLocked(holder or "another process") from error
        except BaseException:
            self.close()
            raise
        with contextlib.suppress(OSError):  # only for people; the lock is held on a full disk too
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def close(self) -> None:
        """Releases the lock. The file stays, or two processes could lock two files of the same name."""
        if self._owner is not None:
            remove_quietly(self._owner)
            self._owner = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_holder(path: Path) -> str | None:
    """The process that holds the lock, as `FileIsLocked` names it; None if nobody does. Changes and creates nothing."""
    owner = _read_owner(path.with_name(path.name + ".owner"))
    if owner is not None and not _is_gone(owner):
        return _describe(owner)
    try:
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(1000).decode(errors="replace").strip() or "another process"
    except OSError:  # there is no lock file, or no flock
        pass
    return None


def _flock(descriptor: int) -> bool:
    """Locks the file; False if the file system has no flock. BlockingIOError: another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if not is_unsupported(error):
            raise
        return False
    return True


def _create_owner_file(path: Path) -> Path:
    """Creates `path` for this process, in place of a stale one; FileIsLocked if another process holds it."""
    for _ in range(3):  # another process may replace a stale file at the same moment
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        except FileExistsError:
            owner = _read_owner(path)
            if owner is not None and not _is_gone(owner):
                raise FileIsLocked(f"{_describe(owner)}; delete {path} if that process has ended") from None
            if owner is None or not _take_away(path, owner):
                raise FileIsLocked(f"another process; delete {path} if none uses it") from None
            continue
        with open(descriptor, "w") as file:
            file.write(json.dumps(_identity(os.getpid())))
        return path
    raise FileIsLocked("another process")


def _identity(process_id: int) -> dict[str, Any]:
    """What distinguishes a process from all others, including one that gets its number later."""
    return {
        "process": process_id,
        "started": _start_time(process_id),
        "host": socket.gethostname(),
        "boot": _read_text("/proc/sys/kernel/random/boot_id"),
        "namespace": _pid_namespace(),
    }


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the process is known to have ended; False if it cannot be seen from here."""
    here = _identity(os.getpid())
    if any(owner.get(key) != here[key] for key in ("host", "boot", "namespace")):
        return False
    return owner.get("started") != _start_time(owner["process"])


def _take_away(path: Path, expected: dict[str, Any]) -> bool:
    """Deletes a stale file; False if another process has just replaced it."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        os.rename(path, aside)
    except OSError:
        return False
    if _read_owner(aside) != expected:
        with contextlib.suppress(OSError):
            os.rename(aside, path)
        return False
    remove_quietly(aside)
    return True


def _read_owner(path: Path) -> dict[str, Any] | None:
    try:
        owner = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("process"), int) else None


def _describe(owner: dict[str, Any]) -> str:
    return f"process {owner['process']} on {owner.get('host')}"


def _start_time(process_id: int) -> str | None:
    """In clock ticks since boot; None if there is no such process or only its exit code is left."""
    fields = _read_text(f"/proc/{process_id}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] not in "ZX" else None


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
