"""`python -m benchmarks.scaling` with two actors: its counts and sizes, not its timings."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.processes
PROJECT = Path(__file__).parents[2]
ROLLOUT_BYTES = 16 * 3 * 12305 + 3 * 12288
UPDATES = 4


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", *arguments], cwd=PROJECT, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    finished = run(
        *("--actors", "2", "--updates", str(UPDATES), "--collect-seconds", "0.02", "--update-seconds", "0.03"),
        *("--unroll-length", "16", "--envs-per-actor", "3"),
        *("--ingest-actors", "2", "--ingest-envs", "3", "--ingest-gigabytes", "0.001"),
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_each_mode_has_a_row_with_one_rollout_per_actor_and_update(result):
    assert [(row["mode"], row["actors"]) for row in result["sweep"]] == [("sync", 2), ("overlap", 2)]
    for row in result["sweep"]:
        assert row["updates"] == UPDATES
        assert row["rollouts"] == UPDATES * 2
        assert row["rollout_bytes"] == ROLLOUT_BYTES


def test_at_most_one_rollout_per_actor_is_in_flight(result):
    for row in result["sweep"] + result["ingest"]:
        assert 1 <= row["peak_rollouts_in_flight"] <= 2
        assert row["peak_bytes_in_flight"] == row["peak_rollouts_in_flight"] * ROLLOUT_BYTES


def test_policy_lag_is_what_the_mode_allows(result):
    assert [row["max_policy_lag"] for row in result["sweep"]] == [0, 1]


def test_memory_of_every_kind_of_process_is_measured(result):
    for row in result["sweep"]:
        parts = [row[f"pss_{part}"] for part in ("learner", "actors", "ray")]
        assert min(parts) > 0
        assert max(parts) < row["pss_all_together"] <= sum(parts)
        assert row["shared_memory_bytes"] >= ROLLOUT_BYTES


def test_step_that_limits_ingest_is_named(result):
    (row,) = result["ingest"]
    assert row["rollouts"] == row["updates"] * 2
    assert row["efficiency"] is None  # nothing slept
    assert row["bound_by"] in row["shares_of_an_update"]


def test_sleeping_actors_do_not_import_torch():
    code = "import sys, benchmarks.sleeping_actor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0


def test_case_that_needs_too_much_memory_is_refused_before_ray_starts():
    refused = run("--actors", "64", "--envs-per-actor", "16")
    assert refused.returncode == 2
    assert "GB of memory are needed" in refused.stderr
