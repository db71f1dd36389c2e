"""What a run's files say: finished, running, failed, stopped or waiting; also of a copy and after a crash."""

import json
import os
import shutil
import time

import pytest

from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.study import run_files
from learner.study.run_files import RunStatus
from tests.conftest import tiny_config

NOW = 1_000_000.0
FRAMES = 320


@pytest.fixture
def run(tmp_path):
    """A run of 5 updates of 64 frames that has begun."""
    run = RunDirectory(tmp_path / "seed-0")
    run.path.mkdir()
    run.write_config(tiny_config(total_frames=FRAMES), {})
    return run


def status(run, now=None, frames=FRAMES) -> RunStatus:
    return run_files.status(run, frames, now)


def is_finished(run, frames=FRAMES):
    return run_files.is_finished(run, frames)


def train(run, updates, newest=NOW):
    for version in range(1, updates + 1):
        append_jsonl(
            run.metrics,
            {"policy_version": version, "frames": 64 * version, "time": newest - 2 * (updates - version), "more": "x"},
        )


def test_run_that_has_not_begun_waits(tmp_path):
    assert status(RunDirectory(tmp_path / "seed-0"), NOW).state == "waiting"


def test_run_with_its_last_update_and_score_is_finished(run):
    train(run, 5)
    assert not is_finished(run)
    append_jsonl(run.evaluations, {"policy_version": 4})
    assert not is_finished(run)
    append_jsonl(run.evaluations, {"policy_version": 5})
    assert is_finished(run)
    assert status(run, NOW + 1e6).state == "finished"


def test_run_without_evaluator_is_finished_with_its_last_checkpoint(run):
    run.write_config(tiny_config(total_frames=FRAMES, evaluator=False), {})
    train(run, 5)
    assert not is_finished(run)
    (run.checkpoints / "00000005").mkdir(parents=True)
    (run.checkpoints / "00000005" / "manifest.json").write_text("{}")
    assert is_finished(run)


def test_run_with_fewer_frames_than_planned_is_not_finished(run):
    train(run, 5)
    append_jsonl(run.evaluations, {"policy_version": 5})
    assert is_finished(run, FRAMES) and not is_finished(run, FRAMES + 1)
    assert status(run, NOW + 1e6, FRAMES + 1).state == "stopped"


@pytest.mark.parametrize("name", ["metrics", "evaluations", "config"])
def test_file_that_cannot_be_read_makes_the_run_a_failed_one(run, name):
    train(run, 5)
    append_jsonl(run.evaluations, {"policy_version": 5})
    path = getattr(run, name)
    path.unlink()
    path.mkdir()
    failed = status(run, NOW)
    assert failed.state == "failed" and str(path) in failed.reason and "Is a directory" in failed.reason


def test_run_with_a_recent_update_is_running_at_its_speed(run):
    train(run, 3)
    now = status(run, NOW + 10)
    assert (now.state, now.frames, now.fps) == ("running", 192, pytest.approx(32.0))


def test_run_without_a_recent_update_and_without_a_note_has_stopped(run):
    train(run, 3)
    assert status(run, NOW + 59).state == "running"
    late = status(run, NOW + 61)
    assert late.state == "stopped" and late.reason == "ended without a message"
    run.learner_log.write_text("the first line\nlearner: the last line\n")
    assert status(run, NOW + 61).reason == "learner: the last line"


def test_run_that_waits_for_its_last_score_is_running(run):
    train(run, 5)
    for now in (NOW + 61, NOW + 899):  # --eval-timeout is 600 s
        assert status(run, now) == RunStatus("running", FRAMES, None, "waiting for its last score")
    assert status(run, NOW + 901).state == "stopped"
    run.write_config(tiny_config(total_frames=FRAMES, evaluator=False), {})
    assert status(run, NOW + 61).state == "stopped"


def test_run_that_was_resumed_for_its_last_score_is_running(run):
    train(run, 5)
    assert status(run).state == "stopped"
    run_files.note_start(run.path)
    assert status(run).reason == status(run, time.time() + 800).reason == "waiting for its last score"
    assert status(run, time.time() + 901).state == "stopped"


def test_run_that_was_started_and_has_no_update_yet_is_running(run):
    run_files.note_start(run.path)
    assert status(run, time.time() + 290).state == "running"
    assert status(run, time.time() + 310).state == "stopped"


def test_run_that_was_resumed_and_has_no_new_update_yet_is_running(run):
    train(run, 3)
    run_files.note_start(run.path)
    assert status(run, time.time() + 290).state == "running"
    assert status(run, time.time() + 310).state == "stopped"


def test_run_whose_updates_end_soon_after_its_start_has_stopped(run):
    run_files.note_start(run.path)
    newest = time.time() + 10
    train(run, 3, newest)
    assert status(run, newest + 59).state == "running"
    assert status(run, newest + 61).state == "stopped"


@pytest.mark.parametrize(
    ("exit_code", "was_stopped", "state"),
    [
        (1, False, "failed"),
        (143, True, "stopped"),
        (143, False, "failed"),
        (137, False, "failed"),
        (0, False, "stopped"),
    ],
)
def test_note_says_how_the_learner_ended(run, exit_code, was_stopped, state):
    run_files.note_start(run.path)
    run_files.note_end(run.path, exit_code, "learner: why", was_stopped)
    now = status(run)
    assert (now.state, now.reason) == (state, "learner: why")


@pytest.mark.parametrize(("exit_code", "state"), [(1, "failed"), (143, "stopped"), (0, "stopped")])
def test_older_note_that_does_not_say_whether_the_study_stopped_the_run_is_read(run, exit_code, state):
    note = {"started": 1.0, "ended": NOW, "exit_code": exit_code, "reason": "learner: why"}
    run_files.note_path(run.path).write_text(json.dumps(note))
    assert status(run, NOW).state == state


@pytest.mark.parametrize(
    "damage",
    [{"ended": "y"}, {"ended": None}, {"exit_code": None}, {"exit_code": "1"}, {"reason": 3}, {"started": "x"}],
    ids=str,
)
def test_note_with_a_wrong_type_counts_as_missing(run, damage):
    note = {"started": 1.0, "ended": NOW, "exit_code": 1, "reason": "learner: why"}
    path = run_files.note_path(run.path)
    path.write_text(json.dumps(note))
    assert status(run, NOW).state == "failed"
    path.write_text(json.dumps(note | damage))
    assert status(run, NOW).state == "waiting"
    run_files.note_end(run.path, 2, "learner: again", False)
    assert status(run, NOW).reason == "learner: again"


def test_note_is_ignored_when_another_learner_has_continued_the_run(run):
    run_files.note_end(run.path, 1, "learner: why", False)
    train(run, 3, newest=time.time() + 60)
    assert status(run, time.time() + 61).state == "running"


@pytest.mark.parametrize("state", ["finished", "running", "failed", "stopped", "waiting"])
def test_status_is_the_same_from_a_copy(run, tmp_path, state):
    if state != "waiting":
        train(run, 5 if state == "finished" else 3)
    if state == "finished":
        append_jsonl(run.evaluations, {"policy_version": 5})
    elif state == "failed":
        run_files.note_end(run.path, 1, "learner: why", False)
    elif state == "stopped":
        run.learner_log.write_text("learner: the last line\n")
    now = NOW + 1000 if state == "stopped" else NOW
    shutil.copytree(tmp_path, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (0, 0))  # a copy does not keep the times of files
    copied = status(RunDirectory(tmp_path / "copy" / "seed-0"), now)
    assert copied == status(run, now) and copied.state == state


def test_torn_and_foreign_rows_are_skipped(run):
    train(run, 2)
    with open(run.metrics, "a") as file:
        file.write('[1]\n{"frames": 3}\n')
        for wrong in ({"policy_version": "3"}, {"frames": None}, {"time": "now"}, {"policy_version": 3.5}):
            file.write(json.dumps({"policy_version": 3, "frames": 192, "time": NOW} | wrong) + "\n")
        file.write('{"policy_version": 3, "fra')
    assert [row["policy_version"] for row in run_files.recent_rows(run.metrics)] == [1, 2]


def test_only_the_end_of_a_long_file_is_read(run):
    row = {"policy_version": 1, "frames": 64, "time": NOW, "padding": "x" * 900}
    text = "".join(json.dumps(row | {"policy_version": version}) + "\n" for version in range(1, 3000))
    run.metrics.write_text(text)
    rows = run_files.recent_rows(run.metrics)
    assert rows[-1]["policy_version"] == 2999 and len(rows) <= 21


def test_damaged_settings_of_a_run_that_trains_are_reported(run):
    train(run, 3)
    run.config.write_text("{}")
    assert status(run, NOW).state == "failed" and "config.json" in status(run, NOW).reason


@pytest.mark.parametrize(("text", "line"), [("", ""), ("a\nb\n\n", "b"), ("a\nb", "b")])
def test_last_line_with_text(tmp_path, text, line):
    (tmp_path / "x.out").write_text(text)
    assert run_files.last_line(tmp_path / "x.out") == line
    assert run_files.last_line(tmp_path / "missing") == ""
