"""A run directory that fails while training: training goes on, and writing resumes when it can."""

import signal

import psutil

from common.storage.checkpoints import list_checkpoints, load_newest_complete
from tests.conftest import LOW_PRIORITY, assert_signal_ends_training_after_a_checkpoint, num_lines, wait_until


def break_checkpoints(run_dir, moved):
    """Works for root as well: a file stands where the directory of checkpoints should be."""
    (run_dir / "checkpoints").rename(moved)
    (run_dir / "checkpoints").write_text("")


def test_training_goes_on_without_a_disk_and_writes_again_when_there_is_one(start_learner, tiny, tmp_path, rows):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    process = start_learner(*tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", 10**9, prefix=LOW_PRIORITY)
    wait_until((run_dir / "checkpoints" / "00000002" / "manifest.json").exists, process)
    break_checkpoints(run_dir, moved)
    before = num_lines(run_dir / "metrics.jsonl")
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") > before + 6, process)
    (learner,) = psutil.Process(process.pid).children()
    learner.suspend()  # it would create the directory as soon as nothing is in its place
    (run_dir / "checkpoints").unlink()
    moved.rename(run_dir / "checkpoints")
    learner.resume()
    newest = list_checkpoints(run_dir / "checkpoints")[-1]
    wait_until(lambda: list_checkpoints(run_dir / "checkpoints")[-1] > newest, process)
    out = assert_signal_ends_training_after_a_checkpoint(process, signal.SIGTERM, run_dir)
    assert out.count("warning: checkpoints cannot be written to ") == 1  # told once, however often it was tried
    metrics = rows(run_dir / "metrics.jsonl")
    assert [row["policy_version"] for row in metrics] == list(range(1, len(metrics) + 1))


def test_run_whose_end_cannot_be_written_says_so_and_fails(start_learner, tiny, tmp_path):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    process = start_learner(*tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", 64 * 40)
    wait_until((run_dir / "checkpoints" / "00000002" / "manifest.json").exists, process)
    break_checkpoints(run_dir, moved)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    newest = load_newest_complete(moved, on_damaged=lambda line: None)
    assert len(err.splitlines()) == 1 and "cannot be written to" in err
    assert f"the newest is policy_version {newest.policy_version}" in err
    assert num_lines(run_dir / "metrics.jsonl") == 40
