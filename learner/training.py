"""The training loop: get a batch, update, publish weights, log, checkpoint. Everything else happens elsewhere.

stream.next_batch --StagedBatch--> learner.update --Weights--> stream.publish
                                        |-- run_log: metrics.jsonl, TensorBoard; progress
                                        '-- every checkpoint_interval: a copy --> checkpoint_writer
                                                                                        '--notice--> evaluator
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.config import Config
from common.messages import CheckpointNotice
from common.storage.run_directory import RunDirectory
from learner.ppo.learner import NotFinite, PPOLearner
from learner.reporting.bottleneck import UpdateTimes, advice
from learner.reporting.checkpoint_writer import PATIENCE_SECONDS, CheckpointWriter, Snapshot, on_host
from learner.reporting.diagnosis import save_diagnosis
from learner.reporting.progress import Progress
from learner.reporting.run_log import RunLog
from learner.rollouts.staging import StagedBatch
from learner.rollouts.stream import RolloutStream
from learner.run_state import COUNTERS, RunState
from learner.stopping import StopSignals

# Updates in a row that were not finite; then nothing is learned any more.
MOST_PASSED_OVER = 3
# What the last checkpoint may take to reach the disk at the end, and when a signal asked for an end within 30 s.
LAST_WRITE_SECONDS, STOPPED_WRITE_SECONDS = 120.0, 20.0


class EvaluatorHandle(Protocol):
    """What training needs of the evaluator: told, asked, never waited for but at the very end."""

    problem: str | None
    is_dead: bool

    def notify(self, notice: CheckpointNotice) -> None: ...
    def latest(self) -> dict[str, Any] | None: ...
    def finish(self, timeout: float) -> dict[str, Any] | None: ...


class OperatorMetricsHandle(Protocol):
    """Where a cluster's operators read the run's numbers; `learner.reporting.operator_metrics` is one."""

    problem: str | None

    def update(self, row: Mapping[str, Any]) -> None: ...
    def scored(self, row: Mapping[str, Any]) -> None: ...
    def standing(self, checkpoint_policy_version: int, disk_problem: bool, evaluator_problem: bool) -> None: ...
    def refresh(self) -> None: ...


class RunDirectoryFailed(RuntimeError):
    """The end of the run could not be written; the message is one line for the user."""


class Diverged(RuntimeError):
    """Updates are not finite any more; the message is one line for the user."""


@dataclass(slots=True)
class Training:
    """One run from its current version to the end.

    `resumed_from` is the checkpoint that the learner's state came from; `state` what came with it.
    """

    config: Config
    run: RunDirectory
    learner: PPOLearner
    stream: RolloutStream
    evaluator: EvaluatorHandle | None
    progress: Progress
    stop: StopSignals
    state: RunState = field(default_factory=RunState)
    resumed_from: Path | None = None
    operator_metrics: OperatorMetricsHandle | None = None
    times: list[UpdateTimes] = field(default_factory=list)
    last_scored: int = -1
    last_snapshot: int = -1
    passed_over_in_a_row: int = 0
    log: RunLog = field(init=False)
    writer: CheckpointWriter = field(init=False)

    def __post_init__(self) -> None:
        if self.resumed_from is not None:
            self.last_snapshot = self.learner.policy_version
        self.log = RunLog(self.run, purge_step=self.learner.frames or None)
        self.writer = CheckpointWriter(self.run, self.config, newest=self.last_snapshot)

    def run_to_end(self) -> dict[str, Any] | None:
        """Trains until total_frames; returns the last checkpoint's score, None without an evaluator or in time.

        Raises:
            StopRequested: a signal came; the newest completed update is in a checkpoint if the disk let it.
            Diverged: three updates in a row were not finite.
            RunDirectoryFailed: the last checkpoint or rows of metrics could not be written.
        """
        learner, config = self.learner, self.config
        self.stream.publish(learner.weights(), learner.policy_version)
        self.progress.start(learner.frames)
        try:
            if self.resumed_from is None:
                self._checkpoint()
            elif self.evaluator is not None:
                self.evaluator.notify(CheckpointNotice(str(self.resumed_from), learner.policy_version, learner.frames))
            while learner.frames < config.total_frames:
                row = self._one_update()
                self.log.add(row)
                self.progress.update(row)
                if self.operator_metrics is not None:
                    self.operator_metrics.update(row)
                self._show_news()
                if self.passed_over_in_a_row >= MOST_PASSED_OVER:
                    raise Diverged(
                        f"loss or gradient was not finite in {MOST_PASSED_OVER} updates in a row; batches and states "
                        f"are in {self.run.diagnosis}, the newest good weights in {self.run.checkpoints}"
                    )
                if learner.policy_version % config.checkpoint_interval == 0:
                    self._checkpoint()
        except BaseException:  # whatever ends training early: what was learned stays
            if (problem := self._finish_writing(STOPPED_WRITE_SECONDS)) is not None:
                self.progress.warn(problem)
            raise
        if (problem := self._finish_writing(LAST_WRITE_SECONDS)) is not None:
            raise RunDirectoryFailed(problem)
        return self._last_score()

    def _finish_writing(self, seconds: float) -> str | None:
        """Puts the newest completed update on the disk; a line about what could not be written, or None."""
        deadline = time.monotonic() + seconds
        if (line := self.advice()) is not None:
            self.log.add_text("learner/advice", line, self.learner.frames)
        self._checkpoint(patience=seconds / 2)
        all_written = self.writer.close(deadline - time.monotonic())
        self._announce_written()
        self.log.close()
        if not all_written:
            return self.writer.problem or f"a checkpoint was not on the disk after {seconds:.0f} s"
        return self.log.problem if self.log.unwritten else None

    def advice(self) -> str | None:
        """What bound this run so far, in one line."""
        config = self.config
        return advice(self.times, config.num_actors, config.envs_per_actor, self.stream.max_policy_lag > 0)

    def _one_update(self) -> dict[str, Any]:
        started = time.perf_counter()
        staged = self.stream.next_batch(self._between_steps)
        waited = time.perf_counter()
        lags = [self.learner.policy_version - source.policy_version for source in staged.sources.values()]
        statistics = self._update(staged)
        trained = time.perf_counter()
        num_episodes = self.state.take_in(staged)
        sources = staged.sources.values()
        bytes_per_frame = sum(source.frame_bytes for source in sources) / self.config.batch_size
        timing = {
            "seconds_collecting": max(source.collect_seconds for source in sources),
            "seconds_transfer": max(source.transfer_seconds for source in sources),
            "seconds_staging": staged.staging_seconds,
        }
        self.stream.publish(self.learner.weights(), self.learner.policy_version)
        published = time.perf_counter()
        self.times.append(
            UpdateTimes(
                waiting=waited - started,
                training=published - waited,
                collecting=timing["seconds_collecting"],
                transfer=timing["seconds_transfer"],
                bytes_per_frame=bytes_per_frame,
            )
        )
        return {
            "policy_version": self.learner.policy_version,
            "frames": self.learner.frames,
            "policy_lag": float(np.mean(lags)),
            "max_policy_lag": max(lags),
            "fps": self.config.batch_size / (published - started),
            **self.state.episodes.row(),
            "episodes": num_episodes,
            **statistics,
            "seconds_waiting": waited - started,
            "seconds_training": trained - waited,
            "seconds_publishing": published - trained,
            **timing,
            "bytes_per_frame": bytes_per_frame,
            "actors_alive": self.state.counters.actors_ready,
            **{name: getattr(self.state.counters, name) for name in COUNTERS},
            "time": time.time(),
        }

    def _update(self, staged: StagedBatch) -> dict[str, float]:
        """The update's statistics; of one that was not finite, and so not applied, as they were."""
        try:
            statistics = self.learner.update(staged, self._between_steps)
        except NotFinite as error:
            self._keep_for_diagnosis(staged, error.statistics)
            self.learner.pass_over()
            self.passed_over_in_a_row += 1
            self.state.counters.skipped_updates += 1
            return error.statistics
        self.passed_over_in_a_row = 0
        return statistics

    def _keep_for_diagnosis(self, staged: StagedBatch, statistics: dict[str, float]) -> None:
        version = self.learner.policy_version
        told = f"update {version + 1} was not finite and is not applied"
        try:
            path = save_diagnosis(self.run.diagnosis, self.config, self.learner, staged, statistics)
        except OSError as error:
            self.progress.warn(f"{told}; its batch could not be stored: {error.strerror or error}")
            return
        self.progress.warn(told if path is None else f"{told}; its batch and state are in {path}")

    def _between_steps(self) -> None:
        """Called many times in an update and while waiting for one; may raise StopRequested."""
        self._announce_written()
        if self.operator_metrics is not None:
            self.operator_metrics.refresh()
        self.stop.check()

    def _announce_written(self) -> None:
        for notice in self.writer.written():
            if self.evaluator is not None:
                self.evaluator.notify(notice)

    def _show_news(self) -> None:
        """The newest score, and what stands against the evaluator or the disk."""
        problems = [self.writer.problem, self.log.problem, self.stream.fleet.last_error]
        if self.evaluator is not None:
            row = self.evaluator.latest()
            if row is not None and row["policy_version"] > self.last_scored:
                self.last_scored = row["policy_version"]
                self.progress.evaluated(row)
                if self.operator_metrics is not None:
                    self.operator_metrics.scored(row)
            problems.append(self.evaluator.problem)
        if self.operator_metrics is not None:
            self._tell_operators_what_stands()
            problems.append(self.operator_metrics.problem)
        self.progress.standing("; ".join(problem for problem in problems if problem))

    def _tell_operators_what_stands(self) -> None:
        assert self.operator_metrics is not None
        disk_problem = bool(self.writer.problem or self.log.problem)
        evaluator_problem = self.evaluator is not None and bool(self.evaluator.problem)
        self.operator_metrics.standing(self.writer.newest, disk_problem, evaluator_problem)

    def _checkpoint(self, patience: float = PATIENCE_SECONDS) -> None:
        """Has the newest completed update written; once per version."""
        learner = self.learner
        if learner.policy_version == self.last_snapshot:
            return
        self.last_snapshot = learner.policy_version
        state = {"learner": on_host(learner.state_dict()), "run": self.state.state_dict()}
        self.writer.put(Snapshot(learner.policy_version, learner.frames, learner.weights(), state), patience)

    def _last_score(self) -> dict[str, Any] | None:
        if self.evaluator is None:
            return None
        self.progress.note(f"waiting for the score of policy_version {self.learner.policy_version}")
        deadline = time.monotonic() + self.config.eval_timeout
        while (left := deadline - time.monotonic()) > 0:
            self.stop.check()
            row = self.evaluator.finish(timeout=min(1.0, left))
            if self.operator_metrics is not None:
                self._tell_operators_what_stands()
                self.operator_metrics.refresh()
                if row is not None:
                    self.operator_metrics.scored(row)
            if row is not None and row["policy_version"] == self.learner.policy_version:
                return row
            self.progress.standing(self.evaluator.problem or "")
            if self.evaluator.is_dead or row is not None:  # an older version's row: nothing more will come
                return None
        self.progress.warn(f"no score of the last checkpoint within {self.config.eval_timeout:.0f} s")
        return None
