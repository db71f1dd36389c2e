"""End signals: a loadable checkpoint, the right exit code, nothing left running.

SIGINT ends a run of test_security.py, SIGTERM the short drill, SIGUSR1 a run of test_resume.py, SIGHUP one here.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.storage.checkpoints import load_newest_complete
from tests.conftest import num_lines, wait_until

PROJECT = Path(__file__).parents[2]


def test_a_closed_terminal_ends_a_run_after_a_checkpoint(tiny, tmp_path, rows):
    """Every process of the job receives SIGHUP, twice, and nothing can be written on the terminal any more."""
    run_dir = tmp_path / "run"
    command = [*tiny, "--run-dir", run_dir, "--no-evaluator", "--total-frames", 10**9, "--checkpoint-interval", 10**6]
    master, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "learner", *map(str, command)],
        cwd=PROJECT, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    os.close(terminal)
    metrics = run_dir / "metrics.jsonl"
    try:
        wait_until(lambda: num_lines(metrics) >= 3, process)
        assert b"update 1/" in os.read(master, 1 << 16)
        os.close(master)
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGHUP)
        assert process.wait(120) == 129
    finally:
        process.kill()  # and with it the learner, its child
        process.wait()
    newest = load_newest_complete(run_dir / "checkpoints", on_damaged=pytest.fail)
    assert newest.policy_version == rows(metrics)[-1]["policy_version"] >= 3
    log = (run_dir / "learner.log").read_text()
    assert "exit code 129: stopped by SIGHUP" in log and "Traceback" not in log


def test_ctrl_c_ends_waiting_for_a_cluster(start_learner, tmp_path):
    flags = ("--address", "127.0.0.1:1", "--cluster-timeout", 3600, "--run-dir", tmp_path / "run")
    process = start_learner(*flags)
    assert "no Ray cluster answers yet" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert err == "learner: stopped by SIGINT; training had not begun\n"
    assert not (tmp_path / "run").exists()


NOTEBOOK = """
import logging, os, ray, signal, sys, torch
from learner.main import main
mask = os.umask(0o022)
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
def state():
    umask = os.umask(0o022); os.umask(umask)
    return (umask, dict(os.environ), [signal.getsignal(n) for n in range(1, 32)], torch.get_num_threads(),
            logging.getLogger().handlers[:], logging.getLogger("learner").level, sys.stdout, sys.stderr)
before = state()
code = main(sys.argv[1:])
assert state() == before
assert ray.is_initialized() and ray.get(ray.remote(lambda: 5).remote()) == 5
ray.shutdown()
sys.exit(code)
"""


def test_the_ray_of_a_notebook_is_left_alone(tiny, tmp_path):
    command = [sys.executable, "-c", NOTEBOOK, *tiny, "--run-dir", str(tmp_path / "run")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    line = "learner: Ray is already running in this process; run python -m learner as its own process"
    assert result.returncode == 2 and result.stderr.splitlines()[-1] == line, result.stderr
    assert not (tmp_path / "run").exists()
