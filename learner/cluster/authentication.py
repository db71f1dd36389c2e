"""Finds out whether a cluster requires a token, and which token Ray would send.

A cluster that requires no token also admits a process that sends one. Only a process without a token that is refused
proves that the cluster is protected.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ray._raylet import Config  # type: ignore[attr-defined]

from common.home import describe_home, home_directory
from learner.cluster.authentication_probe import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE, probe
from learner.cluster.target import ClusterError, ClusterTarget

# Ray listens only on the loopback interface if a node's address is one of these, otherwise on every interface.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HOW_TO_ENABLE = (
    "run `ray get-auth-token --generate`, copy ~/.ray/auth_token to every node and start Ray with RAY_AUTH_MODE=token"
)


@dataclass(frozen=True, slots=True)
class Token:
    """The token that Ray would send; `path` is None if it is in RAY_AUTH_TOKEN or there is no home directory."""

    location: str
    path: Path | None
    exists: bool


def find_token() -> Token:
    """The token in RAY_AUTH_TOKEN, else in the file that RAY_AUTH_TOKEN_PATH names, else in ~/.ray/auth_token."""
    if os.environ.get(TOKEN_VARIABLE):
        return Token(TOKEN_VARIABLE, None, True)
    named = os.environ.get(PATH_VARIABLE)
    home = home_directory()
    if named:
        path = Path(named)
    elif home is not None:
        path = home / ".ray" / "auth_token"
    else:
        return Token(f"~/.ray/auth_token ({describe_home()})", None, False)
    try:
        exists = path.stat().st_size > 0 and os.access(path, os.R_OK)
    except OSError:
        exists = False
    return Token(f"{path} ({PATH_VARIABLE})" if named else str(path), path, exists)


def is_loopback(address: str) -> bool:
    """Whether a node with this address can be reached only from its own host."""
    return address.strip("[]") in LOOPBACK


def requires_token(target: ClusterTarget, poll: Callable[[], None] = lambda: None) -> bool:
    """Whether the cluster requires a token and accepts ours, which is never sent to a cluster that requires none.

    Prints a warning for an open cluster that `target` allows. Calls `poll` while waiting, which may raise.

    Raises:
        ClusterError: no Ray answers, the cluster is open to anyone and `target` does not allow that, or it requires a
            token and ours is missing, disabled or wrong.
    """
    answer = probe(target.address, with_token=False, poll=poll)
    if answer.verdict == "unavailable":
        raise ClusterError(f"no Ray cluster could be joined at {target}: {answer.reason}{target.hint()}")
    if answer.verdict == "admitted":
        exposed = sorted({node for node in answer.nodes if not is_loopback(node)})
        if not exposed:
            return False
        danger = (
            f"the Ray cluster at {target} runs without authentication on {', '.join(exposed[:3])}"
            f"{', ...' if len(exposed) > 3 else ''}: anyone who reaches its ports can run code on it"
        )
        if not target.allow_unauthenticated:
            raise ClusterError(f"{danger}; {HOW_TO_ENABLE}, or accept the risk with --allow-unauthenticated")
        print(f"learner: warning: {danger}", file=sys.stderr)
        return False
    required = f"the Ray cluster at {target} requires a token"
    token = find_token()
    if (mode := os.environ.get(MODE_VARIABLE, "token")).lower() != "token":
        raise ClusterError(f"{required}, but {MODE_VARIABLE} is {mode!r}: unset it")
    if not token.exists:
        raise ClusterError(
            f"{required}, but none was found in {token.location}: copy the head's token file to that path, readable "
            f"only by you, or set {PATH_VARIABLE}"
        )
    if probe(target.address, with_token=True, poll=poll).verdict == "refused":
        raise ClusterError(f"{required} and refused the one in {token.location}: copy the token file from the head")
    return True


def reload_mode() -> None:
    """Makes Ray read RAY_AUTH_MODE again; it does so by itself only when it is imported."""
    Config.initialize("")
