"""What limited a run (actors, transfer, learner or disk), from the measured times, and what to change."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from common.config import Config
from common.games import OBSERVATION_SHAPE
from common.text import format_count

# A learner that waits for at most this share of the time is itself the bottleneck.
MAX_IDLE_FRACTION = 0.1
RAW_FRAME_BYTES = math.prod(OBSERVATION_SHAPE)
_SUMMED = (
    *("seconds_waiting", "seconds_training", "seconds_publishing", "seconds_saving"),
    *("seconds_collecting", "seconds_transfer", "bytes_per_frame"),
)


class Bottleneck:
    """Sums the times of a run's updates, without the first, which contains the start. Called by the main thread."""

    def __init__(self, config: Config, overlap: bool):
        self._config = config
        self._overlap = overlap
        self._updates = -1
        self._sums: Counter[str] = Counter()

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds an update's row of metrics.jsonl."""
        self._updates += 1
        if self._updates:
            self._sums.update({name: row[name] for name in _SUMMED})

    def describe(self) -> str | None:
        """One line: what limited the run and what would make it faster; None before the second update."""
        if self._updates < 1:
            return None
        means = {name: self._sums[name] / self._updates for name in _SUMMED}
        waiting, training = means["seconds_waiting"], means["seconds_training"] + means["seconds_publishing"]
        collecting, transfer = means["seconds_collecting"], means["seconds_transfer"]
        saving = means["seconds_saving"]
        whole = waiting + training + saving
        idle = waiting / whole
        if saving > MAX_IDLE_FRACTION * whole and saving > waiting:
            return (
                f"bound by the disk: the learner spent {saving / whole:.0%} of the time between updates, on metrics "
                "and on checkpoints that waited for the disk; use a faster disk or a larger --checkpoint-interval"
            )
        if idle <= MAX_IDLE_FRACTION or (not self._overlap and waiting <= training):
            return f"bound by the learner: it trained {training / whole:.0%} of the time and waited {idle:.0%}"
        if transfer > collecting:
            remedy = "move actors closer to the learner or use a faster link"
            if means["bytes_per_frame"] >= RAW_FRAME_BYTES:
                remedy = f"send less with --compression zstd, or {remedy}"
            return (
                f"bound by transfer: learner idle {idle:.0%}; a rollout took {collecting:.2f} s to collect and "
                f"{transfer:.2f} s to arrive, {means['bytes_per_frame']:,.0f} bytes per frame; {remedy}"
            )
        if not self._overlap:
            return (
                f"bound by actors: learner idle {idle:.0%} while actors collect; --mode overlap hides this time if the "
                "learner has its own device, and more actors on free cores shorten it"
            )
        # Collecting a batch takes training + waiting; this many more actors would reduce it to training alone.
        missing = max(1, math.ceil(self._config.num_actors * waiting / training))
        more = f"{format_count(missing, 'more actor')} of {self._config.envs_per_actor} envs"
        advice = f"about {more} would remove the wait"
        # With lag 1 the newest weights are the same, and a fast actor is at most one batch ahead either way.
        if self._config.repeatable and self._config.max_policy_lag > 1:
            advice += "; if actors differ in speed, --repeatable no lets fast ones do more"
        return f"bound by actors: learner idle {idle:.0%}; {advice}"
