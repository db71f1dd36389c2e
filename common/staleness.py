"""When a run without new updates may be dead, judged by its files alone: the same for `watch` and `study --status`."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

# No update for this many times the run's median update, and at least this many seconds.
_STALE_UPDATES = 5
_STALE_SECONDS = 60.0
_RECENT_UPDATES = 20


def stale_after(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Seconds without an update after which a run may be dead, from rows of metrics.jsonl, oldest first."""
    times = [row["time"] for row in metrics[-_RECENT_UPDATES:]]
    durations = sorted(later - earlier for earlier, later in pairwise(times))
    usual = durations[len(durations) // 2] if durations else _STALE_SECONDS
    return max(_STALE_SECONDS, _STALE_UPDATES * usual)
