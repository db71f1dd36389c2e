"""A lock file. The lock ends with the process that holds it, so a stale lock cannot exist."""

import fcntl
import os
import socket
from pathlib import Path


class FileIsLocked(Exception):
    """Another process holds the lock; the message names it, if known."""


class FileLock:
    """Holds `path` from construction to `close` or the end of the process (flock, advisory).

    Raises:
        FileIsLocked: another process, on this or another host sharing the directory, holds it.
        OSError: the file cannot be created.
    """

    def __init__(self, path: Path):
        self._descriptor: int | None = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 1000, 0).decode(errors="replace").strip()
            self.close()
            raise FileIsLocked(holder or "another process") from error
        except BaseException:
            self.close()
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def close(self) -> None:
        """Releases the lock. The file stays, or two processes could lock two files of the same name."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
