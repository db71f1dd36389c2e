"""How often a resume point is written: after every update, as long as all of them together cost little."""

# Of the time since the start of training.
MAX_SHARE = 0.01


class ResumeSchedule:
    """Allows the next resume point if everything spent so far and the next one stay within a share of the wall time.

    What a point costs is measured: the copy, for which training pauses, and the processor time of the thread that
    writes it. Waiting for the disk costs training nothing. Times are `time.monotonic()` seconds.
    """

    def __init__(self, now: float):
        self._started = now
        self._spent = 0.0
        self._last_cost = 0.0  # 0 until one is measured: the first point is always allowed

    def is_due(self, now: float) -> bool:
        """Whether a resume point may be written now."""
        return self._spent + self._last_cost <= MAX_SHARE * (now - self._started)

    def record(self, copy_seconds: float, write_seconds: float) -> None:
        """Adds the cost of a resume point, whether it could be written or not."""
        self._last_cost = copy_seconds + write_seconds
        self._spent += self._last_cost
