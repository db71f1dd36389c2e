"""TensorBoard's event files, written on the caller's thread.

tensorboardX's SummaryWriter writes on a thread that ends when the disk is full; its callers then block forever. Here a
failed write raises OSError and the next call begins a new file; so it does when the directory was deleted.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import imageio.v3 as iio
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventFile:
    """An event file in `directory`, created with the first event and flushed in each call. Not thread-safe.

    With `purge_step`, TensorBoard ignores what earlier files say about that step and later ones. All `add_` methods
    raise OSError if the event cannot be written.
    """

    def __init__(self, directory: Path, purge_step: int | None = None):
        self._directory = directory
        self._purge_step = purge_step
        self._writer: EventsWriter | None = None
        self._path: Path | None = None
        self._files = 0

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve."""
        self._write(Event(step=step, summary=summary.scalar(tag, value)) for tag, value in values.items())

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a paragraph."""
        self._write([Event(step=step, summary=summary.text(tag, text))])

    def add_pictures(self, pngs: Mapping[str, bytes], step: int) -> None:
        """Adds pictures, given as PNG files."""
        frames = {tag: iio.imread(png, extension=".png")[..., :3] for tag, png in pngs.items()}
        self._write(Event(step=step, summary=summary.image(tag, f, dataformats="HWC")) for tag, f in frames.items())

    def close(self) -> None:
        """Closes the file; the next event begins a new one."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _write(self, events) -> None:  # type: ignore[no-untyped-def]  # protocol buffers have no types
        try:
            if self._path is None or not self._path.exists():
                self.close()
            if self._writer is None:
                self._open()
            assert self._writer is not None
            for event in events:
                event.wall_time = time.time()
                self._writer.write_event(event)
            self._writer.flush()
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        suffix = f".{os.getpid()}.{self._files}"  # two files created in the same second need different names
        self._files += 1
        self._writer = EventsWriter(str(self._directory / "events"), suffix)
        self._path = Path(self._writer._file_name)
        if self._purge_step is not None:
            start = Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START))
            start.wall_time = time.time()
            self._writer.write_event(start)
            self._purge_step = None
