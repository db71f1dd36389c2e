"""Who can join a cluster and read a run: a real Ray head with a token, and strangers who try every port."""

import contextlib
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.storage.run_directory import RunDirectory
from learner.cluster.authentication import LOOPBACK
from learner.cluster.authentication_probe import CLIENT_TIMEOUTS

PROJECT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Ray retries many times after a refusal; one attempt is enough here.
IMPATIENCE = {**CLIENT_TIMEOUTS, "RAY_NUM_REDIS_GET_RETRIES": "1"}
# Ray replaces a node address of 127.0.0.1 by the host's own one; 127.0.0.2 stays.
HOST = "127.0.0.2"
WRONG_TOKEN = "0123456789abcdef" * 4
needs_dashboard = pytest.mark.skipif(
    any(importlib.util.find_spec(module) is None for module in ("aiohttp", "grpc")),
    reason="Ray's dashboard is not installed (ray[default])",
)
# Calls that every Ray server of a kind answers; only whether they are refused matters here.
GRPC_CALLS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.ReporterService/GetTraceback",
    "/ray.rpc.RayletDriver/ClusterInfo",
)
JOIN = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
print("INSIDE", len(ray.nodes()))
"""


@dataclass(frozen=True)
class Head:
    """A running `ray start --head` and what is needed to reach it."""

    process: psutil.Process
    address: str
    dashboard: str
    metrics_port: int
    home: Path  # of its user, with the token
    token: str
    temp_dir: Path


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without Ray's variables, for a user whose home is `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def free_ports(count: int) -> list[int]:
    """Different ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process and its descendants."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        tree = []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.Error):
            child.kill()


def make_token(home: Path, token: str | None = None) -> str:
    """Stores `token`, or one that Ray's own command generates."""
    if token is None:
        made = subprocess.run(
            ["sh", "-c", 'umask 077; exec "$@"', "sh", *RAY, "get-auth-token", "--generate"],
            env=environment(home),
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.strip()
    (home / ".ray").mkdir(parents=True)
    (home / ".ray" / "auth_token").write_text(token)
    return token


@pytest.fixture(scope="module")
def temp_dir() -> Iterator[Path]:
    """Short, since a socket's path may have at most 107 characters; private, since Ray's own directories are not."""
    path = Path(tempfile.mkdtemp(prefix="hs-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def head(temp_dir: Path) -> Iterator[Head]:
    """A head with token authentication, dashboard, job submission and Ray Client."""
    home = temp_dir / "home"
    home.mkdir()
    token = make_token(home)
    port, dashboard, client, agent, metrics = free_ports(5)
    with open(temp_dir / "head.log", "w") as log:
        process = subprocess.Popen(
            [
                *(*RAY, "start", "--head", "--block", "--node-ip-address", HOST, "--port", str(port)),
                *("--include-dashboard", "true", "--dashboard-port", str(dashboard)),
                *("--ray-client-server-port", str(client), "--dashboard-agent-listen-port", str(agent)),
                *("--metrics-export-port", str(metrics), "--temp-dir", str(temp_dir / "ray")),
                *("--num-cpus", "2", "--object-store-memory", str(200 << 20)),
            ],
            env=environment(home, RAY_AUTH_MODE="token"),
            cwd=PROJECT,
            stdout=log,
            stderr=log,
            text=True,
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 60
        while status_of(f"{url}/api/jobs/", token) != 200:
            assert process.poll() is None, (temp_dir / "head.log").read_text()
            assert time.monotonic() < deadline, (temp_dir / "head.log").read_text()
            time.sleep(0.3)
        yield Head(
            psutil.Process(process.pid), f"{HOST}:{port}", url, metrics, home, token, temp_dir / "ray"
        )  # fmt: skip
    finally:
        end(process)


@pytest.fixture(scope="module", params=["without a token", "with a wrong token"])
def stranger(request: pytest.FixtureRequest, temp_dir: Path) -> dict[str, str]:
    """The environment of a user who must not be admitted."""
    home = temp_dir / request.param.replace(" ", "-")
    home.mkdir()
    if request.param == "without a token":
        return environment(home, RAY_AUTH_MODE="disabled", **IMPATIENCE)
    make_token(home, WRONG_TOKEN)
    return environment(home, RAY_AUTH_MODE="token", **IMPATIENCE)


def owner(head: Head) -> dict[str, str]:
    """The environment of the cluster's user. Ray's own commands, unlike the learner, need RAY_AUTH_MODE."""
    return environment(head.home, RAY_AUTH_MODE="token", **IMPATIENCE)


def run(*command: object, env: dict[str, str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def status_of(url: str, token: str | None, body: bytes | None = None) -> int | None:
    """The HTTP status, or None if nothing answers in HTTP."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


def page(url: str) -> str:
    """The page as served without a token."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        return reply.read().decode()


def grpc_codes(address: str) -> set[str]:
    """The status codes of calls without a token; empty if nothing there speaks gRPC."""
    import grpc

    codes = set()
    with grpc.insecure_channel(address) as channel:
        for call in GRPC_CALLS:
            try:
                channel.unary_unary(call)(b"", timeout=10)
                codes.add("ANSWERED")
            except grpc.RpcError as error:
                codes.add(error.code().name)  # type: ignore[attr-defined]
            if codes <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                return set()
    return codes


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


@needs_dashboard
def test_token_made_by_ray_is_readable_only_by_its_user(head: Head) -> None:
    path = head.home / ".ray" / "auth_token"
    assert re.fullmatch("[0-9a-f]{64}", head.token)
    assert path.read_text() == head.token
    assert path.stat().st_mode & 0o777 == 0o600


@needs_dashboard
def test_driver_of_a_stranger_cannot_join(head: Head, stranger: dict[str, str]) -> None:
    refused = run(sys.executable, "-c", JOIN, head.address, env=stranger)
    assert refused.returncode == 1
    assert "INSIDE" not in refused.stdout
    assert "Authentication token is missing or incorrect" in refused.stderr


@needs_dashboard
def test_node_of_a_stranger_cannot_join(head: Head, stranger: dict[str, str]) -> None:
    refused = run(*RAY, "start", "--address", head.address, "--block", env=stranger)
    assert refused.returncode != 0
    assert "Authentication token is missing or incorrect" in refused.stderr + refused.stdout
    inside = run(sys.executable, "-c", JOIN, head.address, env=owner(head))
    assert inside.stdout.split()[-2:] == ["INSIDE", "1"], inside.stderr


@needs_dashboard
@pytest.mark.parametrize(("token", "status"), [(None, 401), (WRONG_TOKEN, 403)])
def test_dashboard_shows_a_stranger_nothing_and_accepts_no_jobs(
    head: Head, token: str | None, status: int, tmp_path: Path
) -> None:
    for path in (
        "/api/jobs/",
        "/nodes?view=summary",
        "/api/v0/nodes",
        "/api/v0/logs?node_ip=127.0.0.2",
        "/logical/actors",
    ):
        assert status_of(head.dashboard + path, token) == status, path
        assert status_of(head.dashboard + path, head.token) not in (401, 403, None), path
    job = b'{"entrypoint": "touch %s"}' % bytes(tmp_path / "ran")
    assert status_of(f"{head.dashboard}/api/jobs/", token, job) == status
    assert not (tmp_path / "ran").exists()


@needs_dashboard
def test_job_of_a_stranger_does_not_run(head: Head, stranger: dict[str, str], tmp_path: Path) -> None:
    submit = (*RAY, "job", "submit", "--address", head.dashboard, "--", "touch")
    refused = run(*submit, tmp_path / "stranger", env=stranger)
    assert refused.returncode != 0
    assert not (tmp_path / "stranger").exists()


@needs_dashboard
def test_job_with_the_token_runs(head: Head, tmp_path: Path) -> None:
    submitted = run(
        *RAY, "job", "submit", "--address", head.dashboard, "--", "touch", tmp_path / "ran", env=owner(head)
    )
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert (tmp_path / "ran").exists()


@needs_dashboard
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


@needs_dashboard
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
        deadline = time.monotonic() + 60
        while not (directory / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        seen = command_lines(head.process) + command_lines(psutil.Process(process.pid))
        ports = listening(head.process)
        open_doors = {}
        for address, port in ports:
            host = HOST if address in ("::", "0.0.0.0") else address.removeprefix("::ffff:")
            if status_of(f"http://{host}:{port}/api/jobs/", None) == 401:
                continue
            # No Ray server knows the calls of all the others.
            if grpc_codes(f"{host}:{port}") - {"UNIMPLEMENTED"} != {"UNAUTHENTICATED"}:
                open_doors[port] = page(f"http://{host}:{port}/")
        output, _ = process.communicate(timeout=100)
    finally:
        end(process)
    assert process.returncode == 0, output
    assert "token authentication" in output

    assert "RemoteRolloutActor" in seen and "gcs_server" in seen
    assert head.token not in seen
    # Anyone who reaches their ports can read Ray's metrics; everything else requires the token.
    assert head.metrics_port in open_doors
    assert {shown[:6] for shown in open_doors.values()} == {"# HELP"}, open_doors

    assert head.token not in output
    written = [path for place in (directory, head.temp_dir) for path in place.rglob("*") if path.is_file()]
    assert any("gcs_server" in path.name for path in written) and any(path.suffix == ".gif" for path in written)
    assert [path for path in written if head.token.encode() in path.read_bytes()] == []
    assert head.token not in (head.temp_dir.parent / "head.log").read_text()
    assert readable_by_others(directory) == []


def test_embedded_run_is_reachable_and_readable_only_by_its_user(tiny, tmp_path: Path) -> None:
    home, directory = tmp_path / "home", tmp_path / "run"
    home.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "learner", *tiny, "--total-frames", str(10**9)),
            *("--eval-episodes-per-level", "1", "--run-dir", str(directory)),
        ],
        env=environment(home),
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        umask=0o022,
    )
    try:
        deadline = time.monotonic() + 90
        while not (directory / "evaluations.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        learner = psutil.Process(process.pid)
        addresses = {address.removeprefix("::ffff:") for address, _ in listening(learner)}
        sessions = {
            Path(word.split("=")[1]) for word in command_lines(learner).split() if word.startswith("--session-dir=")
        }
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 143, output
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
    make_token(home, WRONG_TOKEN)  # our having a token does not make the cluster require one
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
