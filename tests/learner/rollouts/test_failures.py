"""Which failures count as the same. No cluster."""

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from learner.rollouts.failures import ActorHung, failure_kind


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
