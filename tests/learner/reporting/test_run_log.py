"""Rows that cannot be written wait, and are later written once and in order."""

import errno
import math

import pytest

from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import shown_points
from learner.reporting.run_log import RunLog


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def row(version, **values):
    return {"policy_version": version, "frames": version * 64, "time": 0.0, **values}


def versions(run):
    return [row["policy_version"] for row in read_jsonl(run.metrics)]


def test_rows_go_to_metrics_and_tensorboard(run):
    log = RunLog(run, purge_step=0)
    log.add(row(1, value_loss=0.5, episode_return=None, explained_variance=math.nan))
    log.close()
    assert read_jsonl(run.metrics) == [row(1, value_loss=0.5, episode_return=None, explained_variance=None)]
    (events,) = (run.tensorboard / "learner").iterdir()
    data = events.read_bytes()
    assert b"learner/value_loss" in data and b"learner/policy_version" in data
    for absent in (b"episode_return", b"explained_variance", b"learner/time", b"learner/frames"):
        assert absent not in data
    assert log.last_error is None and log.unwritten == 0


def test_rows_wait_for_a_failing_file_and_none_is_lost_or_written_twice(run):
    log = RunLog(run, purge_step=0)
    log.add(row(1))
    aside = run.metrics.rename(run.path / "aside")
    run.metrics.mkdir()
    for version in (2, 3):
        log.add(row(version))
    assert log.unwritten == 2 and str(run.path) in log.last_error and "metrics wait in memory" in log.last_error
    run.metrics.rmdir()
    aside.rename(run.metrics)
    log.add(row(4))
    assert versions(run) == [1, 2, 3, 4]
    assert log.unwritten == 0 and log.last_error is None
    log.close()


def test_failing_tensorboard_does_not_stop_metrics_and_catches_up(run):
    run.tensorboard.write_text("in the way")
    log = RunLog(run, purge_step=0)
    log.add(row(1, value_loss=1.0))
    log.add(row(2, value_loss=2.0))
    log.add_text("learner/bottleneck", "a line", 128)
    assert versions(run) == [1, 2] and log.last_error is not None
    run.tensorboard.unlink()
    log.close()
    (events,) = (run.tensorboard / "learner").iterdir()
    assert events.read_bytes().count(b"learner/value_loss") == 2
    assert log.last_error is None


def test_closing_tries_once_more(run):
    run.metrics.mkdir()
    log = RunLog(run, purge_step=0)
    log.add(row(1))
    run.metrics.rmdir()
    log.close()
    assert versions(run) == [1]


def test_row_that_was_written_in_part_is_shown_once(run, monkeypatch):
    log = RunLog(run, purge_step=0)
    log.add(row(1, value_loss=1.0))
    with monkeypatch.context() as patch:

        def full_after_one_point(values, step):
            write({"learner/value_loss": 9.0}, step)
            raise OSError(errno.ENOSPC, "No space left on device")

        write = log._events.add_scalars
        patch.setattr(log._events, "add_scalars", full_after_one_point)
        log.add(row(2, value_loss=2.0))
    log.close()
    shown = shown_points(run.tensorboard / "learner")
    assert len(shown) == 2 and {len(points) for tags in shown.values() for points in tags.values()} == {1}


@pytest.mark.parametrize("resumed_at", [0, 1, 2])
def test_every_step_is_shown_once_after_a_resume(run, resumed_at):
    frames = [row(version)["frames"] for version in (1, 2, 3)]
    first = RunLog(run, purge_step=0)
    for version in (1, 2, 3):
        first.add(row(version))
    first.close()
    resumed = RunLog(run, purge_step=([0, *frames][resumed_at]) + 1)
    for version in range(resumed_at + 1, 4):
        resumed.add(row(version))
    resumed.close()
    shown = shown_points(run.tensorboard / "learner")
    assert sorted(shown) == frames and {len(points) for tags in shown.values() for points in tags.values()} == {1}
