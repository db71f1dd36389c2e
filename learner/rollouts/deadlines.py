"""When an actor counts as hung, from how long recent rollouts took. No clock: durations come in, a limit comes out."""

from collections import deque

# This many times the slowest recent rollout, but at least this many seconds.
HUNG_AFTER_ROLLOUTS, HUNG_AFTER_SECONDS = 10, 60.0
RECENT_ROLLOUTS = 32


class HungDeadline:
    """Used by the rollout stream's thread only."""

    def __init__(self, actor_timeout: float):
        self.actor_timeout = actor_timeout
        self._durations: deque[float] = deque(maxlen=RECENT_ROLLOUTS)

    def record(self, seconds: float) -> None:
        """A rollout took `seconds` from request to delivery."""
        self._durations.append(seconds)

    def seconds(self) -> float:
        """How long a rollout may take: never more than `actor_timeout`, which is the limit before the first rollout."""
        if not self._durations:
            return self.actor_timeout
        return min(self.actor_timeout, max(HUNG_AFTER_SECONDS, HUNG_AFTER_ROLLOUTS * max(self._durations)))
