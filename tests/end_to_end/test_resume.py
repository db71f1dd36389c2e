"""A killed run goes on as if nothing had happened, bit for bit; `--resume auto` is all a restarting loop needs."""

import contextlib
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.resolution import resolve
from common.storage.checkpoints import list_checkpoints, load_checkpoint
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from learner.startup.flags import parse
from tests.conftest import (
    TINY_BATCH,
    assert_bit_equal,
    assert_signal_ends_training_after_a_checkpoint,
    num_lines,
    slow_actor,
    wait_until,
    without_times,
)

UPDATES = 8
# running_return, several minibatches and epochs, unfinished episodes: whatever state there is, is in use.
SETTINGS = [
    *("--env-name", "leaper"),
    *("--num-actors", "2", "--envs-per-actor", "4", "--unroll-length", "64", "--num-minibatches", "2"),
    *("--update-epochs", "2", "--num-levels", "20", "--checkpoint-interval", "3", "--no-evaluator"),
    *("--reward-transform", "running_return", "--mode", "sync", "--total-frames", str(UPDATES * 512)),
    *("--learning-rate-schedule", "linear"),
]
# Updates take longer than a hundred resume points, which are small with impoola, and coinrun is slow: one is written
# after every update, and no checkpoint.
LONG_UPDATES = 5
LONG_SETTINGS = [
    *SETTINGS,
    *("--env-name", "coinrun", "--encoder", "impoola", "--num-actors", "1", "--envs-per-actor", "16"),
    *("--total-frames", str(LONG_UPDATES * 1024), "--checkpoint-interval", str(10**6)),
]


def wait_for_rows(process, run_dir: Path, count: int) -> None:
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= count, process)


@dataclass(frozen=True)
class Orphan:
    """A process whose learner was killed, and the object stores that it had mapped."""

    process: psutil.Process
    stores: frozenset[Path]


def kill(process: subprocess.Popen) -> list[Orphan]:
    """SIGKILL to the learner alone; returns the processes that it had started."""
    orphans = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            mapped = {Path(one.path.removesuffix(" (deleted)")) for one in child.memory_maps()}
            stores = frozenset(path for path in mapped if path.parent == Path("/dev/shm"))
            orphans.append(Orphan(child, stores))
    process.kill()
    process.communicate()
    return orphans


@pytest.fixture(scope="module")
def left_behind():
    """What the killed learners of this file had started."""
    return []


@pytest.fixture(scope="module")
def uninterrupted(run_learner, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    result = run_learner(*LONG_SETTINGS, "--run-dir", run_dir)
    assert result.returncode == 0, result.stderr
    return run_dir


def assert_bit_equal_runs(run_dir, other):
    """Both have the same rows and end with the same checkpoint: policy, optimizer, generators and environments."""
    ours, theirs = (read_jsonl(path / "metrics.jsonl") for path in (run_dir, other))
    assert [without_times(row) for row in ours] == [without_times(row) for row in theirs]
    (our_last, their_last) = (list_checkpoints(path / "checkpoints")[-1] for path in (run_dir, other))
    assert our_last.name == their_last.name == f"{len(ours):08d}"
    assert (our_last / "policy.safetensors").read_bytes() == (their_last / "policy.safetensors").read_bytes()
    # The bytes of learner.pt may differ although what they hold is equal.
    assert_bit_equal(load_checkpoint(our_last).learner_state, load_checkpoint(their_last).learner_state)


def test_suspension_and_sigkill_change_no_bit_of_a_run(
    start_learner, run_learner, uninterrupted, tmp_path, rows, left_behind
):
    """All processes are suspended for longer than --actor-timeout; later the learner is killed. One command with
    `--resume auto` starts the run, resumes it, and says that it is finished.
    """
    run_dir = tmp_path / "run"
    metrics = run_dir / "metrics.jsonl"
    # Between config.json and the first checkpoint a kill leaves a directory from which nothing can be continued.
    overrides = parse(LONG_SETTINGS).overrides
    RunDirectory(run_dir).create()
    RunDirectory(run_dir).write_config(resolve("lab", overrides), {}, overrides)
    command = [*LONG_SETTINGS, "--actor-timeout", "15", "--resume", "auto", "--run-dir", run_dir]
    process = start_learner(*command)
    wait_for_rows(process, run_dir, 1)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone:
        one.suspend()
    before = rows(metrics)
    time.sleep(18)
    assert rows(metrics) == before and len(before) < LONG_UPDATES - 2
    for one in reversed(everyone):
        one.resume()
    wait_for_rows(process, run_dir, len(before) + 2)
    left_behind += kill(process)
    newest = rows(metrics)[-1]
    assert newest["actor_restarts"] == newest["lost_rollouts"] == 0
    assert [path.name for path in list_checkpoints(run_dir / "checkpoints")] == ["00000000"]
    with open(metrics, "ab") as torn:
        torn.write(b'{"policy_version": 999, "torn')
    (run_dir / "checkpoints" / ".00000099.1.tmp").mkdir()
    result = run_learner(*command)
    assert result.returncode == 0, result.stderr
    assert "it continues bit for bit" in result.stdout
    resumed_at = int(result.stdout.split("resumed at policy_version ")[1].split(",")[0])
    assert newest["policy_version"] - 1 <= resumed_at < LONG_UPDATES
    assert [row["policy_version"] for row in read_jsonl(metrics)] == list(range(1, LONG_UPDATES + 1))
    assert not list((run_dir / "checkpoints").glob(".*"))
    assert_bit_equal_runs(run_dir, uninterrupted)
    again = run_learner(*command)
    assert again.returncode == 0 and f"resumed at policy_version {LONG_UPDATES}" in again.stdout


OVERLAP = ["--mode", "overlap", "--max-policy-lag", "2"]


def test_overlap_mode_repeats_and_resumes_bit_for_bit_at_any_actor_speed(
    start_learner, run_learner, tmp_path, rows, left_behind
):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    settings = [*SETTINGS, *OVERLAP, "--unroll-length", 32, "--total-frames", UPDATES * 256]
    result = run_learner(*settings, "--run-dir", whole)
    assert result.returncode == 0, result.stderr
    process = start_learner(*settings, "--run-dir", run_dir)
    with slow_actor(process):
        wait_for_rows(process, run_dir, UPDATES // 2)
        left_behind += kill(process)
    result = run_learner("--resume", run_dir)
    assert result.returncode == 0, result.stderr
    assert "it continues bit for bit" in result.stdout
    metrics = rows(whole / "metrics.jsonl")
    assert [row["policy_lag"] for row in metrics] == [0, 1, *[2] * (UPDATES - 2)]
    assert metrics[0]["max_importance_weight"] == 1 < metrics[-1]["max_importance_weight"]
    assert_bit_equal_runs(run_dir, whole)


def test_overlap_run_with_the_newest_weights_says_that_its_resume_is_not_bit_exact(
    start_learner, run_learner, tiny, tmp_path, rows
):
    run_dir, updates = tmp_path / "run", 20
    process = start_learner(
        *(*tiny, *OVERLAP, "--repeatable", "no", "--objective", "standard", "--no-evaluator"),
        *("--learning-rate-schedule", "linear", "--total-frames", updates * TINY_BATCH, "--run-dir", run_dir),
    )
    wait_for_rows(process, run_dir, 5)
    assert_signal_ends_training_after_a_checkpoint(process, signal.SIGUSR1, run_dir)
    warning = "--objective standard does not correct for rollouts up to 2 versions old, which costs score"
    assert warning in (run_dir / "learner.log").read_text()
    result = run_learner("--resume", run_dir)
    assert result.returncode == 0, result.stderr
    assert "environments continue; not bit for bit, because actors use the newest weights" in result.stdout
    metrics = rows(run_dir / "metrics.jsonl")
    assert [row["policy_version"] for row in metrics] == list(range(1, updates + 1))
    assert max(row["max_policy_lag"] for row in metrics) <= 2 and "behavior_kl" not in metrics[-1]
    rates = [row["learning_rate"] for row in metrics]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == updates


def test_three_updates_in_a_row_that_are_not_finite_stop_the_run_and_are_kept(run_learner, tiny, tmp_path, rows):
    run_dir = tmp_path / "run"
    result = run_learner(
        *tiny, "--run-dir", run_dir, "--learning-rate", "1e30", "--total-frames", 64 * 50, "--no-evaluator"
    )
    assert result.returncode == 1, result.stdout
    assert result.stderr.startswith("learner: loss or gradient was not finite in 3 updates in a row")
    metrics = rows(run_dir / "metrics.jsonl")
    assert [row["skipped_updates"] for row in metrics][-3:] == [1, 2, 3]
    assert metrics[-1]["grad_norm"] is None or metrics[-1]["value_loss"] is None
    kept = list_checkpoints(run_dir / "diagnosis")
    assert len(kept) == 3 and all((path / "batch.safetensors").exists() for path in kept)
    newest = load_checkpoint(list_checkpoints(run_dir / "checkpoints")[-1])
    assert newest.policy_version == metrics[-1]["policy_version"]
    first = load_checkpoint(run_dir / "checkpoints" / "00000000")
    assert all((newest.weights[name] == first.weights[name]).all() for name in first.weights)


def test_killed_learner_leaves_no_process_and_no_shared_memory(left_behind):
    assert left_behind, "run the whole file: earlier tests kill the learners"
    # Ray's two agents look for their raylet for a minute before they end too.
    _, alive = psutil.wait_procs([orphan.process for orphan in left_behind], timeout=180)
    assert not alive
    stores = {path for orphan in left_behind for path in orphan.stores}
    assert stores and not [path for path in stores if path.exists()]
