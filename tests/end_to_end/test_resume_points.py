"""After a death without warning a run loses at most the update in progress and one more, and continues bit for bit."""

import pytest
import torch

from common.storage.checkpoints import list_checkpoints, load_checkpoint
from tests.conftest import num_lines, wait_until

UPDATES = 3
# Updates take longer than a hundred resume points: one is written after every update.
SETTINGS = [
    *("--num-actors", "2", "--envs-per-actor", "16", "--unroll-length", "128", "--num-minibatches", "4"),
    *("--update-epochs", "1", "--num-levels", "20", "--checkpoint-interval", str(10**6), "--no-evaluator"),
    *("--mode", "sync", "--total-frames", str(UPDATES * 4096)),
]
KILLED_AFTER = 2
TIMES = ("time", "fps", "seconds_")


def without_times(row):
    return {name: value for name, value in row.items() if not name.startswith(TIMES)}


def assert_equal(one, other, where=""):
    """Nested dicts, lists and tensors, bit for bit. The bytes of learner.pt may differ although they are equal."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}/{i}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other, where


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
    assert_equal(*(load_checkpoint(path).learner_state for path in (ours, theirs)))
