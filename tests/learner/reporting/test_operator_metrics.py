"""Metrics on Ray's Prometheus endpoint equal the run's rows, and their errors never reach training."""

import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from learner.reporting import operator_metrics
from learner.reporting.operator_metrics import COUNTERS, GAUGES, REFRESH_SECONDS, OperatorMetrics
from tests.conftest import free_ports, wait_until

SERIES = sum(len(metric.label_values) for metric in (*GAUGES.values(), *COUNTERS.values()))
AGENT_NEEDS = ("prometheus_client", "opentelemetry", "opencensus", "aiohttp_cors")
needs_agent = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in AGENT_NEEDS),
    reason="Ray serves metrics only with the extra `cluster` (ray[default])",
)


def row(**values):
    """One update's row of metrics.jsonl."""
    return {
        "frames": 64, "policy_version": 1, "policy_lag": 0.0, "max_policy_lag": 0, "fps": 100.0, "episodes": 3,
        "episode_return": None, "episode_length": None, "seconds_waiting": 3.0, "seconds_training": 0.5,
        "seconds_publishing": 0.5, "seconds_collecting": 2.0, "seconds_transfer": 0.25, "seconds_staging": 0.125,
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
        "heldout_training_seconds": 1.0, "heldout_publishing_seconds": 1.0, "heldout_collecting_seconds": 4.0,
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


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """`ray start --head` with its agent: (environment of processes that join, address, URL of the metrics)."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, metrics_port, agent, client = free_ports(4)
    address, url = f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    # Short, because socket paths may have 107 bytes; removed with everything that Ray leaves in it.
    with tempfile.TemporaryDirectory(prefix="heldout-", ignore_cleanup_errors=True) as directory:
        with open(Path(directory, "head.log"), "w") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2"),
                    *(f"--port={port}", f"--metrics-export-port={metrics_port}"),
                    *("--include-dashboard=false", f"--dashboard-agent-listen-port={agent}"),
                    *(f"--ray-client-server-port={client}", f"--object-store-memory={250 << 20}"),
                    f"--temp-dir={directory}",
                ],
                env=without_ray_address(environment),
                stdout=log,
                stderr=log,
            )
        try:
            wait_until(lambda: read(url) is not None, process, output=Path(directory, "head.log"))
            yield environment, address, url
        finally:
            process.terminate()
            process.wait(timeout=120)


def without_ray_address(environment):
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**kept, **environment}


def read(url):
    """The endpoint's text, or None while it does not answer."""
    try:
        return urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return None


def served(url, run):
    """[(name, labels, value)] of one run, and the types by name."""
    from prometheus_client.parser import text_string_to_metric_families

    samples, types = [], {}
    for family in text_string_to_metric_families(read(url) or ""):
        for sample in family.samples:
            if sample.name.startswith("ray_heldout_") and sample.labels["run"] == run:
                samples.append((sample.name, sample.labels, sample.value))
                types[sample.name] = family.type
    return samples, types


@dataclass(frozen=True)
class Served:
    """A finished run of ten updates and what the endpoint said about it at its end."""

    run: Path
    samples: list[tuple[str, dict[str, str], float]]
    types: dict[str, str]


@pytest.fixture(scope="module")
def finished(head, run_learner, tiny, tmp_path_factory):
    environment, address, url = head
    run: Path = tmp_path_factory.mktemp("metrics") / "served"
    result = run_learner(
        *(*tiny, "--run-dir", run, "--address", address, "--total-frames", 640),
        *("--eval-episodes-per-level", 2, "--held-out-levels", 2),
        **environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # Ray sends once more when the learner disconnects; gauges stay for 20 s.
    return Served(run, *served(url, run.name))


@pytest.mark.processes
@needs_agent
def test_endpoint_serves_the_numbers_of_the_run_directory(finished, rows):
    run, samples, types = finished.run, finished.samples, finished.types
    values = {(name, labels.get("split") or labels.get("reason")): value for name, labels, value in samples}
    updates, (*_, score) = rows(run / "metrics.jsonl"), rows(run / "evaluations.jsonl")
    newest = updates[-1]
    absent = {name for name, metric in GAUGES.items() if metric.field is not None and newest[metric.field] is None}
    assert absent <= {"heldout_episode_return", "heldout_episode_length"}  # where no episode has ended yet
    assert len(samples) == len(values) == SERIES - len(absent)
    counters = {f"ray_{name}_total": "counter" for name in COUNTERS}
    assert types == {f"ray_{name}": "gauge" for name in GAUGES if name not in absent} | counters
    assert newest["frames"] == 640 and score["policy_version"] == 10
    for name, metric in {**GAUGES, **{f"{name}_total": metric for name, metric in COUNTERS.items()}}.items():
        if metric.field is not None and name not in absent:
            assert values[f"ray_{name}", None] == newest[metric.field], name
    for name in ("waiting", "training", "publishing", "collecting", "transfer", "staging"):
        total = sum(row[f"seconds_{name}"] for row in updates)
        assert values[f"ray_heldout_{name}_seconds_total", None] == pytest.approx(total)
    assert values["ray_heldout_episodes_total", None] == sum(row["episodes"] for row in updates)
    assert values["ray_heldout_checkpoint_policy_version", None] == 10
    assert values["ray_heldout_disk_problem", None] == values["ray_heldout_evaluator_problem", None] == 0
    assert values["ray_heldout_scored_policy_version", None] == 10
    assert values["ray_heldout_generalization_gap", None] == score["generalization_gap"]
    for split in ("train", "held_out"):
        assert values["ray_heldout_score", split] == score[split]["mean"]
        assert values["ray_heldout_score_interval_low", split] == score[split]["interval"][0]
        assert values["ray_heldout_score_interval_high", split] == score[split]["interval"][1]


@pytest.mark.processes
@needs_agent
def test_resumed_run_continues_without_a_jump_and_labels_are_few(head, finished, run_learner, rows):
    environment, address, url = head
    run = finished.run
    more = ("--resume", run, "--address", address, "--total-frames", 1024, "--no-evaluator")
    result = run_learner(*more, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    samples, _ = served(url, run.name)
    frames = sorted(value for name, _, value in samples if name == "ray_heldout_frames_total")
    assert frames == [384, 640]
    assert sum(frames) == rows(run / "metrics.jsonl")[-1]["frames"]
    # Set by Ray, with one value per process or cluster.
    by_ray = {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}
    ours = {
        name
        for _, labels, _ in (*finished.samples, *samples)
        for name in labels
        if name not in by_ray and not name.startswith("otel_scope_")
    }
    assert ours == {"run", "reason", "split"}
    assert len({labels["WorkerId"] for _, labels, _ in samples}) == 2
