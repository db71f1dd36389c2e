"""A study with real learners: it trains, ends in order after a signal, continues, and its scores are compared."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from common.storage.checkpoints import load_newest_complete
from evaluator.__main__ import main as evaluator_main
from tests.conftest import num_lines, wait_until

PROJECT = Path(__file__).parents[2]


def test_study_is_stopped_with_checkpoints_continued_and_compared(tiny, tmp_path, rows, learners, capsys):
    study = tmp_path / "study"
    game, flags = tiny[1], [*tiny[2:], "--total-frames", str(64 * 30), "--checkpoint-interval", "30"]
    command = [sys.executable, "-m", "learner", "study", str(study)]

    def start(*arguments):
        process = subprocess.Popen(
            [*command, *arguments], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        learners.append(process)
        return process

    process = start("--games", game, "--seeds", "1", "--vary", "gamma=.9,.99", "--jobs", "2", "--", *flags)
    runs = [study / game / f"gamma={gamma}" / "seed-0" for gamma in (".9", ".99")]
    wait_until(lambda: all(num_lines(run / "metrics.jsonl") >= 3 for run in runs), process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    for run in runs:
        newest = load_newest_complete(run / "checkpoints", on_damaged=pytest.fail)
        assert newest.policy_version == rows(run / "metrics.jsonl")[-1]["policy_version"] >= 3
    process = start("--jobs", "2")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    assert "2 of 2 done" in out
    for run in runs:
        assert [row["policy_version"] for row in rows(run / "metrics.jsonl")] == list(range(1, 31))
    assert evaluator_main(["aggregate", str(study)]) == 0
    shown = capsys.readouterr().out
    assert "gamma=0.9 " in shown and "gamma=0.99" in shown and "1,920" in shown
