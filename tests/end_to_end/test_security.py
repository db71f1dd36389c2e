"""Who can join a cluster and read a run: a real Ray head with a token, strangers, and an embedded Ray.

What we rely on in Ray's own authentication is checked by `drills/ray_upgrade.py`.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.storage.run_directory import RunDirectory
from learner.cluster.authentication import LOOPBACK
from learner.cluster.authentication_probe import CLIENT_TIMEOUTS
from tests.conftest import assert_signal_ends_training_after_a_checkpoint, free_ports, wait_until

PROJECT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Ray retries many times after a refusal; one attempt is enough here.
IMPATIENCE = {**CLIENT_TIMEOUTS, "RAY_NUM_REDIS_GET_RETRIES": "1"}
# Ray replaces a node address of 127.0.0.1 by the host's own one; 127.0.0.2 stays.
HOST = "127.0.0.2"
WRONG_TOKEN = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Head:
    """A running `ray start --head` and what is needed to reach it."""

    address: str
    home: Path  # of its user, with the token
    token: str
    temp_dir: Path


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without Ray's variables, for a user whose home is `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process and its descendants."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        tree = []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.Error):
            child.kill()


def store_token(home: Path, token: str) -> None:
    """Stores `token` where Ray and the learner look for it."""
    (home / ".ray").mkdir(parents=True, mode=0o700)
    path = home / ".ray" / "auth_token"
    path.touch(mode=0o600)
    path.write_text(token)


@pytest.fixture(scope="module")
def temp_dir() -> Iterator[Path]:
    """Short, since a socket's path may have at most 107 characters; private, since Ray's own directories are not."""
    path = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def head(temp_dir: Path) -> Iterator[Head]:
    """A head that requires a token."""
    home, token = temp_dir / "home", secrets.token_hex(32)
    store_token(home, token)
    port, client, agent = free_ports(3)
    with open(temp_dir / "head.log", "w") as log:
        process = subprocess.Popen(
            [
                *(*RAY, "start", "--head", "--block", "--node-ip-address", HOST, "--port", str(port)),
                *("--include-dashboard", "false", "--ray-client-server-port", str(client)),
                *("--dashboard-agent-listen-port", str(agent)),
                *("--temp-dir", str(temp_dir / "ray"), "--num-cpus", "2", "--object-store-memory", str(200 << 20)),
            ],
            env=environment(home, RAY_AUTH_MODE="token"),
            cwd=PROJECT,
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        log_file = temp_dir / "head.log"
        wait_until(lambda: "Ray runtime started" in log_file.read_text(), process, output=log_file)
        yield Head(f"{HOST}:{port}", home, token, temp_dir / "ray")
    finally:
        end(process)


@pytest.fixture(scope="module", params=["without a token", "with a wrong token"])
def stranger(request: pytest.FixtureRequest, temp_dir: Path) -> dict[str, str]:
    """The environment of a user who must not be admitted."""
    home = temp_dir / request.param.replace(" ", "-")
    if request.param == "without a token":
        home.mkdir()
        return environment(home, RAY_AUTH_MODE="disabled", **IMPATIENCE)
    store_token(home, WRONG_TOKEN)
    return environment(home, RAY_AUTH_MODE="token", **IMPATIENCE)


def run(*command: object, env: dict[str, str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports on which a process and its descendants listen."""
    found = set()
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            sockets = each.net_connections("inet")
            found |= {(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


def readable_by_others(directory: Path) -> list[str]:
    """Files and directories that group or others could read, write or enter; links have no mode."""
    paths = [directory, *directory.rglob("*")]
    assert len(paths) > 10
    return [f"{p} {p.lstat().st_mode & 0o777:o}" for p in paths if not p.is_symlink() and p.lstat().st_mode & 0o077]


def command_lines(process: psutil.Process) -> str:
    """The command lines that everyone on the host sees in `ps`."""
    lines = []
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            lines.append(" ".join(each.cmdline()))
    return "\n".join(lines)


def test_learner_that_is_refused_says_why_in_one_line(head: Head, stranger: dict[str, str], tmp_path: Path) -> None:
    env = {name: value for name, value in stranger.items() if name != "RAY_AUTH_MODE"}
    command = (sys.executable, "-m", "learner", "--address", head.address, "--run-dir", tmp_path / "run")
    refused = run(*command, env=env)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    missing = "requires a token, but none was found in" in refused.stderr
    assert missing or "requires a token and refused the one in" in refused.stderr
    assert missing != (Path(env["HOME"]) / ".ray").exists()
    assert WRONG_TOKEN not in refused.stderr + refused.stdout
    assert not (tmp_path / "run").exists()


def test_run_in_a_cluster_exposes_neither_its_token_nor_its_files(head: Head, tiny: list[str], tmp_path: Path) -> None:
    """The head runs under another umask; the evaluator's files are private nevertheless."""
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS"):
        assert name not in environment(head.home)
    directory = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "learner", *tiny, "--total-frames", "640", "--eval-episodes-per-level", "1"),
            *("--address", head.address, "--run-dir", str(directory)),
        ],
        env=environment(head.home),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until((directory / "metrics.jsonl").exists, process)
        seen = " ".join(psutil.Process(process.pid).cmdline())
        output, _ = process.communicate(timeout=240)
    finally:
        end(process)
    assert process.returncode == 0, output
    assert "token authentication" in output

    assert "learner" in seen and head.token not in seen
    assert head.token not in output
    written = [path for place in (directory, head.temp_dir) for path in place.rglob("*") if path.is_file()]
    assert any("gcs_server" in path.name for path in written) and any(path.suffix == ".gif" for path in written)
    assert [path for path in written if head.token.encode() in path.read_bytes()] == []
    assert head.token not in (head.temp_dir.parent / "head.log").read_text()
    assert readable_by_others(directory) == []


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
    with open(temp / "head.log", "w") as log:
        process = subprocess.Popen(
            [
                *(*isolated_network, *RAY, "start", "--head", "--block", "--node-ip-address", HOST),
                *("--port", "6379", "--include-dashboard", "false", "--temp-dir", str(temp / "ray")),
                *("--num-cpus", "2", "--object-store-memory", str(200 << 20)),
            ],
            env=environment(home, RAY_AUTH_MODE="disabled"),
            cwd=PROJECT,
            stdout=log,
            stderr=log,
            text=True,
        )
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
