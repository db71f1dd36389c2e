"""The training loop: get a batch, update, publish weights, log, checkpoint. Everything else happens elsewhere.

stream.next_batch --StagedBatch--> learner.update --Weights--> stream.publish
                                        |-- row --> metrics.jsonl, TensorBoard, progress, operator metrics
                                        |-- every checkpoint_interval: a copy --> checkpoint_writer
                                        |                                               '--notice--> evaluator
                                        '-- else, as often as it is cheap: a copy --> checkpoint_writer (resume point)
"""

import contextlib
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

from common.config import Config
from common.messages import CheckpointNotice
from common.storage.checkpoints import list_checkpoints
from common.storage.run_directory import RunDirectory
from learner.evaluator_handle import RemoteEvaluator
from learner.ppo.learner import NotFinite, PPOLearner
from learner.reporting.checkpoint_writer import PATIENCE_SECONDS, CheckpointWriter, Snapshot, on_host
from learner.reporting.diagnosis import save_diagnosis
from learner.reporting.metrics_row import metrics_row, rollout_columns
from learner.reporting.reporter import Reporter
from learner.rollouts.staging import StagedBatch
from learner.rollouts.stream import RolloutStream
from learner.run_state import RunState
from learner.stopping import StopSignals

logger = logging.getLogger(__name__)

# The run ends after this many skipped updates in a row.
MAX_SKIPPED_IN_A_ROW = 3
# Time to write the last checkpoint at the end of a run, and after a signal, which may be followed by SIGKILL in 30 s.
LAST_WRITE_SECONDS, STOPPED_WRITE_SECONDS = 120.0, 20.0


class RunDirectoryFailed(RuntimeError):
    """The end of the run could not be written; the message is one line for the user."""


class Diverged(RuntimeError):
    """Several updates in a row were not finite; the message is one line for the user."""


@dataclass(slots=True)
class Training:
    """One run from the learner's current version to the end. Used by the main thread.

    `resumed_from` is the checkpoint or resume point that the learner was restored from, None for a new run.
    """

    config: Config
    run: RunDirectory
    learner: PPOLearner
    stream: RolloutStream
    evaluator: RemoteEvaluator
    reporter: Reporter
    stop: StopSignals
    state: RunState
    resumed_from: Path | None = None
    writer: CheckpointWriter = field(init=False)
    last_snapshot: int = field(init=False)
    skipped_in_a_row: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        version = -1 if self.resumed_from is None else self.learner.policy_version
        self.last_snapshot = version if self.resumed_from_checkpoint else -1
        self.writer = CheckpointWriter(self.run, self.config, self.evaluator.may_score, newest=version)

    @property
    def resumed_from_checkpoint(self) -> bool:
        """Whether the learner was restored from a checkpoint, which is scored, and not from a resume point."""
        return self.resumed_from is not None and self.resumed_from.parent == self.run.checkpoints

    def run_to_end(self) -> None:
        """Trains until total_frames, and waits for the score of the last checkpoint.

        Raises:
            StopRequested: a signal came; the newest completed update is in a checkpoint unless the disk failed.
            Diverged: three updates in a row were not finite.
            RunDirectoryFailed: the last checkpoint or rows of metrics could not be written.
        """
        try:
            self._train()
        except BaseException:  # whatever ends training early, what was learned is kept
            if (failure := self._finish_writing(STOPPED_WRITE_SECONDS)) is not None:
                logger.error("the newest update could not be saved: %s", failure)
            raise
        if (failure := self._finish_writing(LAST_WRITE_SECONDS)) is not None:
            raise RunDirectoryFailed(failure)
        self._wait_for_last_score()

    def _train(self) -> None:
        config, learner, stream, state = self.config, self.learner, self.stream, self.state
        for version, weights in state.weights.items():  # of a resumed run
            stream.publish(weights, version)
        self._publish()
        if self.resumed_from is None:
            self._checkpoint()
        elif self.resumed_from_checkpoint:
            self.evaluator.notify(CheckpointNotice(str(self.resumed_from), learner.policy_version, learner.frames))
        reported = time.perf_counter()
        while learner.frames < config.total_frames:
            started = time.perf_counter()
            batch = stream.next_batch(self._poll)
            waited = time.perf_counter()
            rollouts = rollout_columns(batch, learner.policy_version)
            statistics = self._update(batch)
            state.record(batch)
            trained = time.perf_counter()
            try:
                self._publish()  # from here on `batch` may be overwritten
            finally:  # if this fails, the update still counts, and its checkpoint will be written
                published = time.perf_counter()
                seconds = {
                    "seconds_waiting": waited - started,
                    "seconds_training": trained - waited,
                    "seconds_publishing": published - trained,
                    "seconds_saving": started - reported,
                }
                self.reporter.update(
                    metrics_row(learner.policy_version, learner.frames, rollouts, statistics, seconds, state)
                )
                reported = published
            self.reporter.score(self.evaluator.latest())
            if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise Diverged(
                    f"loss or gradient was not finite in {MAX_SKIPPED_IN_A_ROW} updates in a row; batches and states "
                    f"are in {self.run.diagnosis}, the newest good weights in {self.run.checkpoints}"
                )
            if learner.policy_version % config.checkpoint_interval == 0:
                self._checkpoint()
            elif learner.frames < config.total_frames and self.writer.resume_point_is_due():
                self.writer.put_resume_point(self._snapshot())

    def _update(self, batch: StagedBatch) -> dict[str, float]:
        """The statistics of the update; it is skipped if they are not finite."""
        try:
            statistics = self.learner.update(batch, self._poll)
            self.skipped_in_a_row = 0
            return statistics
        except NotFinite as error:
            kept = save_diagnosis(self.run.diagnosis, self.config, self.learner, batch, error.statistics)
            self.learner.skip_update()
            self.skipped_in_a_row += 1
            self.state.counters.skipped_updates += 1
            logger.warning("update %d was not finite and is skipped; %s", self.learner.policy_version, kept)
            return error.statistics

    def _publish(self) -> None:
        weights, version = self.learner.weights(), self.learner.policy_version
        # Before publishing, which can fail: a checkpoint must have the weights of the newest version.
        self.state.published(version, weights, self.config.max_policy_lag if self.config.repeatable else 0)
        self.stream.publish(weights, version)

    def _poll(self) -> None:
        """Runs between optimizer steps and while waiting; raises StopRequested after a signal."""
        for notice in self.writer.written():
            self.evaluator.notify(notice)
        self.reporter.set_status(
            self.writer.newest,
            self.writer.last_error or self.writer.resume_error,
            self.stream.fleet.last_error,
            self.evaluator.last_error,
        )
        self.stop.check()

    def _checkpoint(self, patience: float = PATIENCE_SECONDS) -> None:
        """Hands the newest update to the writer, once per version."""
        learner = self.learner
        if learner.policy_version == self.last_snapshot:
            return
        self.last_snapshot = learner.policy_version
        self.writer.put(self._snapshot(), patience)

    def _snapshot(self) -> Snapshot:
        learner, started = self.learner, time.perf_counter()
        state = {"learner": on_host(learner.state_dict()), "run": self.state.state_dict()}
        weights = learner.weights()
        seconds = time.perf_counter() - started
        return Snapshot(learner.policy_version, learner.frames, weights, state, seconds)

    def _finish_writing(self, seconds: float) -> str | None:
        """Writes the newest update and what waits; returns one line about what could not be written, or None."""
        deadline = time.monotonic() + seconds
        self._checkpoint(patience=seconds / 2)
        all_written = self.writer.close(deadline - time.monotonic())
        metrics_failure = self.reporter.close(self.learner.frames)
        if not all_written:
            return self.writer.last_error or f"the last checkpoint was not written within {seconds:.0f} s"
        return metrics_failure

    def _wait_for_last_score(self) -> None:
        version = self.learner.policy_version
        if not self.evaluator.is_off:
            self.reporter.progress.note(f"waiting for the score of policy_version {version}")
        score = self.evaluator.wait_for_score(version, self.config.eval_timeout, self._poll)
        if score is not None and self.config.backfill:
            score = score | {"skipped": self._num_unscored()}  # most of those skipped earlier have been scored since
        self.reporter.final_score(score)

    def _num_unscored(self) -> int:
        """Checkpoints on the disk without a score; 0 if they cannot be listed."""
        with contextlib.suppress(OSError):
            scored = {row["policy_version"] for row in self.run.read_evaluations()}
            return sum(int(path.name) not in scored for path in list_checkpoints(self.run.checkpoints))
        return 0
