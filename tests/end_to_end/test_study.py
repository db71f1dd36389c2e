"""A study with a real learner: it trains, stops cleanly after a signal, and continues."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.storage.checkpoints import load_newest_complete
from tests.conftest import PATIENCE, num_lines, wait_until

PROJECT = Path(__file__).parents[2]


def test_study_is_stopped_with_a_checkpoint_and_continued(tiny, tmp_path, rows, popen):
    study = tmp_path / "study"
    game, flags = tiny[1], [*tiny[2:], "--total-frames", str(64 * 15), "--checkpoint-interval", "15", "--no-evaluator"]
    command = [sys.executable, "-m", "learner", "study", str(study)]

    def start(*arguments):
        return popen(
            [*command, *arguments], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    process = start("--games", game, "--seeds", "1", "--vary", "gamma=.9", "--", *flags)
    run = study / game / "gamma=.9" / "seed-0"
    wait_until(lambda: num_lines(run / "metrics.jsonl") >= 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, out + err
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert not alive
    newest = load_newest_complete(run / "checkpoints", on_damaged=pytest.fail)
    assert newest.policy_version == rows(run / "metrics.jsonl")[-1]["policy_version"] >= 3
    process = start()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert "1 of 1 done" in out
    assert [row["policy_version"] for row in rows(run / "metrics.jsonl")] == list(range(1, 16))
