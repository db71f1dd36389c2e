"""The learner's rows in metrics.jsonl and TensorBoard. A disk that is full, read-only or gone never stops training."""

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import EventFile

Row = dict[str, Any]


class RunLog:
    """What cannot be written now is kept, and written in order when it can be. `problem` is a line about that, or None.

    `purge_step` are the frames a resumed run begins at.
    """

    def __init__(self, run: RunDirectory, purge_step: int | None):
        self.problem: str | None = None
        self._events = EventFile(run.tensorboard / "learner", purge_step)
        # A row has about 1 kB: a day of one-second updates that nobody can write is 86 MB.
        self._sinks: list[tuple[deque[Row], Callable[[Row], None]]] = [
            (deque(), lambda row: append_jsonl(run.metrics, row)),
            (deque(), self._add_scalars),
        ]
        self._name = str(run.path)

    def add(self, row: Row) -> None:
        """Writes one update's row, after those that still wait."""
        for waiting, _ in self._sinks:
            waiting.append(row)
        self.flush()

    def flush(self) -> None:
        """Tries to write what waits."""
        self.problem = None
        for waiting, write in self._sinks:
            try:
                while waiting:
                    write(waiting[0])
                    waiting.popleft()
            except OSError as error:
                self.problem = f"metrics wait in memory: {self._name} cannot be written: {error.strerror or error}"

    @property
    def unwritten(self) -> int:
        """Rows that metrics.jsonl lacks."""
        return len(self._sinks[0][0])

    def add_text(self, tag: str, text: str, frames: int) -> None:
        """A paragraph for TensorBoard; lost where that cannot be written, since the screen shows it too."""
        try:
            self._events.add_text(tag, text, frames)
        except OSError as error:
            self.problem = f"TensorBoard's files cannot be written: {error.strerror or error}"

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
        self._events.add_scalars(scalars, row["frames"])
