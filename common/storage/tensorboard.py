"""TensorBoard's event files, written on the caller's thread.

tensorboardX's SummaryWriter writes on a thread that ends when the disk is full; its callers then block forever. Here a
failed write raises OSError and the next call begins a new file; so it does when the directory was deleted.
"""

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import imageio.v3 as iio
from google.protobuf.message import DecodeError
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from common.storage.atomic_files import fsync

_STAMP = re.compile(r"tfevents\.(\d{10})\.")


class _Records(RecordWriter):
    """A file of records. The original fails where the file system cannot sync a file."""

    def flush(self) -> None:
        self._writer.flush()
        fsync(self._writer.fileno())


class EventFile:
    """An event file in `directory`, created with the first event and flushed in each call. Not thread-safe.

    With `purge_step`, TensorBoard ignores what earlier files say about that step and later ones: the first step that
    will be written again. All `add_` methods raise OSError if the event cannot be written.
    """

    def __init__(self, directory: Path, purge_step: int | None = None):
        self.directory = directory
        self._purge_step = purge_step
        self._writer: _Records | None = None
        self._path: Path | None = None

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds one point to each curve."""
        self._write(Event(step=step, summary=summary.scalar(tag, value)) for tag, value in values.items())

    def purge(self, step: int) -> None:
        """Begins a new file, with the next event, that has this `purge_step`."""
        self.close()
        self._purge_step = step if self._purge_step is None else min(step, self._purge_step)

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
                self._writer.write(event.SerializeToString())
            self._writer.flush()
            self._purge_step = None
        except OSError:
            self.close()
            raise

    def _open(self) -> None:
        for directory in (self.directory.parent, self.directory):  # not the run's directory, which may be away
            directory.mkdir(exist_ok=True)
        # TensorBoard reads the files of a directory in the order of their names, whichever host's clock is ahead.
        stamps = [int(match[1]) for path in self.directory.iterdir() if (match := _STAMP.search(path.name))]
        stamp = max([int(time.time()), *(newest + 1 for newest in stamps)])
        self._path = self.directory / f"events.out.tfevents.{stamp:010d}.{socket.gethostname()}.{os.getpid()}"
        self._writer = _Records(str(self._path))
        first = [Event(file_version="brain.Event:2")]
        if self._purge_step is not None:
            first.append(Event(step=self._purge_step, session_log=SessionLog(status=SessionLog.START)))
        for event in first:
            event.wall_time = time.time()
            self._writer.write(event.SerializeToString())


def shown_points(directory: Path) -> dict[int, dict[str, list[float]]]:
    """The values that TensorBoard shows of each tag at each step, by its rule for the files of one directory; 0 for a
    picture.

    They are read in the order of their names; a session's START event discards what was read before of its step and
    later ones. A file is read up to its first incomplete record.
    """
    shown: dict[int, dict[str, list[float]]] = {}
    for path in sorted(directory.glob("*tfevents*")) if directory.is_dir() else ():
        for event in _events(path.read_bytes()):
            if event.session_log.status == SessionLog.START:
                shown = {step: tags for step, tags in shown.items() if step < event.step}
            for value in event.summary.value:
                shown.setdefault(event.step, {}).setdefault(value.tag, []).append(value.simple_value)
    return shown


def _events(data: bytes) -> Iterator[Event]:
    """The events of a file's contents; each record is length, checksum, event, checksum."""
    begin = 0
    while begin + 16 <= len(data):
        (length,) = struct.unpack_from("<Q", data, begin)
        if begin + 16 + length > len(data):
            return
        try:
            yield Event.FromString(data[begin + 12 : begin + 12 + length])
        except DecodeError:  # damaged
            return
        begin += 16 + length
