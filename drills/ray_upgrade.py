"""`python -m drills.ray_upgrade`: whether the installed Ray still keeps strangers out. Run it after upgrading Ray.

Starts a Ray head with token authentication and tries to get in without a token and with a wrong token: as a driver, as
a node, through the dashboard, with a job, and at every port. Also checks who can read the token, and on which addresses
an embedded Ray listens. Prints one line per check; exit code 1 if a check failed. Needs the dashboard (`ray[default]`).
"""

import contextlib
import http.client
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import kill_tree, process_tree
from benchmarks.report import make_parser
from learner.cluster.authentication_probe import CLIENT_TIMEOUTS

RAY = (sys.executable, "-m", "ray.scripts.scripts")
# Ray would repeat a refused call several times; one attempt is enough here.
ONE_ATTEMPT = {**CLIENT_TIMEOUTS, "RAY_NUM_REDIS_GET_RETRIES": "1"}
# Ray replaces 127.0.0.1 with the host's own address, but keeps 127.0.0.2.
HOST = "127.0.0.2"
WRONG_TOKEN = "0123456789abcdef" * 4
# One call of each of Ray's gRPC services: its reply is irrelevant, it must be refused without a token.
GRPC_CALLS = (
    *("NodeInfoGcsService/GetAllNodeInfo", "NodeManagerService/GetNodeStats", "ObjectManagerService/Pull"),
    *("CoreWorkerService/NumPendingTasks", "ReporterService/GetTraceback", "RayletDriver/ClusterInfo"),
)
PAGES = ("/api/jobs/", "/nodes?view=summary", "/api/v0/nodes", f"/api/v0/logs?node_ip={HOST}", "/logical/actors")
# A driver with one actor that prints the number of nodes and then waits for the end of its stdin.
DRIVER = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False)
class Actor:
    def answer(self): return 1
actor = ray.remote(num_cpus=0)(Actor).remote()
ray.get(actor.answer.remote())
print("INSIDE", len(ray.nodes()), flush=True)
sys.stdin.read()
"""
EMBEDDED = """
import psutil
from common.resolution import resolve
from drills.ray_upgrade import listening
from learner.cluster import connection
connection.connect(None, resolve("lab", {"num_actors": 1}))
print(*{address for address, _ in listening(psutil.Process())})
connection.disconnect()
"""


def expect(condition: object, otherwise: str) -> None:
    """Raises AssertionError, also under `python -O`, with the reason `otherwise` unless the condition holds."""
    if not condition:
        raise AssertionError(otherwise)


def run_checks(checks: Mapping[str, Callable[[], None]]) -> int:
    """Runs all checks and prints one line for each; returns the exit code, 1 if a check failed or could not be made."""
    failed = False
    for name, check in checks.items():
        try:
            check()
            print(f"ok      {name}", flush=True)
        except Exception as error:
            failed = True
            reason = " ".join(str(error).split())[:500]
            print(f"FAILED  {name}: {type(error).__name__}: {reason}", flush=True)
    return int(failed)


class Cluster:
    """A `ray start --head` with token authentication, dashboard, job submission and Ray Client; and its checks."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.owner = self._user("owner", "token")
        # Without this umask Ray creates the file with mode 0644.
        made = self.run("sh", "-c", 'umask 077; exec "$@"', "sh", *RAY, "get-auth-token", "--generate", env=self.owner)
        self.token = made.stdout.strip()
        wrong = self._user("wrong", "token")
        (directory / "wrong" / ".ray").mkdir()
        (directory / "wrong" / ".ray" / "auth_token").write_text(WRONG_TOKEN)
        self.strangers = {"without a token": self._user("none", "disabled"), "with a wrong token": wrong}
        port, dashboard, client, agent, self.metrics_port = free_ports(5)
        self.address, self.dashboard = f"{HOST}:{port}", f"http://127.0.0.1:{dashboard}"
        self.command = (
            *(*RAY, "start", "--head", "--block", "--node-ip-address", HOST, "--port", port),
            *("--include-dashboard", "true", "--dashboard-port", dashboard, "--ray-client-server-port", client),
            *("--dashboard-agent-listen-port", agent, "--metrics-export-port", self.metrics_port),
            *("--temp-dir", directory / "ray", "--num-cpus", 2, "--object-store-memory", 200 << 20),
        )

    def _user(self, name: str, mode: str) -> dict[str, str]:
        """A new home directory, and an environment with it and without the Ray variables of this process."""
        home = self.directory / name
        home.mkdir()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {**inherited, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": mode, **ONE_ATTEMPT}

    def run(self, *command: object, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, for at most a minute."""
        words = list(map(str, command))
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Starts the head and waits for its dashboard; finally ends all its processes."""
        environment = {name: value for name, value in self.owner.items() if name not in ONE_ATTEMPT}
        with open(self.directory / "head.log", "w") as log:
            head = subprocess.Popen(list(map(str, self.command)), env=environment, stdout=log, stderr=log)
        self.process = psutil.Process(head.pid)
        try:
            deadline = time.monotonic() + 90
            while http_status(f"{self.dashboard}/api/jobs/", self.token) != 200:
                if head.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Ray did not start:\n{(self.directory / 'head.log').read_text()}")
                time.sleep(0.3)
            yield
        finally:
            kill_tree(self.process)
            head.wait(20)

    def checks(self) -> dict[str, Callable[[], None]]:
        """All checks by name, which is the first line of their documentation."""
        checks = (
            *(self.token_is_private, self.drivers_are_refused, self.nodes_are_refused, self.jobs_are_refused),
            *(self.dashboard_refuses, self.ports_ask_for_the_token, self.token_is_not_written, self.embedded_is_local),
        )
        return {str(check.__doc__).rstrip("."): check for check in checks}

    def token_is_private(self) -> None:
        """Only its user can read the token that Ray creates."""
        path = self.directory / "owner" / ".ray" / "auth_token"
        expect(re.fullmatch("[0-9a-f]{64}", self.token), "Ray printed no token of 64 hexadecimal digits")
        expect(path.read_text() == self.token, f"{path} does not contain the token that Ray printed")
        expect(path.stat().st_mode & 0o777 == 0o600, f"{path} has mode {path.stat().st_mode & 0o777:o}")

    def drivers_are_refused(self) -> None:
        """A driver without a token or with a wrong one does not join."""
        for who, environment in self.strangers.items():
            expect_refusal(who, self.run(sys.executable, "-c", DRIVER, self.address, env=environment))

    def nodes_are_refused(self) -> None:
        """A node without a token or with a wrong one does not join."""
        for who, environment in self.strangers.items():
            expect_refusal(who, self.run(*RAY, "start", "--address", self.address, "--block", env=environment))
        joined = self.run(sys.executable, "-c", DRIVER, self.address, env=self.owner)
        expect(joined.stdout.split()[-2:] == ["INSIDE", "1"], f"the owner's driver saw {joined.stdout}{joined.stderr}")

    def jobs_are_refused(self) -> None:
        """`ray job submit` runs a job only with the right token."""
        for who, environment in {**self.strangers, "with the token": self.owner}.items():
            file = self.directory / f"job-{'-'.join(who.split())}"
            submit = (*RAY, "job", "submit", "--address", self.dashboard, "--", "touch", file)
            submitted = self.run(*submit, env=environment)
            happened = (submitted.returncode == 0, file.exists())
            reason = (
                f"{who}: exit code {submitted.returncode}, ran: {file.exists()}, {submitted.stdout}{submitted.stderr}"
            )
            expect(happened == ((True, True) if environment is self.owner else (False, False)), reason)

    def dashboard_refuses(self) -> None:
        """The dashboard shows nothing and runs nothing without the right token."""
        for token, status in ((None, 401), (WRONG_TOKEN, 403)):
            for page in PAGES:
                answers = http_status(self.dashboard + page, token), http_status(self.dashboard + page, self.token)
                expect(answers[0] == status, f"{page} answered {answers[0]} instead of {status}")
                expect(answers[1] not in (401, 403, None), f"{page} answered {answers[1]} to the owner")
            file = self.directory / "posted"
            answer = http_status(f"{self.dashboard}/api/jobs/", token, b'{"entrypoint": "touch %s"}' % bytes(file))
            expect(answer == status and not file.exists(), f"a posted job was answered with {answer}")

    @contextlib.contextmanager
    def _driver(self) -> Iterator[None]:
        """The owner's driver and its actor, running."""
        command = [sys.executable, "-c", DRIVER, self.address]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=self.owner, text=True, **pipes) as driver:
            assert driver.stdout is not None
            expect("INSIDE" in driver.stdout.readline(), "the owner's driver did not join")
            yield

    def ports_ask_for_the_token(self) -> None:
        """Every port of Ray's asks for the token, except those of the metrics."""
        with self._driver():
            readable = {}
            for address, port in listening(self.process):
                host = HOST if address in ("::", "0.0.0.0") else address
                if http_status(f"http://{host}:{port}/api/jobs/", None) == 401:
                    continue
                # A service answers calls of the other services with UNIMPLEMENTED.
                if grpc_codes(f"{host}:{port}") - {"UNIMPLEMENTED"} != {"UNAUTHENTICATED"}:
                    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5) as reply:
                        readable[port] = reply.read(6).decode(errors="replace")
        expect(self.metrics_port in readable, f"the metrics port {self.metrics_port} is not readable")
        expect(set(readable.values()) == {"# HELP"}, f"readable without a token: {readable}")

    def token_is_not_written(self) -> None:
        """The token is in no command line and in no file of Ray's."""
        with self._driver():
            lines = [word for member in process_tree(self.process) for word in member.cmdline()]
        expect(any("gcs_server" in word for word in lines), "the processes of Ray have unknown names")
        expect(not any(self.token in word for word in lines), "a command line contains the token")
        written = [path for path in (self.directory / "ray").rglob("*") if path.is_file()]
        leaks = [str(path) for path in written if self.token.encode() in path.read_bytes()]
        expect(written and not leaks, f"files with the token: {leaks}")

    def embedded_is_local(self) -> None:
        """An embedded Ray listens on 127.0.0.1 only."""
        found = self.run(sys.executable, "-c", EMBEDDED, env=self.owner)
        expect(found.stdout.split() == ["127.0.0.1"], found.stdout + found.stderr)


def expect_refusal(who: str, refused: subprocess.CompletedProcess[str]) -> None:
    """Expects that a command failed because of its token."""
    output = refused.stdout + refused.stderr
    is_refused = refused.returncode != 0 and "Authentication token is missing or incorrect" in output
    expect(is_refused and "INSIDE" not in output, f"{who}: exit code {refused.returncode}: {output}")


def free_ports(count: int) -> list[int]:
    """Different ports on which nobody listens."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def http_status(url: str, token: str | None, body: bytes | None = None) -> int | None:
    """The HTTP status; None if nothing answers in HTTP."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError, http.client.HTTPException):
        return None


def grpc_codes(address: str) -> set[str]:
    """The status codes of calls without a token; empty if nothing answers in gRPC."""
    import grpc  # type: ignore[import-untyped]

    codes = set()
    with grpc.insecure_channel(address) as channel:
        for call in GRPC_CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=10)
                codes.add("ANSWERED")
            except grpc.RpcError as error:
                codes.add(error.code().name)
            if codes <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                return set()
    return codes


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """The addresses and ports on which a process and its descendants listen."""
    found = set()
    for member in process_tree(process):
        with contextlib.suppress(psutil.Error):
            sockets = [s for s in member.net_connections("inet") if s.status == psutil.CONN_LISTEN]
            found |= {(s.laddr.ip.removeprefix("::ffff:"), s.laddr.port) for s in sockets}
    return found


def main() -> int:
    """Runs all checks and returns the exit code."""
    make_parser(__doc__).parse_args()
    # Directly in /tmp, because paths of Ray's sockets are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="upgrade-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        cluster = Cluster(Path(directory))
        with cluster.started():
            return run_checks(cluster.checks())


if __name__ == "__main__":
    sys.exit(main())
