"""The fault drill without the faults that take a minute: each fault is survived, and the counters add up."""

import json
import subprocess
import sys
from pathlib import Path

from drills.drill import adds_up

PROJECT = Path(__file__).parents[2]


def test_faults_of_the_short_drill_are_survived_and_counted(tmp_path):
    command = [sys.executable, "-m", "drills.drill", "--short", "--json", str(tmp_path / "drill.json")]
    drill = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=550)
    assert drill.returncode == 0, drill.stdout + drill.stderr
    outcomes = json.loads((tmp_path / "drill.json").read_text())
    assert [outcome["fault"] for outcome in outcomes] == [
        "evaluator SIGKILL",
        "actor SIGKILL",
        "actor SIGSTOP",
        "actor without memory",
        "all actors SIGKILL",
        "TensorBoard directory deleted",
        "checkpoints cannot be written",
        "second learner on the run",
        "learner SIGKILL, torn last line",
        "SIGTERM",
    ]
    assert all(outcome["adds_up"] == "yes" for outcome in outcomes)
    happened = {outcome["fault"]: outcome["happened"] for outcome in outcomes}
    assert "refused" in happened["second learner on the run"]
    assert happened["SIGTERM"].startswith("exit code 143")


def test_drill_notices_counters_that_do_not_add_up():
    counters = dict.fromkeys(
        ("actor_restarts", "actors_hung", "dropped_for_lag", "skipped_updates", "lost_rollouts"), 0
    )
    before = {"policy_version": 1, "frames": 256, **counters}
    after = {"policy_version": 2, "frames": 512, **counters, "actor_restarts": 1, "lost_rollouts": 1}
    assert adds_up([before, after], before, after, {"actor_restarts": 1}) == "yes"
    assert adds_up([before, after, after], before, after, {"actor_restarts": 1}) == "versions have gaps or duplicates"
    assert adds_up([before, after], before, after, {}) == (
        "actor_restarts +1 instead of +0; lost_rollouts +1, at most 0"
    )
    skewed = {**after, "frames": 500}
    assert adds_up([before, skewed], before, skewed, {"actor_restarts": 1}) == "frames are not versions times batch"
