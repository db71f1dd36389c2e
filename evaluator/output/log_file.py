"""The evaluator's log file."""

import contextlib
import logging
import os
from pathlib import Path


class LogFile(logging.Handler):
    """Appends records to a file that only its owner can read (mode 0600), or with --group-readable their group too.

    The file is opened for every record: it may be missing until the run directory exists, and a record that cannot be
    written, for example because the disk is full, is dropped.
    """

    def __init__(self, path: Path):
        super().__init__()
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one record."""
        with contextlib.suppress(OSError), open(self._path, "a", opener=_open_private) as file:
            file.write(self.format(record) + "\n")


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)  # common/process.py sets the umask, which removes 0o040 unless --group-readable
