"""A run directory that fails while training: training stops, the newest checkpoint is intact."""

import time

from common.checkpoints import load_newest_complete


def test_a_run_directory_that_fails_stops_training_with_the_newest_checkpoint_intact(start_learner, tiny, tmp_path):
    run_dir = tmp_path / "run"
    process = start_learner(*tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", 10**9)
    deadline = time.monotonic() + 90
    while not (run_dir / "checkpoints" / "00000002" / "manifest.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    # Works for root as well: a file stands where the directory of checkpoints should be.
    (run_dir / "checkpoints").rename(tmp_path / "moved")
    (run_dir / "checkpoints").write_text("")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert len(err.splitlines()) == 1
    assert "cannot be written" in err and "training stopped, the newest checkpoint is policy_version " in err
    newest = load_newest_complete(tmp_path / "moved", on_damaged=lambda line: None)
    assert newest is not None and f"policy_version {newest.policy_version}" in err
