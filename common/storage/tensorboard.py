"""TensorBoard's event files, written on the caller's thread.

tensorboardX's SummaryWriter writes on a thread that ends at the first full disk, after which its callers wait for
ever. Here an error is an OSError of the call, the next call begins a new file, and so it does where the directory was
deleted under the open one.
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
    """The newest event file in `directory`; made with the first event, each call is on the disk when it returns.

    With `purge_step`, TensorBoard forgets what earlier files say about that step and later ones.
    """

    def __init__(self, directory: Path, purge_step: int | None = None):
        self._directory = directory
        self._purge_step = purge_step
        self._writer: EventsWriter | None = None
        self._path: Path | None = None
        self._files = 0

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """One point of each curve; OSError where it could not be written."""
        self._write(Event(step=step, summary=summary.scalar(tag, value)) for tag, value in values.items())

    def add_text(self, tag: str, text: str, step: int) -> None:
        """One paragraph; OSError where it could not be written."""
        self._write([Event(step=step, summary=summary.text(tag, text))])

    def add_pictures(self, pngs: Mapping[str, bytes], step: int) -> None:
        """Pictures, given as PNG files; OSError where they could not be written."""
        frames = {tag: iio.imread(png, extension=".png")[..., :3] for tag, png in pngs.items()}
        self._write(Event(step=step, summary=summary.image(tag, f, dataformats="HWC")) for tag, f in frames.items())

    def close(self) -> None:
        """Closes the file; the next event begins another."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None

    def _write(self, events) -> None:  # type: ignore[no-untyped-def]  # of protocol buffers without types
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
        suffix = f".{os.getpid()}.{self._files}"  # two files of one second have different names
        self._files += 1
        self._writer = EventsWriter(str(self._directory / "events"), suffix)
        self._path = Path(self._writer._file_name)
        if self._purge_step is not None:
            start = Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START))
            start.wall_time = time.time()
            self._writer.write_event(start)
            self._purge_step = None
