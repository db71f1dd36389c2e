"""The short fault drill: each fault is survived, and the counters add up.

Left out is what takes a minute, what test_cluster_drill.py runs, and what has a faster or stricter test elsewhere: a
killed learner and suspension (test_resume.py), one actor that dies or hangs (test_cluster.py), no HOME
(test_environment.py), a damaged checkpoint (test_checkpoints.py), a lost disk (test_disk.py), full disks
(test_run_log.py, test_checkpoints.py), Ray's deleted files (test_fleet.py). `ray stop` and a killed raylet end the
learner like the lost head of test_cluster_drill.py; each would cost another start.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from common.resolution import resolve
from common.storage.checkpoints import save_checkpoint
from common.storage.run_directory import RunDirectory
from drills.outcome import adds_up, newest_update_survived

PROJECT = Path(__file__).parents[2]


def test_faults_of_the_short_drill_are_survived_and_counted(tmp_path):
    command = [sys.executable, "-m", "drills.drill", "--short", "--json", str(tmp_path / "drill.json")]
    drill = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=550)
    assert drill.returncode == 0, drill.stdout + drill.stderr
    outcomes = json.loads((tmp_path / "drill.json").read_text())
    assert [outcome["fault"] for outcome in outcomes] == [
        "evaluator SIGKILL",
        "actor without memory",
        "all actors SIGKILL",
        "TensorBoard directory deleted",
        "second learner on the run",
        "SIGTERM",
    ]
    assert [outcome["survived"] for outcome in outcomes] == ["n.a."] * 5 + ["yes"]
    assert all(outcome["adds_up"] == "yes" for outcome in outcomes)
    happened = {outcome["fault"]: outcome["happened"] for outcome in outcomes}
    assert "refused" in happened["second learner on the run"]


def test_drill_notices_counters_that_do_not_add_up():
    counters = dict.fromkeys(
        ("actor_restarts", "actors_hung", "dropped_for_lag", "skipped_updates", "lost_rollouts"), 0
    )
    before = {"policy_version": 1, "frames": 256, **counters}
    after = {"policy_version": 2, "frames": 512, **counters, "actor_restarts": 1, "lost_rollouts": 1}
    assert adds_up([before, after], before, after, {"actor_restarts": 1}, 256) == "yes"
    assert (
        adds_up([before, after, after], before, after, {"actor_restarts": 1}, 256) == "versions have gaps or duplicates"
    )
    assert adds_up([before, after], before, after, {}, 256) == (
        "actor_restarts +1 instead of +0; lost_rollouts +1, at most 0"
    )
    skewed = {**after, "frames": 500}
    assert (
        adds_up([before, skewed], before, skewed, {"actor_restarts": 1}, 256) == "frames are not versions times batch"
    )


def test_drill_notices_that_more_than_one_update_was_lost(tmp_path):
    run = RunDirectory(tmp_path)
    assert newest_update_survived(run, 1) == "no"
    for directory, version in ((run.checkpoints, 5), (run.resume_points, 7)):
        save_checkpoint(directory, resolve("lab", {"num_actors": 2}), version, 0, {"w": np.zeros(1, np.float32)}, {})
    assert [newest_update_survived(run, newest) for newest in (7, 8, 9)] == ["yes", "yes", "no"]
    (run.resume_points / "00000007" / "learner.pt").write_bytes(b"damaged")
    assert [newest_update_survived(run, newest) for newest in (6, 7)] == ["yes", "no"]
