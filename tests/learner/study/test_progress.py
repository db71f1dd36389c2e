"""What a study prints in a pipe: who ends, how fast they were, and how long the rest takes."""

import io

import pytest
from rich.console import Console

from common.resolution import resolve
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.study.plan import Study, make_plan
from learner.study.progress import StudyProgress, status_lines

FRAMES = 16384
FLAGS = ("--total-frames", str(FRAMES), "--num-actors", "2")


@pytest.fixture
def plan():
    return make_plan(Study(("coinrun", "maze"), 2, {}, FLAGS))


@pytest.fixture
def lines(plan, tmp_path):
    """A function that lets a progress with `jobs` do something, and returns what it printed."""

    def printed(jobs, what_happens):
        console = Console(file=io.StringIO(), width=200)
        what_happens(StudyProgress(tmp_path, plan, [], jobs, console))
        return console.file.getvalue().splitlines()

    return printed


def train(run, directory, first, last, frames_per_second=256):
    """Writes the metrics of an update each 64 frames."""
    metrics = RunDirectory(run.directory(directory)).metrics
    metrics.parent.mkdir(parents=True, exist_ok=True)
    for frames in range(first, last + 1, 64):
        row = {"policy_version": frames // 64, "frames": frames, "time": 1000 + frames / frames_per_second}
        append_jsonl(metrics, row)


def test_time_left_is_what_finished_runs_took_with_their_start_and_last_score(lines, plan, tmp_path):
    def first_run_finishes(progress):
        progress.started(plan.runs[0])
        train(plan.runs[0], tmp_path, 64, FRAMES)
        progress.finished(plan.runs[0], 100.0)  # of which it trained for 64

    assert lines(1, first_run_finishes) == [
        f"started   {plan.runs[0].name}",
        f"finished  {plan.runs[0].name} in 1 min 40 s, 256 frames/s; 1 of 4 done, 0 running, 0 failed, left 5 min 00 s",
    ]


def test_time_left_of_runs_side_by_side_is_divided_by_their_number(lines, plan, tmp_path):
    def first_of_two_finishes(progress):
        for run in plan.runs[:2]:
            progress.started(run)
        train(plan.runs[0], tmp_path, 64, FRAMES)
        train(plan.runs[1], tmp_path, 64, FRAMES // 2)
        progress.finished(plan.runs[0], 100.0)

    # 2.5 runs of 100 s, two at a time
    assert lines(2, first_of_two_finishes)[-1].endswith(
        "256 frames/s; 1 of 4 done, 1 running, 0 failed, 256 frames/s, left 2 min 05 s"
    )


def test_frames_of_an_earlier_attempt_do_not_count_as_fast(lines, plan, tmp_path):
    def rest_is_trained(progress):
        train(plan.runs[0], tmp_path, 64, FRAMES // 2)
        progress.started(plan.runs[0])
        train(plan.runs[0], tmp_path, FRAMES // 2 + 64, FRAMES)
        progress.finished(plan.runs[0], 50.0)

    assert lines(1, rest_is_trained)[-1].endswith("left 5 min 00 s")


def test_before_the_first_run_is_finished_its_speed_counts(lines, plan, tmp_path):
    def second_run_fails(progress):
        for run in plan.runs[:2]:
            progress.started(run)
        train(plan.runs[0], tmp_path, 64, FRAMES // 2)
        progress.failed(plan.runs[1], "no room")

    # 2.5 runs at 256 frames/s
    assert lines(2, second_run_fails)[-1] == (
        f"failed    {plan.runs[1].name}: no room; 0 of 4 done, 1 running, 1 failed, 256 frames/s, left 2 min 40 s"
    )


def test_status_says_that_a_run_waits_for_its_last_score(plan, tmp_path):
    train(plan.runs[0], tmp_path, 64, FRAMES)
    config = resolve("lab", {"total_frames": FRAMES, "num_actors": 2, "envs_per_actor": 32})
    RunDirectory(plan.runs[0].directory(tmp_path)).write_config(config, {})
    lines = status_lines(tmp_path, plan, now=1000 + FRAMES / 256 + 61)
    assert lines[0] == f"running   {plan.runs[0].name}  16,384 of 16,384 frames (100%), waiting for its last score"
    assert lines[-1] == "4 runs: 1 running, 3 waiting; - frames/s, left -"
