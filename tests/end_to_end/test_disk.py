"""A run directory that fails: training goes on, writing resumes when it can, and a lost end is an error."""

import psutil

from common.storage.checkpoints import list_checkpoints
from common.storage.run_directory import RunDirectory
from tests.conftest import TINY_BATCH, num_lines, slow_actor, wait_until


def break_checkpoints(run_dir, moved):
    """Works for root as well: a file stands where the directory of checkpoints should be."""
    (run_dir / "checkpoints").rename(moved)
    (run_dir / "checkpoints").write_text("")


def restore_checkpoints(run_dir, moved, learner):
    learner.suspend()  # it would create the directory as soon as nothing is in its place
    (run_dir / "checkpoints").unlink()
    moved.rename(run_dir / "checkpoints")
    learner.resume()


def test_lost_disk_does_not_stop_training_but_a_lost_end_is_an_error(start_learner, tiny, tmp_path, rows):
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    checkpoints, metrics, updates = run_dir / "checkpoints", run_dir / "metrics.jsonl", 60
    process = start_learner(*tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", TINY_BATCH * updates)
    wait_until((checkpoints / "00000002" / "manifest.json").exists, process)
    break_checkpoints(run_dir, moved)
    with slow_actor(process):  # a checkpoint that cannot be written is tried again after ten seconds
        before = num_lines(metrics)
        wait_until(lambda: num_lines(metrics) > before + 6, process)
        restore_checkpoints(run_dir, moved, *psutil.Process(process.pid).children())
        newest = list_checkpoints(checkpoints)[-1]
        wait_until(lambda: list_checkpoints(checkpoints)[-1] > newest, process)
    break_checkpoints(run_dir, moved)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 1, out + err
    assert out.count("warning: checkpoints cannot be written to ") == 2  # once each, however often it was tried
    saved = [*list_checkpoints(moved), *list_checkpoints(RunDirectory(run_dir).resume_points)]
    assert len(err.splitlines()) == 1 and "cannot be written to" in err
    assert f"the newest is policy_version {max(int(path.name) for path in saved)}" in err
    assert [row["policy_version"] for row in rows(metrics)] == list(range(1, updates + 1))
