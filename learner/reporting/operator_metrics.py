"""The run's numbers on Ray's Prometheus endpoint, for the operators of a cluster. Nothing else depends on them.

Ray's agent on the learner's node serves them as `ray_heldout_...`, counters with the suffix `_total`, if the run joined
a cluster and the extra `cluster` is installed; otherwise recording does nothing. Values are kept in this process's
memory. A thread of Ray sends them to the agent every 10 s, and once more when the run leaves the cluster.

Every series has the label `run`, the name of the run directory; some have one more label with a few fixed values. No
label names an actor, a node or a level. Counters start at zero in each learner process, as Prometheus expects: summed
over all processes of a run on one cluster they equal what metrics.jsonl counts.
"""

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge

logger = logging.getLogger(__name__)

# The agent drops a gauge that it has not received for 20 s; an update can take longer.
REFRESH_SECONDS = 5.0

Row = Mapping[str, Any]


class Definition(NamedTuple):
    """A metric's help text and the column of metrics.jsonl it comes from; counters are totals there."""

    text: str
    field: str | None = None
    label: str | None = None
    label_values: tuple[str, ...] = ("",)


_SPLITS = ("train", "held_out")

GAUGES = {
    "heldout_frames_per_second": Definition("Frames of the last update divided by its wall time.", "fps"),
    "heldout_policy_version": Definition("Completed updates of the run.", "policy_version"),
    "heldout_policy_lag": Definition("Mean policy lag of the rollouts in the last batch.", "policy_lag"),
    "heldout_policy_lag_max": Definition("Largest policy lag of a rollout in the last batch.", "max_policy_lag"),
    "heldout_learner_idle_ratio": Definition("Share of the last update during which the learner waited for a batch."),
    "heldout_bytes_per_frame": Definition("Bytes per frame as received by the learner; 12288 raw.", "bytes_per_frame"),
    "heldout_in_flight_bytes": Definition("Raw size of the rollouts that actors are collecting."),
    "heldout_actors_ready": Definition("Actors that can collect.", "actors_ready"),
    "heldout_actors_wanted": Definition("Actors that the run can use (--num-actors)."),
    "heldout_episode_return": Definition(
        "Mean raw return of every environment's last training episodes; absent until all have had time for one.",
        "episode_return",
    ),
    "heldout_episode_length": Definition(
        "Mean length in steps of every environment's last training episodes; absent until all have had time for one.",
        "episode_length",
    ),
    "heldout_score": Definition("Mean raw return of the newest score.", None, "split", _SPLITS),
    "heldout_score_interval_low": Definition("Lower end of the newest score's 95 % interval.", None, "split", _SPLITS),
    "heldout_score_interval_high": Definition("Upper end of the newest score's 95 % interval.", None, "split", _SPLITS),
    "heldout_generalization_gap": Definition("Training score minus held-out score, of the newest score."),
    "heldout_scored_policy_version": Definition("policy_version of the newest score."),
    "heldout_checkpoint_policy_version": Definition("policy_version of the newest checkpoint on the disk, or -1."),
    "heldout_disk_problem": Definition("1 while the run directory cannot be written, else 0."),
    "heldout_evaluator_problem": Definition("1 while the evaluator is failing or dead, else 0."),
}

COUNTERS = {
    "heldout_frames": Definition("Environment steps that the learner has trained on.", "frames"),
    "heldout_updates": Definition("Updates, including skipped ones.", "policy_version"),
    "heldout_skipped_updates": Definition("Updates skipped because they were not finite.", "skipped_updates"),
    "heldout_episodes": Definition("Training episodes that ended."),
    "heldout_actor_restarts": Definition("Actors that replaced another.", "actor_restarts"),
    "heldout_rollouts_dropped": Definition(
        "Rollouts that were requested and not used: lost, from an actor that hung, or too old.",
        None,
        "reason",
        ("lost", "hung", "lag"),
    ),
    "heldout_waiting_seconds": Definition("Seconds that the learner waited for batches."),
    "heldout_training_seconds": Definition("Seconds that the learner computed updates."),
    "heldout_publishing_seconds": Definition("Seconds that the learner published weights."),
    "heldout_saving_seconds": Definition("Seconds between updates: rows, and checkpoints that waited for the disk."),
    "heldout_collecting_seconds": Definition("Seconds spent collecting the slowest rollout of each batch."),
    "heldout_transfer_seconds": Definition("Seconds spent transferring the slowest rollout of each batch."),
    "heldout_staging_seconds": Definition("Seconds spent copying rollouts into batches."),
}

_SECONDS = ("waiting", "training", "publishing", "saving", "collecting", "transfer", "staging")


def _never_raises(record: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(record)
    def guarded(self: "OperatorMetrics", *args: Any) -> None:
        if self.last_error is not None:
            return
        try:
            record(self, *args)
        except Exception as error:  # training matters more than its metrics
            self.last_error = f"no more metrics for Prometheus: {type(error).__name__}: {error}"
            logger.warning(self.last_error, exc_info=error)

    return guarded


class OperatorMetrics:
    """Created after Ray was joined; called by the learner's main thread. No call raises or waits.

    `totals` are the values of the counters at the start, by column of metrics.jsonl; only increases are counted here.
    `last_error` is one line about an error, after which nothing more is recorded, or None.
    """

    def __init__(self, run: str, num_actors: int, totals: Row, in_flight_bytes: Callable[[], int]):
        self.last_error: str | None = None
        self._in_flight_bytes = in_flight_bytes
        self._counted = dict(totals)
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._values: dict[tuple[str, str], float] = {}
        self._refresh_at = 0.0
        self._begin(run, num_actors)

    @_never_raises
    def _begin(self, run: str, num_actors: int) -> None:
        for name, metric in GAUGES.items():
            self._gauges[name] = Gauge(name, metric.text, _label_names(metric)).set_default_tags({"run": run})
        for name, metric in COUNTERS.items():
            self._counters[name] = Counter(name, metric.text, _label_names(metric)).set_default_tags({"run": run})
            for value in metric.label_values:
                # Otherwise the first event would create the series instead of an increase; `inc` rejects zero.
                self._counters[name]._record(0.0, _labels(metric, value))
        self._set("heldout_actors_wanted", num_actors)

    @_never_raises
    def update(self, row: Row) -> None:
        """Records an update's row of metrics.jsonl."""
        for name, metric in GAUGES.items():
            if metric.field is not None:
                self._set(name, row[metric.field])
        for name, metric in COUNTERS.items():
            if metric.field is not None:
                self._add(name, self._increase(row, metric.field))
        hung = self._increase(row, "actors_hung")
        self._add("heldout_rollouts_dropped", hung, "hung")
        self._add("heldout_rollouts_dropped", self._increase(row, "lost_rollouts") - hung, "lost")
        self._add("heldout_rollouts_dropped", self._increase(row, "dropped_for_lag"), "lag")
        self._add("heldout_episodes", row["episodes"])
        for phase in _SECONDS:
            self._add(f"heldout_{phase}_seconds", row[f"seconds_{phase}"])
        whole = sum(row[f"seconds_{phase}"] for phase in ("waiting", "training", "publishing", "saving"))
        self._set("heldout_learner_idle_ratio", row["seconds_waiting"] / whole if whole else None)

    @_never_raises
    def scored(self, row: Row) -> None:
        """Records a checkpoint's row of evaluations.jsonl."""
        for split in _SPLITS:
            score = row.get(split) or {}
            low, high = score.get("interval") or (None, None)
            self._set("heldout_score", score.get("mean"), split)
            self._set("heldout_score_interval_low", low, split)
            self._set("heldout_score_interval_high", high, split)
        self._set("heldout_generalization_gap", row.get("generalization_gap"))
        self._set("heldout_scored_policy_version", row["policy_version"])

    @_never_raises
    def set_status(self, newest_checkpoint: int, disk_fails: bool, evaluator_fails: bool) -> None:
        """Records the newest policy_version on the disk and what is failing now; sends gauges again before the agent
        drops them. Must be called every few seconds.
        """
        self._set("heldout_checkpoint_policy_version", newest_checkpoint)
        self._set("heldout_disk_problem", disk_fails)
        self._set("heldout_evaluator_problem", evaluator_fails)
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        # Read here, not in `update`: in sync mode it is always zero between two updates.
        self._set("heldout_in_flight_bytes", self._in_flight_bytes())
        for (name, label_value), value in self._values.items():
            self._gauges[name].set(value, _labels(GAUGES[name], label_value))

    def _set(self, name: str, value: float | None, label_value: str = "") -> None:
        """Sets a gauge; None and values that are not finite end the series."""
        if value is None or not math.isfinite(value):
            self._values.pop((name, label_value), None)
            return
        if self._values.get((name, label_value)) != value:
            self._values[name, label_value] = float(value)
            self._gauges[name].set(float(value), _labels(GAUGES[name], label_value))

    def _add(self, name: str, value: float, label_value: str = "") -> None:
        if value > 0:
            self._counters[name].inc(float(value), _labels(COUNTERS[name], label_value))

    def _increase(self, row: Row, field: str) -> float:
        """By how much a total has grown since the last row."""
        before, self._counted[field] = self._counted.get(field, 0), row[field]
        return float(row[field] - before)


def _label_names(metric: Definition) -> tuple[str, ...]:
    return ("run",) if metric.label is None else ("run", metric.label)


def _labels(metric: Definition, value: str) -> dict[str, str]:
    return {} if metric.label is None else {metric.label: value}
