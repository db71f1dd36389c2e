"""What bound a run: actors, transfer or learner, from the measured waits, and what to change."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.games import OBSERVATION_SHAPE

# A learner that waits less than this share of the time is well fed.
WELL_FED = 0.1
RAW_FRAME_BYTES = math.prod(OBSERVATION_SHAPE)


@dataclass(frozen=True, slots=True)
class UpdateTimes:
    """Seconds of one update."""

    waiting: float  # the learner had no full batch
    training: float  # update, weights out of the device, `ray.put`
    collecting: float  # the slowest rollout of the batch, inside its actor
    transfer: float  # the slowest rollout of the batch, between the actor's end and its place in the batch
    bytes_per_frame: float = RAW_FRAME_BYTES  # as sent


def advice(times: Sequence[UpdateTimes], num_actors: int, envs_per_actor: int, overlap: bool) -> str | None:
    """One line: what bound the run and what would make it faster; None before there is anything to judge.

    The first update is left out: it contains start-up.
    """
    counted = times[1:]
    if not counted:
        return None
    waiting, training = (sum(getattr(t, name) for t in counted) for name in ("waiting", "training"))
    collecting, transfer = (sum(getattr(t, name) for t in counted) for name in ("collecting", "transfer"))
    idle = waiting / (waiting + training)
    if idle <= WELL_FED or (not overlap and waiting <= training):
        return f"bound by the learner: it trained {1 - idle:.0%} of the time and waited {idle:.0%}"
    if transfer > collecting:
        bytes_per_frame = sum(t.bytes_per_frame for t in counted) / len(counted)
        remedy = "put actors nearer to the learner or on a faster link"
        if bytes_per_frame >= RAW_FRAME_BYTES:
            remedy = f"--compression zstd sends less, or {remedy}"
        return (
            f"bound by transfer: learner idle {idle:.0%}; a rollout took {collecting / len(counted):.2f} s to collect "
            f"and {transfer / len(counted):.2f} s to arrive, {bytes_per_frame:,.0f} bytes a frame; {remedy}"
        )
    if not overlap:
        return (
            f"bound by actors: learner idle {idle:.0%} while they collect; --mode overlap would hide that where the "
            "learner has a device of its own, more actors on free cores would shorten it"
        )
    # Collecting a batch took training + waiting: so many more actors would bring it down to training alone.
    missing = max(1, math.ceil(num_actors * waiting / training))
    more = f"{missing} more actor{'' if missing == 1 else 's'} of {envs_per_actor} envs"
    return f"bound by actors: learner idle {idle:.0%}; about {more} would fill it"
