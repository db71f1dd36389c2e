"""After a death without warning a run loses at most the update in progress and one more, and continues bit for bit."""

import pytest

from common.storage.checkpoints import list_checkpoints, load_checkpoint
from tests.conftest import assert_bit_equal, num_lines, wait_until

UPDATES = 3
# Updates take longer than a hundred resume points, which are small with impoola: one is written after every update.
SETTINGS = [
    *("--num-actors", "1", "--envs-per-actor", "16", "--unroll-length", "64", "--num-minibatches", "2"),
    *("--update-epochs", "2", "--encoder", "impoola", "--num-levels", "20"),
    *("--checkpoint-interval", str(10**6), "--no-evaluator"),
    *("--mode", "sync", "--total-frames", str(UPDATES * 1024)),
]
KILLED_AFTER = 2
TIMES = ("time", "fps", "seconds_")


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith(TIMES)}


@pytest.mark.timeout(280)
def test_killed_run_resumes_at_its_newest_update_and_is_bit_exact(start_learner, run_learner, tmp_path, rows):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    assert run_learner(*SETTINGS, "--run-dir", whole).returncode == 0
    process = start_learner(*SETTINGS, "--run-dir", run_dir)
    wait_until(lambda: num_lines(run_dir / "metrics.jsonl") >= KILLED_AFTER, process)
    process.kill()
    process.communicate()
    completed = rows(run_dir / "metrics.jsonl")[-1]["policy_version"]
    assert [path.name for path in list_checkpoints(run_dir / "checkpoints")] == ["00000000"]
    result = run_learner("--resume", run_dir)
    assert result.returncode == 0, result.stderr
    resumed_at = int(result.stdout.split("resumed at policy_version ")[1].split(",")[0])
    assert resumed_at >= completed - 1
    before, after = (rows(path / "metrics.jsonl") for path in (whole, run_dir))
    assert [without_times(row) for row in after] == [without_times(row) for row in before]
    ours, theirs = (path / "checkpoints" / f"{UPDATES:08d}" for path in (run_dir, whole))
    assert (ours / "policy.safetensors").read_bytes() == (theirs / "policy.safetensors").read_bytes()
    # The bytes of learner.pt may differ although what they hold is equal.
    assert_bit_equal(*(load_checkpoint(path).learner_state for path in (ours, theirs)))
