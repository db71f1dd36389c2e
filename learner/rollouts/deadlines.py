"""When an actor counts as hung, from how long recent rollouts took, and a clock for all such deadlines."""

import time
from collections import deque
from collections.abc import Callable

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


class AwakeClock:
    """A monotonic clock that hardly advances while this process sleeps: a closed laptop lid, a paused VM, SIGSTOP.

    The others slept as well, so that a deadline must not count this time. Its user reads it often; the time since the
    last reading counts as `longest_step` seconds at most. It always advances, so that no deadline waits forever. Used
    by one thread.
    """

    def __init__(self, longest_step: float, clock: Callable[[], float] = time.monotonic):
        self._longest_step = longest_step
        self._clock = clock
        self._last_reading = clock()
        self._now = 0.0

    def now(self) -> float:
        """Seconds since this clock was made, without sleep."""
        reading = self._clock()
        self._now += min(reading - self._last_reading, self._longest_step)
        self._last_reading = reading
        return self._now
