"""TensorBoard's files hold what was added, even if the directory or the disk failed in between."""

import io
import shutil
import struct
import time

import imageio.v3 as iio
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from common.storage.tensorboard import EventFile, shown_points


def events_in(directory):
    """Every event of every file, in order of files; a record is length, crc, data, crc."""
    events = []
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def scalars_in(directory):
    return [(v.tag, v.simple_value, e.step) for e in events_in(directory) for v in e.summary.value]


def test_scalars_text_and_pictures_are_read_back_at_their_step(tmp_path):
    file = EventFile(tmp_path / "learner")
    file.add_scalars({"a/x": 1.5, "a/y": -2.0}, 7)
    file.add_text("note", "a line", 8)
    png = io.BytesIO()
    iio.imwrite(png, np.full((4, 6, 3), 200, np.uint8), extension=".png")
    file.add_pictures({"p": png.getvalue()}, 9)
    file.close()
    events = [event for event in events_in(tmp_path / "learner") if event.summary.value]
    assert [(event.step, event.summary.value[0].tag) for event in events] == [
        (7, "a/x"),
        (7, "a/y"),
        (8, "note/text_summary"),
        (9, "p"),
    ]
    assert events[0].summary.value[0].simple_value == 1.5
    assert events[2].summary.value[0].tensor.string_val == [b"a line"]
    image = events[3].summary.value[0].image
    assert (image.height, image.width) == (4, 6) and (iio.imread(image.encoded_image_string) == 200).all()
    assert all(event.wall_time > 1e9 for event in events)


def test_events_are_in_the_file_when_the_call_returns(tmp_path):
    file = EventFile(tmp_path)
    file.add_scalars({"a": 1.0}, 1)
    assert scalars_in(tmp_path) == [("a", 1.0, 1)]
    file.close()


def test_deleted_directory_is_created_again(tmp_path):
    file = EventFile(tmp_path / "learner")
    file.add_scalars({"a": 1.0}, 1)
    shutil.rmtree(tmp_path / "learner")
    file.add_scalars({"a": 2.0}, 2)
    assert scalars_in(tmp_path / "learner") == [("a", 2.0, 2)]
    file.close()


def test_deleted_run_directory_is_not_created_again(tmp_path):
    file = EventFile(tmp_path / "run" / "tensorboard" / "learner")
    with pytest.raises(FileNotFoundError):
        file.add_scalars({"a": 1.0}, 1)
    assert not (tmp_path / "run").exists()


def test_failed_write_raises_os_error_and_later_writes_succeed(tmp_path):
    (tmp_path / "learner").write_text("in the way")
    file = EventFile(tmp_path / "learner")
    for _ in range(30):  # tensorboardX's own writer blocks forever at its eleventh call
        with pytest.raises(OSError, match="exists"):
            file.add_scalars({"a": 1.0}, 1)
    (tmp_path / "learner").unlink()
    file.add_scalars({"a": 2.0}, 2)
    assert scalars_in(tmp_path / "learner") == [("a", 2.0, 2)]
    file.close()


def test_files_of_the_same_second_do_not_overwrite_each_other(tmp_path):
    file = EventFile(tmp_path)
    for step in range(5):
        file.add_scalars({"a": float(step)}, step)
        file.close()
    assert sorted(scalars_in(tmp_path)) == [("a", float(step), step) for step in range(5)]


def test_resumed_run_writes_its_purge_step_once(tmp_path):
    file = EventFile(tmp_path, purge_step=100)
    file.add_scalars({"a": 1.0}, 101)
    file.close()
    file.add_scalars({"a": 2.0}, 102)
    starts = [event.step for event in events_in(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [100]
    file.close()


def points(directory):
    return {step: {tag: len(values) for tag, values in tags.items()} for step, tags in shown_points(directory).items()}


def test_purge_discards_its_step_and_later_ones_of_earlier_files(tmp_path):
    file = EventFile(tmp_path)
    for step in (64, 128, 192):
        file.add_scalars({"a": 1.0}, step)
    file.purge(129)  # resumed at 128
    file.add_scalars({"a": 1.0}, 192)
    file.close()
    assert points(tmp_path) == {64: {"a": 1}, 128: {"a": 1}, 192: {"a": 1}}
    again = EventFile(tmp_path, purge_step=128)
    again.add_scalars({"a": 1.0}, 256)
    again.close()
    assert points(tmp_path) == {64: {"a": 1}, 256: {"a": 1}}


def test_what_is_shown_ends_at_a_torn_or_damaged_record(tmp_path):
    assert points(tmp_path / "nowhere") == {}
    file = EventFile(tmp_path)
    file.add_scalars({"a": 1.0}, 1)
    file.close()
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damage in (b"\x08", struct.pack("<QI", 4, 0) + b"\xff\xff\xff\xff" + bytes(4), struct.pack("<QI", 99, 0)):
        path.write_bytes(whole + damage)
        assert points(tmp_path) == {1: {"a": 1}}


def test_file_of_a_host_whose_clock_is_behind_is_read_last(tmp_path, monkeypatch):
    clock = iter([5_000_000_000.0, 1_700_000_000.0])
    for step in (2, 1):
        now = next(clock)
        monkeypatch.setattr(time, "time", lambda now=now: now)
        file = EventFile(tmp_path, purge_step=step)
        file.add_scalars({"a": 1.0}, step)
        file.close()
    assert points(tmp_path) == {1: {"a": 1}}
