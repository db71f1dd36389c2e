"""Errors as Ray really makes them."""

import os
from pathlib import Path

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, GetTimeoutError, OutOfMemoryError, RayTaskError

from learner.cluster import remote_errors
from learner.cluster.remote_errors import MAX_LOG_LINES, cause_in_one_line, full_cause, log_of_an_ended_process

TRACEBACK = """Traceback (most recent call last):
  File "python/ray/_raylet.pyx", line 2205, in ray._raylet.execute_task
  File "/app/actors/remote.py", line 29, in collect
    return self.actor.collect(weights, policy_version)
OSError: libGL.so.1: cannot open shared object file
"""
KILLED_FOR_MEMORY = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.2) was 22.5GB / 23.5GB (0.95), which exceeds the threshold of 0.95.
Refer to the documentation on how to address the out of memory issue: set the environment variable ...
"""
EXIT = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"


def task_error(cause: Exception) -> RayTaskError:
    return RayTaskError("collect", TRACEBACK, cause, "ray::RemoteRolloutActor.collect", 12, "10.0.0.2")


def died_actor(reason: str) -> ActorDiedError:
    return ActorDiedError(
        ActorDiedErrorContext(error_message=reason, pid=12, class_name="RemoteRolloutActor", actor_id=bytes(16))
    )


@pytest.mark.parametrize("with_type_of_cause", [False, True])
def test_cause_of_a_task_error_is_the_remote_exception(with_type_of_cause: bool) -> None:
    error = task_error(OSError("libGL.so.1:\n\tcannot open"))
    raised = error.as_instanceof_cause() if with_type_of_cause else error
    assert cause_in_one_line(raised) == "OSError: libGL.so.1: cannot open"


def test_cause_of_a_task_error_without_a_message_is_its_type() -> None:
    assert cause_in_one_line(task_error(KeyError())) == "KeyError"


def test_cause_of_nested_task_errors_is_the_innermost_exception() -> None:
    assert cause_in_one_line(task_error(task_error(ValueError("inner")))) == "ValueError: inner"
    assert cause_in_one_line(task_error(OutOfMemoryError("killed\nadvice"))) == "killed"


def test_cause_of_an_actor_that_failed_to_start_is_the_end_of_its_traceback() -> None:
    error = ActorDiedError(task_error(OSError("libGL.so.1")))
    assert cause_in_one_line(error) == "OSError: libGL.so.1: cannot open shared object file"


def test_cause_of_a_dead_actor_is_the_reason_that_ray_gives() -> None:
    assert cause_in_one_line(died_actor(f"{EXIT}\nadvice")) == EXIT
    assert cause_in_one_line(ActorDiedError()) == "The actor died unexpectedly before finishing this task."


def test_cause_of_another_error_is_its_first_line() -> None:
    expected = "Task was killed due to the node running low on memory."
    assert cause_in_one_line(OutOfMemoryError(KILLED_FOR_MEMORY)) == expected


def test_cause_without_a_message_is_the_type_and_a_long_one_is_cut() -> None:
    assert cause_in_one_line(GetTimeoutError()) == "GetTimeoutError"
    assert cause_in_one_line(ValueError("x" * 1000)) == "x" * 299 + "…"
    assert cause_in_one_line(ValueError("x" * 300)) == "x" * 300


def test_full_cause_is_the_whole_text_without_colors() -> None:
    text = full_cause(task_error(OSError("libGL.so.1")))
    assert text.startswith("ray::RemoteRolloutActor.collect() (pid=12, ip=10.0.0.2)")
    assert '"/app/actors/remote.py", line 29' in text and "\x1b" not in text
    assert EXIT in full_cause(died_actor(EXIT)) and "pid: 12" in full_cause(died_actor(EXIT))


def test_full_cause_does_not_repeat_a_single_line() -> None:
    assert full_cause(GetTimeoutError("no rollout within 10 s")) == full_cause(GetTimeoutError()) == ""


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ray's directory of logs."""
    monkeypatch.setattr(remote_errors, "_logs_directory", lambda: tmp_path)
    (tmp_path / "raylet.err").write_text("")
    return tmp_path


def test_log_of_an_ended_process_is_the_newest_that_says_something(logs: Path) -> None:
    living, ended = logs / f"worker-a-ffffffff-{os.getpid()}.err", logs / "worker-b-01000000-999999999.err"
    living.write_text("a warning\n")
    ended.write_text(":job_id:01000000\n")
    assert log_of_an_ended_process(since=0.0) == ""
    ended.write_text(":job_id:01000000\n" + "stack\n" * 100_000 + "*** SIGSEGV received\n")
    lines = log_of_an_ended_process(since=0.0).strip().splitlines()
    assert lines[0] == f"log of the process: {ended}" and lines[-1] == "*** SIGSEGV received"
    assert len(lines) == MAX_LOG_LINES + 1
    assert log_of_an_ended_process(since=ended.stat().st_mtime + 1) == ""
    raylet = logs / "raylet.err"
    raylet.write_text("Segmentation fault\n")
    os.utime(raylet, (ended.stat().st_mtime + 1,) * 2)
    assert log_of_an_ended_process(since=0.0).endswith(f"log of the process: {raylet}\nSegmentation fault")


def test_log_is_waited_for_until_ray_knows_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, None, "\nlog of the process: worker-12.err"])
    monkeypatch.setattr(remote_errors, "_known_worker_log", lambda actor_id: next(answers))
    assert full_cause(died_actor(EXIT)).endswith("\nlog of the process: worker-12.err")


def test_dead_actor_whose_process_stays_unknown_has_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_errors, "_known_worker_log", lambda actor_id: None)
    monkeypatch.setattr(remote_errors, "_PATIENCE_SECONDS", 0.2)
    assert "log of the process" not in full_cause(died_actor(EXIT))
