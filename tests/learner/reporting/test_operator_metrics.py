"""What is told to Ray's Prometheus endpoint, and that its errors never reach training.

What the endpoint serves is tested in end_to_end/test_token_cluster.py.
"""

import pytest

from learner.reporting import operator_metrics
from learner.reporting.operator_metrics import COUNTERS, GAUGES, REFRESH_SECONDS, OperatorMetrics


def row(**values):
    """One update's row of metrics.jsonl."""
    return {
        "frames": 64, "policy_version": 1, "policy_lag": 0.0, "max_policy_lag": 0, "fps": 100.0, "episodes": 3,
        "episode_return": None, "episode_length": None, "seconds_waiting": 3.0, "seconds_training": 0.5,
        "seconds_publishing": 0.25, "seconds_saving": 0.25, "seconds_collecting": 2.0, "seconds_transfer": 0.25,
        "seconds_staging": 0.125,
        "bytes_per_frame": 12288.0, "actors_ready": 2, "actor_restarts": 0, "actors_hung": 0, "lost_rollouts": 0,
        "dropped_for_lag": 0, "skipped_updates": 0, **values,
    }  # fmt: skip


class Recorder:
    """Replaces Ray's Gauge and Counter, which cannot be read."""

    values: dict[tuple[str, ...], float]
    times_set: int

    def __init__(self, name, description, tag_keys):
        self.name, self.tag_keys = name, tag_keys
        self.run = ""

    def set_default_tags(self, tags):
        assert self.tag_keys[0] == "run"
        self.run = tags["run"]
        return self

    def _record(self, value, tags):
        assert tuple(tags) == self.tag_keys[1:]
        key = (self.name, *tags.values())
        Recorder.values[key] = Recorder.values.get(key, 0.0) + value

    def inc(self, value, tags):
        assert value > 0
        self._record(value, tags)

    def set(self, value, tags):
        assert type(value) is float and tuple(tags) == self.tag_keys[1:]
        Recorder.values[(self.name, *tags.values())] = value
        Recorder.times_set += 1


@pytest.fixture
def recorded(monkeypatch):
    """The values recorded so far, by name and label."""
    Recorder.values, Recorder.times_set = {}, 0
    monkeypatch.setattr(operator_metrics, "Gauge", Recorder)
    monkeypatch.setattr(operator_metrics, "Counter", Recorder)
    return Recorder.values


def new_metrics(totals=None):
    return OperatorMetrics("run", num_actors=4, totals=totals or {}, in_flight_bytes=lambda: 7)


def test_every_counter_exists_at_zero_from_the_start(recorded):
    assert new_metrics().last_error is None
    zeros = {key for key, value in recorded.items() if value == 0}
    assert zeros == {(name, *filter(None, [value])) for name, m in COUNTERS.items() for value in m.label_values}


def test_row_of_an_update_becomes_gauges_and_increases(recorded):
    metrics = new_metrics()
    metrics.update(row())
    metrics.update(row(frames=128, policy_version=2, fps=50.0, policy_lag=0.5, max_policy_lag=1))
    assert metrics.last_error is None
    expected = {
        "heldout_frames": 128, "heldout_updates": 2, "heldout_episodes": 6, "heldout_waiting_seconds": 6.0,
        "heldout_training_seconds": 1.0, "heldout_publishing_seconds": 0.5, "heldout_saving_seconds": 0.5,
        "heldout_collecting_seconds": 4.0,
        "heldout_transfer_seconds": 0.5, "heldout_staging_seconds": 0.25, "heldout_frames_per_second": 50.0,
        "heldout_policy_version": 2, "heldout_policy_lag": 0.5, "heldout_policy_lag_max": 1,
        "heldout_learner_idle_ratio": 0.75, "heldout_bytes_per_frame": 12288, "heldout_actors_ready": 2,
        "heldout_actors_wanted": 4,
    }  # fmt: skip
    assert {name: recorded[name,] for name in expected} == expected
    assert ("heldout_episode_return",) not in recorded


def test_resumed_run_counts_only_increases(recorded):
    totals = {"frames": 640, "policy_version": 10, "actor_restarts": 5, "lost_rollouts": 4, "actors_hung": 3}
    metrics = new_metrics(totals)
    metrics.update(row(frames=704, policy_version=11, actor_restarts=6, lost_rollouts=4, actors_hung=3))
    assert recorded["heldout_frames",] == 64 and recorded["heldout_updates",] == 1
    assert recorded["heldout_actor_restarts",] == 1
    assert recorded["heldout_rollouts_dropped", "lost"] == recorded["heldout_rollouts_dropped", "hung"] == 0
    assert recorded["heldout_policy_version",] == 11


def test_every_dropped_rollout_has_one_reason(recorded):
    metrics = new_metrics()
    # lost_rollouts counts those of hung actors too
    metrics.update(row(lost_rollouts=5, actors_hung=2, dropped_for_lag=4, skipped_updates=1))
    dropped = {key[1]: value for key, value in recorded.items() if key[0] == "heldout_rollouts_dropped"}
    assert dropped == {"lost": 3, "hung": 2, "lag": 4}
    assert recorded["heldout_skipped_updates",] == 1


def test_scores_have_a_label_for_the_split_and_absent_scores_no_series(recorded):
    metrics = new_metrics()
    train = {"mean": 6.5, "interval": [5.0, 8.0], "episodes": 20}
    metrics.scored({"policy_version": 30, "train": train, "generalization_gap": None, "test": train})
    scores = {key: value for key, value in recorded.items() if "score" in key[0] or "gap" in key[0]}
    assert scores == {
        ("heldout_score", "train"): 6.5,
        ("heldout_score_interval_low", "train"): 5.0,
        ("heldout_score_interval_high", "train"): 8.0,
        ("heldout_scored_policy_version",): 30,
    }
    held_out = {"mean": 4.0, "interval": None}
    metrics.scored({"policy_version": 40, "train": train, "held_out": held_out, "generalization_gap": 2.5})
    assert recorded["heldout_score", "held_out"] == 4.0 and recorded["heldout_generalization_gap",] == 2.5
    assert ("heldout_score_interval_low", "held_out") not in recorded
    assert metrics.last_error is None


def test_gauges_are_sent_again_while_nothing_changes(recorded, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(operator_metrics.time, "monotonic", lambda: now[0])
    metrics = new_metrics()
    metrics.update(row())
    metrics.set_status(10, True, False)
    assert recorded["heldout_in_flight_bytes",] == 7
    gauges = {key for key in recorded if key[0] in GAUGES}
    told = Recorder.times_set
    metrics.set_status(10, True, False)
    assert Recorder.times_set == told
    now[0] += REFRESH_SECONDS
    for key in gauges:
        del recorded[key]
    metrics.set_status(10, True, False)
    assert {key for key in recorded if key[0] in GAUGES} == gauges
    assert recorded["heldout_disk_problem",] == 1 and recorded["heldout_evaluator_problem",] == 0


def test_value_of_none_ends_a_series(recorded, monkeypatch):
    metrics = new_metrics()
    metrics.update(row(episode_return=5.0))
    metrics.update(row(episode_return=None))
    del recorded["heldout_episode_return",]
    metrics.set_status(10, True, False)
    assert ("heldout_episode_return",) not in recorded and metrics.last_error is None


def test_error_ends_metrics_with_one_line_and_is_not_raised(recorded):
    metrics = new_metrics()
    metrics.update({"frames": 64})
    assert metrics.last_error == "no more metrics for Prometheus: KeyError: 'fps'"
    metrics.update(row(frames=128))
    metrics.scored({})
    metrics.set_status(10, True, False)
    assert recorded["heldout_frames",] == 0
    assert len(metrics.last_error.splitlines()) == 1


def test_error_in_the_constructor_is_not_raised(monkeypatch):
    def broken(*args):
        raise RuntimeError("no metrics here")

    monkeypatch.setattr(operator_metrics, "Counter", broken)
    metrics = new_metrics()
    metrics.update(row())
    assert metrics.last_error == "no more metrics for Prometheus: RuntimeError: no metrics here"


def test_rays_classes_accept_all_metrics_without_a_running_ray():
    metrics = new_metrics()
    metrics.update(row(lost_rollouts=1, episode_return=1.0))
    metrics.scored({"policy_version": 1, "train": {"mean": 1.0, "interval": [0.0, 2.0]}})
    metrics.set_status(-1, False, False)
    assert metrics.last_error is None
