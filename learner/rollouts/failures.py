"""Why an actor failed: in full for a person, and as a value that tells whether two failures are the same."""

import re
from pathlib import Path

import ray

_ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")  # Ray colors its tracebacks
_LOG_LINES = 30


class ActorHung(Exception):
    """An actor did not deliver a rollout within its deadline."""


class WrongWeights(Exception):
    """An actor acted with other weights than those published for its rollout's policy version."""


def failure_kind(error: BaseException) -> tuple[str, ...]:
    """Equal for failures with the same cause.

    That is type and message of an exception raised in the actor, and the type alone of anything else: Ray's messages
    about a process that died contain ids and times.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return type(error.cause).__name__, str(error.cause)
    return (type(error).__name__,)


def full_text(error: BaseException) -> str:
    """The remote traceback, or Ray's whole message about a process that died, or the exception's own message."""
    return _ANSI_COLOR.sub("", str(error)) or type(error).__name__


def last_log_lines(log_file: str) -> list[str]:
    """The end of a worker's log on this machine, where a native crash leaves its stack; [] if it cannot be read."""
    try:
        lines = Path(log_file).read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if not line.startswith(":")][-_LOG_LINES:]  # without Ray's markers, as :job_id:01
