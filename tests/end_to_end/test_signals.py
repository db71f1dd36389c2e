"""Ctrl-C and SIGTERM: a loadable checkpoint, the right exit code, nothing left running."""

import signal

import psutil
import pytest

from common.storage.checkpoints import load_newest_complete
from tests.conftest import num_lines, wait_until


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_signal_ends_training_after_a_checkpoint(start_learner, tiny, tmp_path, rows, signum, exit_code):
    run_dir = tmp_path / "run"
    process = start_learner(
        *tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", 10**9, "--checkpoint-interval", 10**6
    )
    metrics = run_dir / "metrics.jsonl"
    wait_until(lambda: num_lines(metrics) >= 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert process.returncode == exit_code, out + err
    assert err.strip() == f"learner: stopped by {signum.name}; continue with --resume {run_dir}"
    newest = load_newest_complete(run_dir / "checkpoints", on_damaged=pytest.fail)
    assert newest.policy_version == rows(metrics)[-1]["policy_version"] >= 3
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
