"""Who may use Ray: whether a cluster asks for a token, which token there is, and where other users cannot reach.

A process that shows its token is also let in by a cluster that asks for none, so being let in proves nothing. What
proves it is a process that shows none and is refused; `python -m learner.cluster.authentication ADDRESS` is one.
"""

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray._private import ray_constants, services
from ray._raylet import Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RayError

Mode = Literal["token", "disabled"]

# Ray listens on the loopback interface alone where a node's address is one of these, else on every interface.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
MODE_VARIABLE, TOKEN_VARIABLE, PATH_VARIABLE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
# A head that is busy may answer late; one that is none never does.
PATIENCE = 20.0
QUESTION_TIMEOUT = 30.0
# Seconds for one try of Ray's client, whose own are tens and go on after a refusal.
CLIENT_TIMEOUTS = {"RAY_gcs_rpc_server_connect_timeout_s": "2", "RAY_py_gcs_connect_timeout_s": "2"}
HOW_TO_TURN_IT_ON = (
    "run `ray get-auth-token --generate`, give every node the same ~/.ray/auth_token and start Ray there with "
    "RAY_AUTH_MODE=token"
)


class AccessError(RuntimeError):
    """A cluster should not be used or does not let us in; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Token:
    """Where Ray looks for the token: `path` is None when it is in the environment."""

    text: str
    path: Path | None
    exists: bool


@dataclass(frozen=True, slots=True)
class Access:
    """How to join a cluster: Ray's authentication mode, and what the user should be warned of."""

    mode: Mode
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the head says to somebody who asks for its nodes."""

    verdict: Literal["admitted", "refused", "silent"]
    nodes: tuple[str, ...] = ()  # when admitted: the addresses of the nodes, and the one that answered
    reason: str = ""  # when silent


def token_description() -> Token:
    """The token Ray would show: RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH names, else ~/.ray/auth_token."""
    if os.environ.get(TOKEN_VARIABLE):
        return Token(f"in {TOKEN_VARIABLE}", None, True)
    if named := os.environ.get(PATH_VARIABLE):
        path, source = Path(named), f" ({PATH_VARIABLE})"
    else:
        path, source = Path.home() / ".ray" / "auth_token", ""
    try:
        exists = path.stat().st_size > 0
    except OSError:
        exists = False
    return Token(f"{'in' if exists else 'none in'} {path}{source}", path, exists)


def is_loopback(address: str) -> bool:
    """Whether a node with this address can be reached from its own host only."""
    return address.strip("[]") in LOOPBACK


def access_to(address: str, allow_unauthenticated: bool) -> Access:
    """How the cluster at `address` (HOST:PORT or auto) is to be joined; nothing secret is sent to one that is open.

    Raises:
        AccessError: anyone who reaches the cluster could use it, unless that is allowed; or it refuses our token, or
            there is none; or no Ray answers.
    """
    answer = ask(address, shows_token=False)
    if answer.verdict == "silent":
        raise AccessError(f"no Ray cluster could be used at --address {address}: {answer.reason}")
    if answer.verdict == "admitted":
        exposed = sorted({node for node in answer.nodes if not is_loopback(node)})
        if not exposed:
            return Access("disabled")
        danger = (
            f"the Ray cluster at --address {address} runs without authentication on {', '.join(exposed[:3])}"
            f"{', ...' if len(exposed) > 3 else ''}: anyone who reaches its ports can run code there"
        )
        if not allow_unauthenticated:
            raise AccessError(f"{danger}; {HOW_TO_TURN_IT_ON}, or accept it with --allow-unauthenticated")
        return Access("disabled", danger)
    token = token_description()
    if os.environ.get(MODE_VARIABLE, "token").lower() != "token":
        raise AccessError(
            f"the Ray cluster at --address {address} asks for a token, but {MODE_VARIABLE} is "
            f"{os.environ[MODE_VARIABLE]!r}: unset it"
        )
    if not token.exists:
        raise AccessError(
            f"the Ray cluster at --address {address} asks for a token, and there is {token.text}: copy the head's "
            f"there, readable by you alone, or name its file in {PATH_VARIABLE}"
        )
    if ask(address, shows_token=True).verdict == "refused":
        raise AccessError(
            f"the Ray cluster at --address {address} refuses the token {token.text}: "
            "it must be the one that the head was started with"
        )
    return Access("token")


def ask(address: str, shows_token: bool) -> Answer:
    """Asks the head for its nodes from a process of its own, since Ray decides once a process what it shows."""
    environment = {**os.environ, **CLIENT_TIMEOUTS}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    environment[MODE_VARIABLE] = "token" if shows_token else "disabled"
    if not shows_token:
        environment.pop(TOKEN_VARIABLE, None)
        environment.pop(PATH_VARIABLE, None)
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = _ask_once(address, environment)
        if answer.verdict != "silent" or time.monotonic() > deadline or not answer.reason.startswith("no answer"):
            return answer
        time.sleep(0.5)


def _ask_once(address: str, environment: dict[str, str]) -> Answer:
    try:
        process = subprocess.run(
            [sys.executable, "-m", "learner.cluster.authentication", address],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Ray's C++ repeats there what the answer says
            timeout=QUESTION_TIMEOUT,
        )
        answer = json.loads(process.stdout.splitlines()[-1])
        return Answer(answer["verdict"], tuple(answer["nodes"]), answer["reason"])
    except subprocess.TimeoutExpired:
        return Answer("silent", reason=f"no answer within {QUESTION_TIMEOUT:.0f} s")
    except (IndexError, KeyError, ValueError):
        return Answer("silent", reason=f"no answer, the asking process ended with {process.returncode}")


def asked(address: str) -> Answer:
    """What the head at `address` says to this process."""
    try:
        head = services.canonicalize_bootstrap_address(address) or address
        client = GcsClient(address=head)
        nodes = client.get_all_node_info(timeout=10, state_filter=0).values()  # 0: those alive
    except AuthenticationError:
        return Answer("refused")
    except RayError as error:
        return Answer("silent", reason=f"no answer: {error}".splitlines()[0])
    except (ConnectionError, ValueError, RuntimeError) as error:
        return Answer("silent", reason=str(error).strip().splitlines()[0])
    if not nodes:  # the head has only just been started: nothing says yet where it can be reached
        return Answer("silent", reason="no answer: the head has no node yet")
    return Answer("admitted", (head.rpartition(":")[0], *(node.node_manager_address for node in nodes)))


def reload_mode() -> None:
    """Makes Ray, which reads RAY_AUTH_MODE when it is imported, read it again."""
    Config.initialize("")


@contextlib.contextmanager
def only_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on 127.0.0.1 alone; on Linux it would take every interface.

    That is what Ray itself does where it supports no clusters, on macOS and Windows.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_directory(parent: Path = Path("/tmp")) -> Path:
    """A directory that only this user can enter, for the sockets and files of a Ray that we start.

    Ray makes its own directories writable for everybody, and who replaces a socket there speaks with its workers. The
    path is short: a socket's may have 107 characters.

    Raises:
        AccessError: it belongs to somebody else, or others may enter it.
    """
    path = parent / f"heldout-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise AccessError(f"{path}, the directory for Ray's files, cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise AccessError(f"{path}, the directory for Ray's files, is not yours alone: remove it")
    return path


if __name__ == "__main__":
    _answer = asked(sys.argv[1])
    print(json.dumps({"verdict": _answer.verdict, "nodes": _answer.nodes, "reason": _answer.reason}))
