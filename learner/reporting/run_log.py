"""Writes the rows of metrics.jsonl and TensorBoard. A disk that is full, read-only or gone never stops training."""

import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any

from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import EventFile

logger = logging.getLogger(__name__)

Row = dict[str, Any]


class RunLog:
    """Keeps rows that cannot be written and writes them, in order, when it can. Called by the main thread.

    `last_error` is one line about rows that wait, or None. `purge_step` is the first number of frames that may be
    written again.
    """

    def __init__(self, run: RunDirectory, purge_step: int):
        self.last_error: str | None = None
        self._events = EventFile(run.tensorboard / "learner", purge_step)
        # A row has about 1 kB: a day of one-second updates that cannot be written takes 86 MB.
        self._sinks: list[tuple[deque[Row], Callable[[Row], None]]] = [
            (deque(), lambda row: append_jsonl(run.metrics, row)),
            (deque(), self._add_scalars),
        ]
        self._name = str(run.path)

    def add(self, row: Row) -> None:
        """Writes one update's row, after the rows that wait."""
        for waiting, _ in self._sinks:
            waiting.append(row)
        self.flush()

    def flush(self) -> None:
        """Tries to write the rows that wait."""
        last_error = None
        for waiting, write in self._sinks:
            try:
                while waiting:
                    write(waiting[0])
                    waiting.popleft()
            except OSError as error:
                last_error = f"metrics wait in memory: {self._name} cannot be written: {error.strerror or error}"
                if self.last_error is None:
                    logger.warning(last_error, exc_info=error)
        if self.last_error is not None and last_error is None:
            logger.info("metrics can be written again")
        self.last_error = last_error

    @property
    def unwritten(self) -> int:
        """The number of rows that wait for metrics.jsonl."""
        return len(self._sinks[0][0])

    def add_text(self, tag: str, text: str, frames: int) -> None:
        """Adds a paragraph to TensorBoard; it is lost if that cannot be written."""
        try:
            self._events.add_text(tag, text, frames)
        except OSError as error:
            logger.warning("TensorBoard files cannot be written: %s", error.strerror or error)

    def close(self) -> None:
        """Tries once more, and closes the files."""
        self.flush()
        self._events.close()

    def _add_scalars(self, row: Row) -> None:
        scalars = {
            f"learner/{name}": value
            for name, value in row.items()
            if value is not None and math.isfinite(value) and name not in ("time", "frames")
        }
        try:
            self._events.add_scalars(scalars, row["frames"])
        except OSError:
            self._events.purge(row["frames"])  # some of its points may be in the file
            raise
