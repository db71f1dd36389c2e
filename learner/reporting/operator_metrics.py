"""The run's numbers on Ray's Prometheus endpoint, for whoever operates the cluster. Nothing else depends on them.

Ray's agent on the learner's node serves them as `ray_heldout_...`, counters with `_total` behind, where the extra
`cluster` is installed; elsewhere recording does nothing. What is recorded goes into this process's memory, from which a
thread of Ray's own sends it to the agent every 10 s, and once more when the run leaves the cluster.

Every series has the label `run`, the name of the run directory; some have one more with a few fixed values. There is
none per actor, node or level. Counters begin at zero in each learner process, as Prometheus expects of them: over all
processes of a run on one cluster they add up to what metrics.jsonl counts.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ray.util.metrics import Counter, Gauge

# The agent forgets a gauge that it was not sent for 20 s; an update can take longer.
REFRESH_SECONDS = 5.0

Row = Mapping[str, Any]


class Definition(NamedTuple):
    """What a metric is, and where in a row of metrics.jsonl it comes from; counters are totals there."""

    text: str
    field: str | None = None
    label: str | None = None
    label_values: tuple[str, ...] = ("",)


_SPLITS = ("train", "held_out")

GAUGES = {
    "heldout_frames_per_second": Definition("Frames of the last update by its wall time.", "fps"),
    "heldout_policy_version": Definition("Completed updates of the run.", "policy_version"),
    "heldout_policy_lag": Definition(
        "Learner's version minus that of a rollout, mean of the last batch.", "policy_lag"
    ),
    "heldout_policy_lag_max": Definition(
        "Learner's version minus that of the last batch's oldest rollout.", "max_policy_lag"
    ),
    "heldout_learner_idle_ratio": Definition("Share of the last update in which the learner waited for a batch."),
    "heldout_bytes_per_frame": Definition("Bytes in which a frame reached the learner, 12288 raw.", "bytes_per_frame"),
    "heldout_in_flight_bytes": Definition("Raw size of the rollouts that actors have been asked for."),
    "heldout_actors_ready": Definition("Actors that can collect.", "actors_alive"),
    "heldout_actors_wanted": Definition("Actors that the run has work for (--num-actors)."),
    "heldout_episode_return": Definition("Raw return of the last 100 training episodes, mean.", "episode_return"),
    "heldout_episode_length": Definition("Steps of the last 100 training episodes, mean.", "episode_length"),
    "heldout_score": Definition("Evaluator's mean raw return of the newest score.", None, "split", _SPLITS),
    "heldout_score_interval_low": Definition("Lower end of the newest score's 95 % interval.", None, "split", _SPLITS),
    "heldout_score_interval_high": Definition("Upper end of the newest score's 95 % interval.", None, "split", _SPLITS),
    "heldout_generalization_gap": Definition("Training-level score minus held-out score of the newest score."),
    "heldout_scored_policy_version": Definition("policy_version of the newest score."),
    "heldout_checkpoint_policy_version": Definition("policy_version of the newest checkpoint on the disk, -1: none."),
    "heldout_disk_problem": Definition("1 while the run directory cannot be written, else 0."),
    "heldout_evaluator_problem": Definition("1 while something stands against the evaluator, else 0."),
}

COUNTERS = {
    "heldout_frames": Definition("Environment steps that the learner has trained on.", "frames"),
    "heldout_updates": Definition("Updates, those passed over included.", "policy_version"),
    "heldout_updates_passed_over": Definition("Updates that were not finite.", "skipped_updates"),
    "heldout_episodes": Definition("Training episodes that ended."),
    "heldout_actor_restarts": Definition("Actors that were started in place of another.", "actor_restarts"),
    "heldout_rollouts_dropped": Definition(
        "Rollouts asked for and not used: lost on the way, of an actor that hung, too old.",
        None,
        "reason",
        ("lost", "hung", "lag"),
    ),
    "heldout_waiting_seconds": Definition("Seconds that the learner waited for batches."),
    "heldout_training_seconds": Definition("Seconds that the learner computed updates."),
    "heldout_publishing_seconds": Definition("Seconds that the learner handed out weights."),
    "heldout_collecting_seconds": Definition("Seconds of stepping environments, of each batch its slowest rollout."),
    "heldout_transfer_seconds": Definition("Seconds that rollouts were on their way, of each batch its slowest one."),
    "heldout_staging_seconds": Definition("Seconds of copying rollouts into batches."),
}

_SECONDS = ("waiting", "training", "publishing", "collecting", "transfer", "staging")


class OperatorMetrics:
    """Made after Ray was joined, used by the learner's thread. No call raises or waits for anything.

    `totals` is where a resumed run's counters stand, by their names in a row; what came before is not counted here.
    `problem` is one line about an error, after which nothing more is recorded, or None.
    """

    def __init__(self, run: str, num_actors: int, totals: Row, in_flight_bytes: Callable[[], int]):
        self.problem: str | None = None
        self._in_flight_bytes = in_flight_bytes
        self._counted = {field: float(totals.get(field, 0)) for field in _total_fields()}
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._values: dict[tuple[str, str], float] = {}
        self._refresh_at = 0.0
        self._try(self._begin, run, num_actors)

    def update(self, row: Row) -> None:
        """Takes in an update's row of metrics.jsonl."""
        self._try(self._update, row)

    def scored(self, row: Row) -> None:
        """Takes in a checkpoint's row of evaluations.jsonl."""
        self._try(self._scored, row)

    def standing(self, checkpoint_policy_version: int, disk_problem: bool, evaluator_problem: bool) -> None:
        """What is on the disk, and what is wrong now."""
        self._try(self._standing, checkpoint_policy_version, disk_problem, evaluator_problem)

    def refresh(self) -> None:
        """Keeps gauges from being forgotten; to be called often, also while there is nothing new."""
        if time.monotonic() >= self._refresh_at:
            self._try(self._refresh)

    def _try(self, record: Callable[..., None], *args: Any) -> None:
        if self.problem is not None:
            return
        try:
            record(*args)
        except Exception as error:  # whatever it is, training is worth more
            self.problem = f"no more metrics for Prometheus: {type(error).__name__}: {error}"

    def _begin(self, run: str, num_actors: int) -> None:
        for name, metric in GAUGES.items():
            self._gauges[name] = Gauge(name, metric.text, _label_names(metric)).set_default_tags({"run": run})
        for name, metric in COUNTERS.items():
            self._counters[name] = Counter(name, metric.text, _label_names(metric)).set_default_tags({"run": run})
            for value in metric.label_values:
                # Otherwise the first event would make the series instead of an increase; `inc` takes no zero.
                self._counters[name]._record(0.0, _labels(metric, value))
        self._set("heldout_actors_wanted", num_actors)

    def _update(self, row: Row) -> None:
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
        whole = row["seconds_waiting"] + row["seconds_training"] + row["seconds_publishing"]
        self._set("heldout_learner_idle_ratio", row["seconds_waiting"] / whole if whole else None)

    def _scored(self, row: Row) -> None:
        for split in _SPLITS:
            score = row.get(split) or {}
            low, high = score.get("interval") or (None, None)
            self._set("heldout_score", score.get("mean"), split)
            self._set("heldout_score_interval_low", low, split)
            self._set("heldout_score_interval_high", high, split)
        self._set("heldout_generalization_gap", row.get("generalization_gap"))
        self._set("heldout_scored_policy_version", row["policy_version"])

    def _standing(self, checkpoint_policy_version: int, disk_problem: bool, evaluator_problem: bool) -> None:
        self._set("heldout_checkpoint_policy_version", checkpoint_policy_version)
        self._set("heldout_disk_problem", disk_problem)
        self._set("heldout_evaluator_problem", evaluator_problem)

    def _refresh(self) -> None:
        self._refresh_at = time.monotonic() + REFRESH_SECONDS
        # Read here, not in `update`: between two updates of sync mode it is always zero.
        self._set("heldout_in_flight_bytes", self._in_flight_bytes())
        for (name, label_value), value in self._values.items():
            self._gauges[name].set(value, _labels(GAUGES[name], label_value))

    def _set(self, name: str, value: float | None, label_value: str = "") -> None:
        """None and what is not finite: the series ends when the agent has forgotten it."""
        if value is None or not math.isfinite(value):
            self._values.pop((name, label_value), None)
            return
        self._values[name, label_value] = float(value)
        self._gauges[name].set(float(value), _labels(GAUGES[name], label_value))

    def _add(self, name: str, value: float, label_value: str = "") -> None:
        if value > 0:
            self._counters[name].inc(float(value), _labels(COUNTERS[name], label_value))

    def _increase(self, row: Row, field: str) -> float:
        """By how much a total has grown since the last row."""
        before, self._counted[field] = self._counted[field], float(row[field])
        return self._counted[field] - before


def _total_fields() -> set[str]:
    """Totals in a row that become counters."""
    fields = {metric.field for metric in COUNTERS.values() if metric.field is not None}
    return fields | {"actors_hung", "lost_rollouts", "dropped_for_lag"}


def _label_names(metric: Definition) -> tuple[str, ...]:
    return ("run",) if metric.label is None else ("run", metric.label)


def _labels(metric: Definition, value: str) -> dict[str, str]:
    return {} if metric.label is None else {metric.label: value}
