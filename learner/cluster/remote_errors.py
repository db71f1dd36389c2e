"""Turns Ray's errors about remote processes into one line for people and into the full text for the log."""

import re
import time
from pathlib import Path

from ray.exceptions import ActorDiedError, RayActorError, RayError, RayTaskError

MAX_LENGTH = 300
MAX_LOG_BYTES = 1 << 16
MAX_LOG_LINES = 50  # a native crash's stack of our own frames is more than 30 lines before the end
# How long to wait until Ray knows which process an actor that has died was.
_PATIENCE_SECONDS = 1.0
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
    line = line.strip()
    return line if len(line) <= MAX_LENGTH else f"{line[: MAX_LENGTH - 1]}…"


def full_cause(error: BaseException) -> str:
    """The remote traceback or Ray's whole message; for a dead actor also its process's log: the path and the end.

    "" if that says no more than `cause_in_one_line`.
    """
    text = _COLOR.sub("", str(error))
    text = "" if text == cause_in_one_line(error) else text
    if isinstance(error, RayActorError) and error.actor_id and not error.actor_init_failed:
        text += _worker_log(error.actor_id)
    return text


def log_of_an_ended_process(since: float) -> str:
    """The path and the end of the newest log on this node in which a process of Ray that has ended left something after
    `since`, which is a time.time(); "" if there is none.

    A process that dies before it is an actor's, perhaps while Python starts, raises no error in Ray.
    """
    try:
        directory = _logs_directory()
        ended = [path for path in directory.glob("worker-*.err") if not Path("/proc", _process_id(path)).exists()]
        times = {path: path.stat().st_mtime for path in (*ended, directory / "raylet.err")}
        newest_first = sorted((path for path in times if times[path] >= since), key=times.__getitem__, reverse=True)
        return next((_end_of(path) for path in newest_first if _lines(path)), "")
    except Exception:  # private interfaces may change, and the directory may be gone
        return ""


def _worker_log(actor_id: str) -> str:
    """Where the standard error of the actor's process is and, if that is on this node, its last lines.

    A native crash leaves its stack trace only there. Ray may know the process a moment later than the death.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (found := _known_worker_log(actor_id)) is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return found or ""


def _known_worker_log(actor_id: str) -> str | None:
    """As `_worker_log`; None if Ray does not know the process yet."""
    try:  # Ray's public API needs the dashboard for this
        import ray
        from ray._private.state import actors

        actor = actors(actor_id)
        node, directory = actor["Address"], _logs_directory()
        # The actor has neither a process id nor a node if it ended before it was ready.
        pid = actor["Pid"] or actor["DeathCause"].actor_died_error_context.pid
        if not pid:
            return None
        path = next(directory.glob(f"worker-*-{pid}.err"), None)
        if path is None or (actor["Pid"] and node["NodeID"] != ray.get_runtime_context().get_node_id()):
            address = node["IPAddress"] or actor["DeathCause"].actor_died_error_context.node_ip_address
            return f"\nlog of the process, on node {address}: {directory / f'worker-*-{pid}.err'}"
        return _end_of(path)
    except Exception:  # private interfaces may change, and the cluster may be gone
        return ""


def _logs_directory() -> Path:
    from ray._private.worker import global_worker

    return Path(global_worker.node.get_logs_dir_path())  # type: ignore[union-attr]


def _process_id(log: Path) -> str:
    return log.stem.rpartition("-")[2]


def _end_of(log: Path) -> str:
    return "\n".join(["", f"log of the process: {log}", *_lines(log)])


def _lines(log: Path) -> list[str]:
    """The last lines, without those that Ray writes into every log. A process that crashes again and again in its
    handler of crashes leaves hundreds of megabytes.
    """
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MAX_LOG_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if not line.startswith((":job_id:", ":actor_name:"))][-MAX_LOG_LINES:]
