"""Where log records go: RUN_DIR/learner.log and the screen.

Modules log with `logging.getLogger(__name__)`; only this file configures handlers. learner.log gets records of our
packages from INFO and of libraries from WARNING, with tracebacks and, where a record has more to say than one line, its
`details` (`logger.warning(..., extra={"details": text})`). The screen gets warnings and errors in one line each.

What can repeat is rate limited, in learner.log too, so that a crash loop overnight cannot fill the disk.
"""

import logging
import math
import os
import threading
from collections import deque
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler

from common.output import is_live_terminal

OUR_PACKAGES = ("learner", "actors", "evaluator", "common")
# Records of one logger and message template in a minute.
MAX_PER_MINUTE_ON_SCREEN, MAX_PER_MINUTE_IN_FILE = 5, 60
# Records kept in memory while learner.log cannot be written.
MAX_WAITING = 1000


class RunLogging:
    """Sends log records to the screen and, once the run directory exists, to learner.log. A context manager.

    Used by the main thread; the handlers accept records from any thread.
    """

    def __init__(self, console: Console):
        self._file, screen = LogFile(), _screen_handler(console)
        self._handlers = [self._file, screen]
        self._levels: dict[str, int] = {}
        self._limits = [RateLimit(self._file, MAX_PER_MINUTE_IN_FILE), RateLimit(screen, MAX_PER_MINUTE_ON_SCREEN)]

    def __enter__(self) -> "RunLogging":
        for handler in self._handlers:
            logging.getLogger().addHandler(handler)
        self._levels = {package: logging.getLogger(package).level for package in OUR_PACKAGES}
        for package in OUR_PACKAGES:
            logging.getLogger(package).setLevel(logging.INFO)
        return self

    def open(self, path: Path) -> None:
        """Writes what was logged so far to `path`, and every later record when it is logged."""
        self._file.path = path
        self._file.flush()

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for limit in self._limits:
            limit.report_suppressed()
        if isinstance(error, Exception):  # Python prints it, so the screen does not need it
            cause = (type(error), error, traceback)
            self._file.handle(logging.LogRecord("learner", logging.CRITICAL, "", 0, "unexpected error", (), cause))
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.flush()  # learner.log may have become writable
        for package, level in self._levels.items():
            logging.getLogger(package).setLevel(level)


class LogFile(logging.Handler):
    """Appends records to `path`; each is in the file when `emit` returns.

    While `path` is None or cannot be written, the newest `MAX_WAITING` records wait in memory. They are written before
    the next record that can be, after a line with the number of records that were lost. Never raises OSError.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_Full("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.path: Path | None = None
        self.lost = 0
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lost += len(self._waiting) == MAX_WAITING
            self._waiting.append(self.format(record))
            self.flush()
        except Exception:  # as in every handler: a record that cannot be formatted must not stop its logger
            self.handleError(record)

    def flush(self) -> None:
        """Tries to write what waits."""
        assert self.lock is not None
        with self.lock:
            if self.path is None or not self._waiting:
                return
            lost = [f"{self.lost} earlier records could not be written"] if self.lost else []
            try:
                with open(self.path, "a", encoding="utf-8", errors="backslashreplace", opener=_open_private) as file:
                    file.write("\n".join([*lost, *self._waiting]) + "\n")
            except OSError:
                return
            self._waiting.clear()
            self.lost = 0


class RateLimit(logging.Filter):
    """Lets `per_minute` records of each logger and message template through to `handler`, and counts the others.

    When a later record, or the end of logging, finds that the minute is over, one record says how many were suppressed.
    Called by any thread.
    """

    def __init__(self, handler: logging.Handler, per_minute: int):
        super().__init__()
        self._handler = handler
        self._per_minute = per_minute
        self._lock = threading.RLock()  # a summary goes through this filter as well
        self._minutes: dict[tuple[str, int, str], tuple[float, int]] = {}  # when each began, records in it
        handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        if hasattr(record, "is_summary"):
            return True
        with self._lock:
            self.report_suppressed(record.created - 60)
            key = (record.name, record.levelno, str(record.msg))
            began, count = self._minutes.get(key, (record.created, 0))
            self._minutes[key] = (began, count + 1)
            return count < self._per_minute

    def report_suppressed(self, began_before: float = math.inf) -> None:
        """Logs how many records were suppressed in the minutes that began before a time, and forgets these minutes."""
        with self._lock:
            for (name, level, template), (began, count) in list(self._minutes.items()):
                if began > began_before:
                    continue
                del self._minutes[name, level, template]
                if (suppressed := count - self._per_minute) > 0:
                    text = "%d more messages like %r were suppressed"
                    summary = logging.LogRecord(name, level, "", 0, text, (suppressed, template), None)
                    summary.is_summary = True
                    self._handler.handle(summary)


class _Full(logging.Formatter):
    """With the record's `details`, if it has any."""

    def format(self, record: logging.LogRecord) -> str:
        details = getattr(record, "details", "")
        return super().format(record) + (f"\n{details}" if details else "")


class _OneLine(logging.Formatter):
    """Without traceback and details, which learner.log has."""

    def format(self, record: logging.LogRecord) -> str:
        record.message, record.level = record.getMessage(), record.levelname.lower()
        return self.formatMessage(record)


def _screen_handler(console: Console) -> logging.Handler:
    """Shares the console with the live display, which it must not break."""
    handler: logging.Handler
    if is_live_terminal(console):
        handler = RichHandler(console=console, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(_OneLine("%(message)s"))
    else:
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(_OneLine("%(level)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    return handler


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o640)  # common/process.py sets the umask, which removes 0o040 unless --group-readable
