"""Which failures count as the same, and what a person reads about one. No cluster."""

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from learner.rollouts.failures import ActorHung, failure_kind, full_text, last_log_lines


def task_error(cause, traceback="Traceback (most recent call last):\n  File x\n"):
    return RayTaskError("build", traceback, cause, proctitle="ray::Actor.build", pid=7, ip="10.0.0.2")


@pytest.mark.parametrize("wrap", [lambda error: error, RayTaskError.as_instanceof_cause])
def test_exceptions_in_the_actor_are_the_same_if_type_and_message_are(wrap):
    kind = failure_kind(wrap(task_error(ValueError("no such game"))))
    assert kind == failure_kind(wrap(task_error(ValueError("no such game"), "another traceback")))
    assert kind != failure_kind(wrap(task_error(ValueError("another game"))))
    assert kind != failure_kind(wrap(task_error(KeyError("no such game"))))


def test_deaths_are_the_same_whatever_ray_writes_about_them():
    one, other = RayActorError("ab", "died at 10:00, pid 1"), RayActorError("cd", "died at 11:00, pid 2")
    assert failure_kind(one) == failure_kind(other) != failure_kind(ActorDiedError())
    assert failure_kind(ActorHung("no rollout within 60 s")) == failure_kind(ActorHung("no rollout within 61 s"))


def test_text_has_the_whole_traceback_without_terminal_colors():
    text = full_text(task_error(ValueError("x"), "Traceback (most recent call last):\n  File a\nValueError: x"))
    assert "ray::Actor.build" in text and text.endswith("File a\nValueError: x")
    assert "\x1b" not in text
    assert full_text(ActorHung()) == "ActorHung"


def test_end_of_a_log_is_read_if_the_file_is_on_this_machine(tmp_path):
    log = tmp_path / "worker.err"
    log.write_bytes(
        b"".join(b"line %d\n" % i for i in range(100)) + b":job_id:01000000\n" + b"\xff Segmentation fault\n"
    )
    lines = last_log_lines(str(log))
    assert lines[0] == "line 71" and lines[-1].endswith("Segmentation fault")
    assert last_log_lines(str(tmp_path / "elsewhere.err")) == []
