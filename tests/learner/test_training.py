"""The training loop with a stream, a learner and an evaluator that only record what they are asked."""

import dataclasses
import io
import logging
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from common.messages import ActorState
from common.resolution import resolve
from common.storage.checkpoints import list_checkpoints, load_checkpoint, load_newest_complete
from common.storage.jsonl import append_jsonl, read_jsonl
from common.storage.run_directory import RunDirectory
from learner import training
from learner.ppo.learner import STATISTICS, NotFinite
from learner.reporting import checkpoint_writer
from learner.reporting.bottleneck import Bottleneck
from learner.reporting.operator_metrics import OperatorMetrics
from learner.reporting.progress import Progress
from learner.reporting.reporter import Reporter
from learner.reporting.run_log import RunLog
from learner.rollouts.staging import RolloutSource, StagedBatch
from learner.run_state import RunState
from learner.stopping import StopRequested
from learner.training import MAX_SKIPPED_IN_A_ROW, Diverged, RunDirectoryFailed, Training

CONFIG = resolve(
    "lab",
    {
        **{"num_actors": 1, "envs_per_actor": 2, "unroll_length": 4, "num_minibatches": 2},
        **{"total_frames": 40, "checkpoint_interval": 2},
    },
)

ACTOR_STATE = ActorState(
    env_states=np.zeros(2, np.uint8),
    env_state_sizes=np.ones(2, np.int64),
    running_return=np.zeros(2),
    running_length=np.zeros(2, np.int32),
    generator=np.zeros(1, np.uint8),
)


class FakeStream:
    max_policy_lag = 0

    def __init__(self, calls):
        self.calls = calls
        self.fleet = SimpleNamespace(last_error=None)
        self.batch = StagedBatch(CONFIG, torch.device("cpu"))

    def next_batch(self, poll):
        poll()
        self.calls.append("next_batch")
        self.batch.sources = {
            0: RolloutSource(
                actor_id=0,
                policy_version=self.version,
                episode_envs=np.array([0]),
                episode_returns=np.float32([5.0]),
                episode_lengths=np.int32([9]),
                collect_seconds=1.0,
                transfer_seconds=0.5,
                frame_bytes=8,
                next_state=ACTOR_STATE,
            )
        }
        return self.batch

    def publish(self, weights, policy_version):
        self.batch.clear()  # the stream may reuse the batch from here on
        self.version = policy_version
        self.calls.append(f"publish {policy_version}")


class FakeLearner:
    """An update adds 1 to its only weight; updates with their version in `not_finite` fail."""

    def __init__(self, calls, not_finite=()):
        self.calls, self.not_finite = calls, not_finite
        self.policy_version = self.frames = 0
        self.weight = 0.0

    def update(self, batch, poll):
        poll()
        if self.policy_version + 1 in self.not_finite:
            raise NotFinite(dict.fromkeys(STATISTICS, float("nan")))
        self.weight += 1
        self.skip_update()
        self.calls.append("update")
        return dict.fromkeys(STATISTICS, 0.5)

    def skip_update(self):
        self.policy_version += 1
        self.frames += CONFIG.batch_size

    def weights(self):
        return {"w": np.full(1, self.weight, np.float32)}

    def state_dict(self):
        return {"weight": torch.tensor(self.weight), "policy_version": self.policy_version}


class FakeEvaluator:
    last_error, is_off = None, False

    def __init__(self):
        self.notified, self.waited_for = [], []

    def notify(self, notice):
        self.notified.append(notice.policy_version)

    def latest(self):
        return None

    def may_score(self, policy_version):
        return False

    def wait_for_score(self, policy_version, timeout, poll):
        poll()
        self.waited_for.append((policy_version, timeout))
        split = {"mean": 5.0, "interval": [4.0, 6.0], "episodes": 1}
        return {"policy_version": policy_version, "frames": 0, "train": split, "held_out": split}


class RecordingProgress(Progress):
    def __init__(self, calls, *args):
        super().__init__(*args)
        self.calls = calls

    def update(self, row):
        self.calls.append("report")
        super().update(row)


class Harness:
    """A `Training` on fakes, in the run directory `path`."""

    def __init__(self, path, not_finite=(), resumed_from=None, version=0):
        self.calls, self.screen, self.stop_at = [], io.StringIO(), None
        self.run = RunDirectory(path)
        self.learner, self.stream = FakeLearner(self.calls, not_finite), FakeStream(self.calls)
        for _ in range(version):
            self.learner.skip_update()
        self.evaluator, self.state = FakeEvaluator(), RunState.new(CONFIG)
        progress = RecordingProgress(self.calls, CONFIG, Console(file=self.screen))
        metrics = OperatorMetrics("run", 1, {}, lambda: 0)
        log = RunLog(self.run, purge_step=0)
        reporter = Reporter(log, Bottleneck(CONFIG, overlap=False), progress, metrics)
        stop = SimpleNamespace(check=self.check)
        self.training = Training(
            CONFIG, self.run, self.learner, self.stream, self.evaluator, reporter, stop, self.state, resumed_from
        )

    def check(self):
        if self.learner.policy_version == self.stop_at:
            raise StopRequested(15)

    def rows(self):
        return [row["policy_version"] for row in read_jsonl(self.run.metrics)]

    def checkpoints(self):
        return [int(path.name) for path in list_checkpoints(self.run.checkpoints)]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(training, "LAST_WRITE_SECONDS", 5.0)
    monkeypatch.setattr(training, "STOPPED_WRITE_SECONDS", 5.0)


@pytest.fixture
def harness(tmp_path):
    return Harness(tmp_path)


def test_loop_gets_a_batch_updates_publishes_and_reports_in_this_order(harness):
    harness.training.run_to_end()
    one_update = ["next_batch", "update", "publish", "report"]
    assert [call.split()[0] for call in harness.calls] == ["publish", *one_update * 5]
    assert [call for call in harness.calls if "publish" in call] == [f"publish {version}" for version in range(6)]
    rows = read_jsonl(harness.run.metrics)
    assert [row["frames"] for row in rows] == [8, 16, 24, 32, 40]
    assert all(row["policy_lag"] == 0 and row["episodes"] == 1 and row["bytes_per_frame"] == 1 for row in rows)
    assert harness.screen.getvalue().count("update ") == 5


def test_times_of_an_update_are_all_times_since_the_last_one(harness, monkeypatch):
    """Also that of a checkpoint that waits for the disk."""
    now = 0.0

    def taking(seconds, call):
        def timed(*arguments):
            nonlocal now
            now += seconds
            return call(*arguments)

        return timed

    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now, monotonic=time.monotonic))
    monkeypatch.setattr(training.CheckpointWriter, "put", taking(10, training.CheckpointWriter.put))
    for owner, name, seconds in (
        (harness.stream, "next_batch", 1),
        (harness.learner, "update", 2),
        (harness.stream, "publish", 3),
    ):
        monkeypatch.setattr(owner, name, taking(seconds, getattr(owner, name)))
    harness.training.run_to_end()
    rows = read_jsonl(harness.run.metrics)
    phases = ("waiting", "training", "publishing", "saving")
    times = [[row[f"seconds_{phase}"] for phase in phases] for row in rows]
    assert times == [[1, 2, 3, 0], [1, 2, 3, 0], [1, 2, 3, 10], [1, 2, 3, 0], [1, 2, 3, 10]]  # after versions 2 and 4
    assert [row["fps"] for row in rows] == [8 / sum(seconds) for seconds in times]


def test_update_whose_weights_cannot_be_published_has_a_row_and_a_checkpoint(harness):
    publish = harness.stream.publish

    def fails_at_version_3(weights, version):
        if version == 3:
            raise RuntimeError("no room in the object store")
        publish(weights, version)

    harness.stream.publish = fails_at_version_3
    with pytest.raises(RuntimeError, match="no room"):
        harness.training.run_to_end()
    assert harness.rows() == [1, 2, 3] and harness.checkpoints() == [0, 2, 3]
    assert list(harness.state.weights)[-1] == 3


def test_checkpoints_are_written_at_the_start_every_interval_and_the_end(harness):
    harness.training.run_to_end()
    assert harness.checkpoints() == [0, 2, 4, 5]
    assert harness.evaluator.notified == [0, 2, 4, 5]
    assert harness.evaluator.waited_for == [(5, CONFIG.eval_timeout)]
    assert harness.screen.getvalue().count("final score: train ") == 1
    newest = load_checkpoint(harness.run.checkpoints / "00000005")
    assert newest.weights["w"] == 5 and newest.learner_state["learner"]["policy_version"] == 5
    assert newest.learner_state["run"]["episodes"]["actors"][0]["last"] == [[(5.0, 9)] * 5, []]


@pytest.mark.parametrize(
    ("backfill", "scored", "end"),
    [
        (False, (0, 4, 5), ", older checkpoints skipped: 2"),
        (True, (0, 5), ", older checkpoints skipped: 2"),  # more than --eval-timeout allowed for
        (True, (0, 4, 5), ", older checkpoints skipped: 1"),
        (True, (0, 2, 4, 5), "frames 0)"),
    ],
)
def test_final_line_counts_what_is_still_skipped_after_a_backfill(harness, backfill, scored, end, monkeypatch):
    def wait_for_score(policy_version, timeout, poll):
        for version in scored:
            append_jsonl(harness.run.evaluations, row | {"policy_version": version})
        return row | {"policy_version": policy_version, "skipped": 2}

    split = {"mean": 5.0, "interval": None, "levels": 1, "episodes": 1}
    split |= dict.fromkeys(("normalized", "success_rate", "timeout_rate"), 0.5)
    board = dict.fromkeys(("solved", "newly_solved", "forgotten"), 0)
    row = {"train": split, "held_out": split, "held_out_split": "test", "scoreboard": {"test": board}}
    row |= {"frames": 0, "updates_behind": 0, "skipped": 0, "seconds": 1, "generalization_gap": 0, "policy_sha256": ""}
    monkeypatch.setattr(harness.evaluator, "wait_for_score", wait_for_score)
    harness.training.config = dataclasses.replace(CONFIG, backfill=backfill)
    harness.training.run_to_end()
    (line,) = [line for line in harness.screen.getvalue().splitlines() if line.startswith("final score: ")]
    assert line.endswith(end)


def test_resumed_run_announces_its_checkpoint_and_does_not_write_it_again(tmp_path):
    harness = Harness(tmp_path, resumed_from=tmp_path / "checkpoints" / "00000003", version=3)
    harness.training.run_to_end()
    assert harness.rows() == [4, 5] and harness.checkpoints() == [4, 5]
    assert harness.evaluator.notified == [3, 4, 5]


def test_resumed_run_first_publishes_the_older_weights_of_its_batches(tmp_path):
    harness = Harness(tmp_path, resumed_from=tmp_path / "checkpoints" / "00000003", version=3)
    harness.state.weights = {version: {"w": np.full(1, version, np.float32)} for version in (1, 2)}
    harness.training.run_to_end()
    published = [call for call in harness.calls if "publish" in call]
    assert published == [f"publish {version}" for version in (1, 2, 3, 4, 5)]
    assert list(harness.state.weights) == [5]  # this config's lag is 0


def test_stop_request_leaves_the_newest_update_in_a_checkpoint(harness):
    harness.stop_at = 3
    with pytest.raises(StopRequested):
        harness.training.run_to_end()
    assert harness.rows() == [1, 2, 3]
    newest = load_newest_complete(harness.run.checkpoints, on_damaged=pytest.fail)
    assert newest.policy_version == 3 and newest.weights["w"] == 3
    assert harness.evaluator.waited_for == []


def test_skipped_update_is_counted_logged_and_saved_and_training_continues(tmp_path, caplog):
    harness = Harness(tmp_path, not_finite={2, 3, 5})
    harness.training.run_to_end()
    assert harness.rows() == [1, 2, 3, 4, 5] and harness.learner.weight == 2
    assert [row["skipped_updates"] for row in read_jsonl(harness.run.metrics)] == [0, 1, 2, 2, 3]
    assert [path.name for path in list_checkpoints(harness.run.diagnosis)] == ["00000001", "00000002", "00000004"]
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.partition(";")[0] for text in warnings] == [
        f"update {version} was not finite and is skipped" for version in (2, 3, 5)
    ]


def test_three_skipped_updates_in_a_row_end_the_run(tmp_path):
    harness = Harness(tmp_path, not_finite={2, 3, 4})
    with pytest.raises(Diverged, match="not finite in 3 updates in a row"):
        harness.training.run_to_end()
    assert harness.rows() == [1, 2, 3, 4] and harness.state.counters.skipped_updates == MAX_SKIPPED_IN_A_ROW
    newest = load_checkpoint(harness.run.checkpoints / "00000004")
    assert newest.weights["w"] == 1 and newest.learner_state["run"]["counters"]["skipped_updates"] == 3


def test_run_whose_last_checkpoint_cannot_be_written_fails(harness):
    harness.run.checkpoints.write_text("in the way")
    with pytest.raises(RunDirectoryFailed, match=r"checkpoints cannot be written to .* none has been written"):
        harness.training.run_to_end()
    assert harness.rows() == [1, 2, 3, 4, 5] and harness.evaluator.waited_for == []


def test_run_whose_metrics_cannot_be_written_fails_after_its_checkpoint(harness):
    harness.run.metrics.mkdir()
    with pytest.raises(RunDirectoryFailed, match="metrics wait in memory"):
        harness.training.run_to_end()
    assert harness.checkpoints() == [0, 2, 4, 5]


def test_failing_directory_does_not_hide_why_the_run_stopped(harness, caplog):
    harness.run.checkpoints.write_text("in the way")
    harness.stop_at = 2
    with pytest.raises(StopRequested):
        harness.training.run_to_end()
    assert "the newest update could not be saved: checkpoints cannot be written" in caplog.text
