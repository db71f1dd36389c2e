"""Asks a cluster's head whether it admits a process, with our token or without one.

Ray decides once per process whether it sends a token. Each probe is therefore a process:
`python -m learner.cluster.authentication_probe ADDRESS` prints its `Answer` as JSON.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ray._private import services
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

from common.versions import package_directories

MODE_VARIABLE, TOKEN_VARIABLE, PATH_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# Seconds: a busy head may answer late.
RETRY_PERIOD = 20.0
PROBE_TIMEOUT = 30.0
# Seconds per attempt of Ray's client, which by default takes tens of seconds and goes on after a refusal.
CLIENT_TIMEOUTS = {"RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_py_gcs_connect_timeout_s": "2"}
# As `python -m`, which would find another package `learner` in the current directory.
_START = """
import runpy, sys
sys.path.insert(0, sys.argv.pop(1))
runpy.run_module("learner.cluster.authentication_probe", run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head's answer to a process that asks for the cluster's nodes."""

    verdict: Literal["admitted", "refused", "unavailable"]
    nodes: tuple[str, ...] = ()  # if admitted: the head's address and those of all living nodes
    reason: str = ""  # if unavailable
    may_retry: bool = False  # if unavailable: the head may answer later


def probe(address: str, with_token: bool, poll: Callable[[], None] = lambda: None) -> Answer:
    """Probes the head at `address` (HOST:PORT or auto) until it answers, for at most RETRY_PERIOD seconds.

    Calls `poll` while waiting, which may raise.
    """
    environment = {**os.environ, **CLIENT_TIMEOUTS, MODE_VARIABLE: "token" if with_token else "disabled"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    if not with_token:
        environment.pop(TOKEN_VARIABLE, None)
        environment.pop(PATH_VARIABLE, None)
    deadline = time.monotonic() + RETRY_PERIOD
    while True:
        answer = _probe_once(address, environment, poll)
        if not answer.may_retry or time.monotonic() > deadline:
            return answer
        time.sleep(0.5)


def _probe_once(address: str, environment: dict[str, str], poll: Callable[[], None]) -> Answer:
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(package_directories()[0].parent), address],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # Ray's C++ repeats the reason there
    )
    deadline = time.monotonic() + PROBE_TIMEOUT
    try:
        while time.monotonic() < deadline:
            poll()
            with contextlib.suppress(subprocess.TimeoutExpired):
                output, _ = process.communicate(timeout=0.5)
                answer = Answer(**json.loads(output.splitlines()[-1]))
                return dataclasses.replace(answer, nodes=tuple(answer.nodes))
        reason = f"no answer within {PROBE_TIMEOUT:.0f} s"
    except (IndexError, TypeError, ValueError):
        reason = f"the process that probes it ended with exit code {process.returncode}"
    finally:
        process.kill()
        process.wait()
    return Answer("unavailable", reason=reason, may_retry=True)


def ask_head(address: str) -> Answer:
    """The head's answer to this process."""
    try:
        head = services.canonicalize_bootstrap_address(address) or address
        client = GcsClient(address=head)
        nodes = client.get_all_node_info(timeout=10, state_filter=0).values()  # 0: only living nodes
    except AuthenticationError:
        return Answer("refused")
    except RayError as error:
        return Answer("unavailable", reason=f"no answer: {error}".splitlines()[0], may_retry=True)
    except (ConnectionError, ValueError, RuntimeError) as error:
        # Only the first sentence: advice about Ray's own flags follows.
        return Answer("unavailable", reason=str(error).strip().splitlines()[0].partition(". ")[0])
    if not nodes:  # a head that has just started does not yet say where it can be reached
        return Answer("unavailable", reason="the head has no node yet", may_retry=True)
    return Answer("admitted", (head.rpartition(":")[0], *(node.node_manager_address for node in nodes)))


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(ask_head(sys.argv[1]))))
