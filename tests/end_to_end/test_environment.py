"""A run with what shells, notebooks and other projects leave in the environment, and one submitted as a Ray job."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import free_ports, kill_all
from tests.end_to_end.ray_heads import WORKER_ENVIRONMENT

PROJECT = Path(__file__).parents[2]
RAY = (sys.executable, "-m", "ray.scripts.scripts")


def test_run_needs_nothing_of_its_inherited_environment(run_learner, rows, tiny, tmp_path):
    inherited = {
        "HOME": "/dev/null",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error::UserWarning",
        "RAY_REDIS_ADDRESS": "127.0.0.1:9",
        "RAY_RUNTIME_ENV_HOOK": "nosuch.hook",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": '{"runtime_env": {"working_dir": "gcs://_ray_pkg_none.zip"}, "metadata": {}}',
        "RAY_USE_TLS": "1",
        "TMPDIR": "/nonexistent",
        "http_proxy": "http://127.0.0.1:9",
    }
    result = run_learner(*tiny, "--run-dir", tmp_path / "run", "--total-frames", 100, **inherited)
    assert result.returncode == 0, result.stdout + result.stderr
    assert rows(tmp_path / "run" / "evaluations.jsonl")[-1]["policy_version"] == 2
    rounded = "training 128 frames (2 updates): --total-frames 100 is rounded up to whole updates of 64 frames"
    assert rounded in " ".join(result.stdout.split())


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The address of the dashboard of a cluster on this machine, to which jobs are submitted."""
    # Short, because socket paths may have 107 bytes; not Ray's own, where the cluster would be found by others.
    directory = tempfile.mkdtemp(prefix="heldout-", dir="/tmp")
    # Of this cluster alone: an agent whose port another cluster's agent holds accepts no jobs.
    gcs, port, agent, client = free_ports(4)
    start = (
        *("start", "--head", "--block", "--num-cpus", 2, "--port", gcs, "--dashboard-port", port),
        *("--dashboard-agent-listen-port", agent, "--ray-client-server-port", client),
    )
    head = subprocess.Popen(
        [*RAY, *map(str, start), "--object-store-memory", str(400 << 20), "--temp-dir", f"{directory}/r"],
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **WORKER_ENVIRONMENT},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline and head.poll() is None, "Ray's dashboard does not start"
                time.sleep(0.5)
        yield address
    finally:
        head.send_signal(signal.SIGTERM)
        try:
            head.wait(60)
        finally:
            kill_all([head])
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.skipif(find_spec("aiohttp_cors") is None, reason="needs ray[default], which has the job API")
def test_run_submitted_as_a_job_with_its_working_directory_trains(dashboard, tiny, tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    for package in ("actors", "common", "evaluator", "learner"):
        (code / package).symlink_to(PROJECT / package)
    flags = [*tiny, "--run-dir", str(tmp_path / "run"), "--total-frames", "64", "--no-evaluator"]
    command = [*RAY, "job", "submit", "--address", dashboard, "--working-dir", str(code), "--", sys.executable]
    deadline = time.monotonic() + 90
    while True:  # the dashboard answers before it can start jobs
        submitted = subprocess.run(
            [*command, "-m", "learner", *flags, "--allow-unauthenticated"],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=200,
        )
        if "No available agent" not in submitted.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert (tmp_path / "run" / "checkpoints" / "00000001").is_dir()
