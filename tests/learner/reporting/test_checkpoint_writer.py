"""Checkpoints reach the disk in order, on their own thread; a failing disk is tried again."""

import errno
import os

import numpy as np
import pytest
import torch

import learner.reporting.checkpoint_writer as checkpoint_writer
from common.resolution import resolve
from common.storage.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.reporting.checkpoint_writer import CheckpointWriter, Snapshot, on_host
from learner.reporting.resume_schedule import ResumeSchedule
from tests.conftest import PATIENCE, wait_until


@pytest.fixture(autouse=True)
def short_retries(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "RETRY_SECONDS", 0.05)


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path)


def snapshot(version):
    return Snapshot(version, version * 64, {"w": np.full(3, version, np.float32)}, {"learner": {"n": version}})


def new_writer(run, may_score=lambda version: False, **overrides):
    return CheckpointWriter(run, resolve("lab", {"num_actors": 2, **overrides}), may_score)


def versions(run):
    return [int(path.name) for path in list_checkpoints(run.checkpoints)]


def test_every_snapshot_is_written_and_announced_once_in_order(run):
    writer = new_writer(run)
    announced = []
    for version in range(20):  # faster than a disk: none may be skipped
        writer.put(snapshot(version))
        announced += writer.written()
    assert writer.close(PATIENCE)
    announced += writer.written()
    assert versions(run) == [notice.policy_version for notice in announced] == list(range(20))
    assert [notice.frames for notice in announced] == [version * 64 for version in range(20)]
    assert load_checkpoint(run.checkpoints / "00000007").learner_state == {"learner": {"n": 7}}
    assert writer.newest == 19 and writer.last_error is None and writer.written() == []


def test_failing_disk_sets_last_error_and_the_newest_is_written_afterwards(run):
    writer = new_writer(run)
    writer.put(snapshot(1))
    wait_until(lambda: writer.newest == 1)
    aside = run.checkpoints.rename(run.path / "aside")
    run.checkpoints.write_text("in the way")
    for version in (2, 3, 4):
        writer.put(snapshot(version))
        wait_until(lambda: writer.last_error is not None)
    assert "cannot be written to" in writer.last_error and "the newest is policy_version 1" in writer.last_error
    link = run.path / "link"
    link.symlink_to(aside)
    link.replace(run.checkpoints)  # in one step: as soon as nothing is in the way, the writer creates a directory
    wait_until(lambda: writer.newest == 4)
    assert writer.last_error is None
    assert writer.close(PATIENCE)
    assert versions(run)[0] == 1 and versions(run)[-1] == 4
    assert [notice.policy_version for notice in writer.written()] == versions(run)


def test_closing_tries_once_more_and_returns_whether_all_is_written(run):
    run.checkpoints.write_text("in the way")
    writer = new_writer(run)
    writer.put(snapshot(1))
    wait_until(lambda: writer.last_error is not None)
    assert not writer.close(PATIENCE)
    assert "none has been written" in writer.last_error
    run.checkpoints.unlink()
    writer = new_writer(run)
    writer.put(snapshot(1))
    assert writer.close(PATIENCE) and versions(run) == [1]


def test_write_that_fails_while_the_writer_is_closed_is_tried_once_more(run, monkeypatch):
    writer = new_writer(run)
    tries = []

    def save(*args):
        tries.append(args)
        if len(tries) == 1:
            wait_until(lambda: writer._is_closing)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save_checkpoint(*args)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save)
    writer.put(snapshot(1))
    wait_until(lambda: tries)
    assert writer.close(PATIENCE) and versions(run) == [1] and len(tries) == 2


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        ({}, list(range(10))),
        ({"keep_checkpoints": 3}, [0, 2, 7, 8, 9]),
        ({"keep_checkpoints": 1, "keep_every": 4}, [0, 2, 4, 8, 9]),
        ({"keep_checkpoints": 2, "backfill": True}, [0, 1, 2, 4, 6, 7, 8, 9]),
        ({"keep_checkpoints": 2, "evaluator": False}, [2, 8, 9]),
    ],
)
def test_newest_best_every_nth_and_with_backfill_unscored_checkpoints_are_kept(run, overrides, kept):
    writer = new_writer(run, **overrides)
    for version in range(3):
        writer.put(snapshot(version))
    # keep_checkpoints 1 may have deleted version 2 already; the link is what counts
    run.checkpoints.mkdir(exist_ok=True)
    run.best.symlink_to("00000002")
    for version in (3, 5):
        append_jsonl(run.evaluations, {"policy_version": version})
    append_jsonl(run.evaluations, {"policy_version": [1]})  # no evaluator's
    for version in range(3, 10):
        writer.put(snapshot(version))
    assert writer.close(PATIENCE)
    assert versions(run) == kept
    assert not list(run.checkpoints.glob(".*"))


def test_unscored_baseline_and_what_the_evaluator_may_score_are_kept(run):
    needed = {20}
    writer = new_writer(run, needed.__contains__, keep_checkpoints=1)
    for version in range(0, 50, 10):
        writer.put(snapshot(version))
        wait_until(lambda version=version: writer.newest == version)
    assert versions(run) == [0, 20, 40]
    needed.remove(20)  # it was skipped
    append_jsonl(run.evaluations, {"policy_version": 0})
    writer.put(snapshot(50))
    assert writer.close(30)
    assert versions(run) == [50]


def resume_points(run):
    return [int(path.name) for path in list_checkpoints(run.resume_points)]


def test_two_newest_resume_points_are_kept_and_none_is_announced(run, monkeypatch):
    monkeypatch.setattr(ResumeSchedule, "is_due", lambda self, now: True)
    writer = new_writer(run, keep_checkpoints=1)
    writer.put(snapshot(0))
    for version in range(1, 6):
        wait_until(writer.resume_point_is_due)
        writer.put_resume_point(snapshot(version))
    wait_until(lambda: writer.newest == 5)
    assert resume_points(run) == [4, 5] and versions(run) == [0]
    assert [notice.policy_version for notice in writer.written()] == [0]
    assert load_checkpoint(run.resume_points / "00000005").learner_state == {"learner": {"n": 5}}
    assert writer.close(30)


def test_waiting_checkpoint_is_written_before_a_resume_point_with_its_cost(run):
    writer = new_writer(run)
    assert writer.resume_point_is_due()
    writer.put_resume_point(Snapshot(1, 64, {"w": np.zeros(1, np.float32)}, {}, copy_seconds=60.0))
    assert not writer.resume_point_is_due()  # one is being written
    wait_until(lambda: writer.newest == 1)
    assert not writer.resume_point_is_due()  # a minute of copying is not paid back in a second
    writer.put(snapshot(2))
    assert writer.close(30)
    assert versions(run) == [2] and resume_points(run) == [1]


def test_failed_resume_point_is_reported_until_a_later_one_is_written(run, monkeypatch):
    monkeypatch.setattr(ResumeSchedule, "is_due", lambda self, now: True)
    writer = new_writer(run)
    run.resume_points.write_text("in the way")
    writer.put_resume_point(snapshot(1))
    wait_until(lambda: writer.resume_error is not None)
    assert f"resume points cannot be written to {run.resume_points}: File exists" in writer.resume_error
    assert writer.last_error is None and writer.newest == -1
    run.resume_points.unlink()
    wait_until(writer.resume_point_is_due)
    writer.put_resume_point(snapshot(2))
    wait_until(lambda: writer.newest == 2)
    assert writer.resume_error is None and resume_points(run) == [2]
    assert writer.close(30)


def test_copy_on_the_host_shares_nothing_with_its_source():
    source = {"a": [torch.ones(2), {"b": torch.zeros(1)}], "c": (1, 2.5, None, "text", True)}
    copy = on_host(source)
    source["a"][0].add_(1)
    source["a"][1]["b"].add_(1)
    assert copy["a"][0].tolist() == [1, 1] and copy["a"][1]["b"].tolist() == [0]
    assert copy["c"] == (1, 2.5, None, "text", True)
