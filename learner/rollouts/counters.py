"""What a run counts about its actors, rollouts and updates, over all its resumptions."""

from dataclasses import dataclass


@dataclass(slots=True)
class RunCounters:
    """One object for the whole learner process. Every field has one writer; checkpoints and metrics rows read it.

    `actors_ready` is the present number, not a total, and is not part of a checkpoint.
    """

    actor_restarts: int = 0  # the fleet
    actors_hung: int = 0  # the stream
    lost_rollouts: int = 0  # the stream
    dropped_for_lag: int = 0  # the stream
    skipped_updates: int = 0  # the training loop
    actors_ready: int = 0  # the stream
