"""Turns Ray's errors about remote processes into one line for people and into the full text for the log."""

import re
from pathlib import Path

from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

MAX_LENGTH = 300
MAX_LOG_LINES = 50  # a native crash's stack of our own frames is more than 30 lines before the end
_COLOR = re.compile(r"\x1b\[\d*m")


def cause_in_one_line(error: BaseException) -> str:
    """The remote code's own exception, Ray's reason for a dead actor, or the first line of any other error."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[0]
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RayError):
            return cause_in_one_line(error.cause)
        message = " ".join(str(error.cause).split())
        line = f"{type(error.cause).__name__}: {message}" if message else type(error.cause).__name__
    elif isinstance(error, ActorDiedError) and error.actor_init_failed:
        line = lines[-1]  # Ray keeps only the text of the traceback, which ends with the exception
    elif isinstance(error, ActorDiedError):
        # A general sentence, indented lines with the actor's ids, and the reason.
        line = next((line for line in lines[1:] if not line.startswith("\t")), line)
    return line.strip()[:MAX_LENGTH]


def full_cause(error: BaseException) -> str:
    """The remote traceback or Ray's whole message; for a dead actor also its process's log: the path and the end."""
    text = _COLOR.sub("", str(error)) or type(error).__name__
    if isinstance(error, RayActorError) and error.actor_id and not error.actor_init_failed:
        text += _worker_log(error.actor_id)
    return text


def _worker_log(actor_id: str) -> str:
    """Where the standard error of the actor's process is and, if that is on this node, its last lines.

    A native crash leaves its stack trace only there.
    """
    try:  # Ray's public API needs the dashboard for this
        import ray
        from ray._private.state import actors
        from ray._private.worker import global_worker

        actor = actors(actor_id)
        node, directory = actor["Address"], Path(global_worker.node.get_logs_dir_path())  # type: ignore[union-attr]
        pattern = f"worker-*-{actor['Pid']}.err"
        if node["NodeID"] != ray.get_runtime_context().get_node_id():
            return f"\nlog of the process, on node {node['IPAddress']}: {directory / pattern}"
        path = next(directory.glob(pattern))
        lines = path.read_text(errors="replace").splitlines()[-MAX_LOG_LINES:]
        return "\n".join(["", f"log of the process: {path}", *lines])
    except Exception:  # private interfaces may change, and the cluster may be gone
        return ""
