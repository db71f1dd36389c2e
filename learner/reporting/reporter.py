"""Sends what a run reports to everyone who reads it: metrics.jsonl, TensorBoard, the screen and Prometheus."""

from dataclasses import dataclass, field

from learner.reporting.bottleneck import Bottleneck
from learner.reporting.metrics_row import Row
from learner.reporting.operator_metrics import OperatorMetrics
from learner.reporting.progress import Progress, score_line
from learner.reporting.run_log import RunLog


@dataclass(slots=True)
class Reporter:
    """Called by the main thread."""

    log: RunLog
    bottleneck: Bottleneck
    progress: Progress
    operator_metrics: OperatorMetrics
    last_scored: int = field(init=False, default=-1)

    def update(self, row: Row) -> None:
        """Reports an update's row of metrics.jsonl."""
        self.log.add(row)
        self.bottleneck.add(row)
        self.progress.update(row)
        self.operator_metrics.update(row)

    def score(self, row: Row | None) -> None:
        """Reports a row of evaluations.jsonl, unless it is None or was reported already."""
        if row is not None and row["policy_version"] > self.last_scored:
            self.last_scored = row["policy_version"]
            self.progress.scored(row)
            self.operator_metrics.scored(row)

    def final_score(self, row: Row | None) -> None:
        """Reports the score of the last checkpoint; None if there is none."""
        if row is not None:
            self.progress.note(f"final score: {score_line(row)}")
            self.operator_metrics.scored(row)

    def set_status(
        self, newest_checkpoint: int, checkpoint_error: str | None, actor_error: str | None, evaluator_error: str | None
    ) -> None:
        """Reports the newest policy_version on the disk and what is failing now; None: nothing. Cheap: may be called
        between optimizer steps, and must be called every few seconds.
        """
        disk_fails = bool(checkpoint_error or self.log.last_error)
        self.operator_metrics.set_status(newest_checkpoint, disk_fails, evaluator_error is not None)
        errors = (checkpoint_error, self.log.last_error, actor_error, evaluator_error, self.operator_metrics.last_error)
        self.progress.set_status("; ".join(error for error in errors if error))

    def close(self, frames: int) -> str | None:
        """Closes the files; returns one line if rows of metrics could not be written, else None."""
        if (bottleneck := self.bottleneck.describe()) is not None:
            self.log.add_text("learner/bottleneck", bottleneck, frames)
        self.log.close()
        return self.log.last_error if self.log.unwritten else None
