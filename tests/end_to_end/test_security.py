"""Who can reach and read a run: an embedded Ray, a run directory, and a cluster without authentication.

A cluster with a token is tested in test_token_cluster.py, what we rely on in Ray's own authentication by
`drills/ray_upgrade.py`.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.storage.run_directory import RunDirectory
from learner.cluster.authentication import LOOPBACK
from tests.conftest import assert_signal_ends_training_after_a_checkpoint, wait_until
from tests.end_to_end.ray_heads import (
    HOST,
    PROJECT,
    WRONG_TOKEN,
    end,
    environment,
    readable_by_others,
    run,
    start_head,
    store_token,
)


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports on which a process and its descendants listen."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            sockets = each.net_connections("inet")
            found |= {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


def command_lines(process: psutil.Process) -> str:
    """The command lines that everyone on the host sees in `ps`."""
    lines = []
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(each.cmdline()))
    return "\n".join(lines)


def test_embedded_run_is_reachable_and_readable_only_by_its_user_and_ends_by_ctrl_c(tiny, tmp_path: Path) -> None:
    home, directory = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "learner", *tiny, "--total-frames", str(10**9), "--checkpoint-interval", "1000000"),
            *("--eval-episodes-per-level", "1", "--run-dir", str(directory)),
        ],
        env=environment(home),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        umask=0o022,
    )
    try:
        wait_until((directory / "evaluations.jsonl").exists, process)
        learner = psutil.Process(process.pid)
        addresses = {address.removeprefix("::ffff:") for address, _ in listening(learner)}
        sessions = {
            Path(word.split("=")[1]) for word in command_lines(learner).split() if word.startswith("--session-dir=")
        }
        assert_signal_ends_training_after_a_checkpoint(process, signal.SIGINT, directory)
    finally:
        end(process)
    assert addresses == {"127.0.0.1"}
    assert readable_by_others(directory) == []
    token = home / ".ray" / "auth_token"
    assert (token.stat().st_mode | token.parent.stat().st_mode) & 0o077 == 0
    # Ray's session directories are open to everyone; the one around them is not.
    assert sessions
    assert all(any(parent.stat().st_mode & 0o077 == 0 for parent in session.parents) for session in sessions)


def test_run_directory_created_by_the_user_keeps_its_mode(tmp_path: Path) -> None:
    made, not_made = tmp_path / "made", tmp_path / "not made"
    made.mkdir()
    made.chmod(0o755)  # whatever umask this process has
    umask = os.umask(0o077)
    try:
        for directory in (made, not_made):
            RunDirectory(directory).create()
    finally:
        os.umask(umask)
    assert [path.stat().st_mode & 0o777 for path in (made, not_made)] == [0o755, 0o700]


@pytest.fixture
def isolated_network() -> Iterator[list[str]]:
    """The prefix of a command that is to run in a network with only a loopback interface."""
    own_user = [] if os.getuid() == 0 else ["--map-root-user"]
    holder = subprocess.Popen(
        ["unshare", *own_user, "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep 300"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert holder.stdout is not None
        if (said := holder.stdout.readline().strip()) != "ready":
            pytest.skip(f"no network namespace can be made here: {said}")
        user = [] if os.getuid() == 0 else ["--user", "--preserve-credentials"]
        yield ["nsenter", "--target", str(holder.pid), "--net", *user, "--"]
    finally:
        holder.kill()
        holder.communicate()


def test_learner_refuses_a_cluster_open_to_its_network_unless_allowed(
    isolated_network: list[str], tiny: list[str], tmp_path: Path
) -> None:
    """Ray listens on every interface for a node at 127.0.0.2, so others could reach this cluster."""
    assert HOST not in LOOPBACK
    home = tmp_path / "home"
    store_token(home, WRONG_TOKEN)  # our having a token does not make the cluster require one
    temp = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    env = environment(home, RAY_AUTH_MODE="disabled")
    process = start_head(temp / "head.log", temp / "ray", env, "--port", 6379, prefix=isolated_network)
    learner = (
        *(*isolated_network, sys.executable, "-m", "learner", *tiny, "--total-frames", "64", "--no-evaluator"),
        *("--address", f"{HOST}:6379", "--run-dir", tmp_path / "run"),
    )
    try:
        for mode in ({}, {"RAY_AUTH_MODE": "token"}):
            refused = run(*learner, env=environment(home, **mode))
            assert refused.returncode == 2, refused.stdout + refused.stderr
            assert len(refused.stderr.splitlines()) == 1
            assert f"runs without authentication on {HOST}: anyone who reaches its ports can run code" in refused.stderr
            assert "--allow-unauthenticated" in refused.stderr
            assert not (tmp_path / "run").exists()
        trained = run(*learner, "--allow-unauthenticated", env=environment(home, RAY_AUTH_MODE="token"))
    finally:
        end(process)
        shutil.rmtree(temp, ignore_errors=True)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert (trained.stdout + trained.stderr).count("anyone who reaches its ports can run code") == 1
