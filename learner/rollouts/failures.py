"""What can be wrong with an actor or its rollout, and whether two failures have the same cause."""

import ray


class ActorHung(Exception):
    """An actor was not ready, or did not deliver a rollout, within its deadline."""


class WrongWeights(Exception):
    """An actor acted with other weights than those published for its rollout's policy version."""


class NoRollouts(RuntimeError):
    """No actor delivers rollouts any more, although the run had begun; the message is one line for the user."""


def failure_kind(error: BaseException) -> tuple[str, ...]:
    """Equal for failures with the same cause.

    That is type and message of an exception raised in the actor, and the type alone of anything else: Ray's messages
    about a process that died contain ids and times.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return type(error.cause).__name__, str(error.cause)
    return (type(error).__name__,)
