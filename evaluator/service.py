"""The evaluator beside a training run: it is notified of checkpoints and scores them on its own thread. No Ray.

The mailbox holds only the newest notice: an evaluator that falls behind skips checkpoints, counts them and reports the
count in the next row. Skipped checkpoints stay on disk and can be scored later. The untrained policy, version 0, is the
baseline of every curve and is never skipped. After a restart the service finds the checkpoints it still has to score.
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

from common.config import Config
from common.messages import CheckpointNotice, EvaluatorStatus
from common.storage.checkpoints import CheckpointError, list_checkpoints, load_checkpoint
from common.storage.run_directory import RunDirectory
from common.text import format_score
from evaluator.levels.level_file import stored_level_sets
from evaluator.levels.level_sets import LevelSets, live_splits
from evaluator.output.score_files import ScoreFiles
from evaluator.output.video import record_episode
from evaluator.scores.evaluation import Evaluation, evaluate
from evaluator.scores.play import load_policy

# Pause before writing again to a run directory that could not be written.
RETRY_SECONDS = 10.0

logger = logging.getLogger(__name__)


class EvaluationFailed(RuntimeError):
    """The scoring thread stopped with an error; nothing more will be scored."""


class EvaluationService:
    """Scores the checkpoints it is notified of and writes the scores into the run directory.

    `last_error` is one line about the newest checkpoint if that could not be read or its scores not be written, else
    None. All public methods may be called from any thread.

    Raises:
        RunIsBeingScored: another evaluator is writing this run's scores.
        OSError: the run directory is not there or cannot be used.
    """

    def __init__(self, run: RunDirectory, config: Config):
        self.last_error: str | None = None
        self._run = run
        self._config = config
        self._level_sets: LevelSets | None = None  # drawn on the thread: the audit takes seconds
        self._files = ScoreFiles(run, config)
        self._changed = threading.Condition()  # reentrant
        # Guarded by `_changed`.
        self._waiting_baseline: Path | None = None
        self._waiting: Path | None = None
        self._newest_version = -1
        self._skipped = 0
        self._unreadable: set[int] = set()
        self._is_backfilling = False
        self._scoring: Path | None = None
        self._is_closed = False
        self._failure: Exception | None = None
        try:
            self._find_unscored()
        except BaseException:
            self._files.close()
            raise
        self._thread = threading.Thread(target=self._score_all, name="evaluator", daemon=True)
        self._thread.start()

    def notify(self, notice: CheckpointNotice) -> None:
        """Returns immediately. It replaces a waiting notice, which counts as skipped unless it is for version 0."""
        with self._changed:
            self._enqueue(Path(notice.path), notice.policy_version)
            self._changed.notify_all()

    def latest(self) -> dict[str, Any] | None:
        """The row of the newest scored version, or None.

        Raises:
            EvaluationFailed: scoring stopped with an error.
        """
        with self._changed:
            if self._failure is not None:
                error = self._failure
                raise EvaluationFailed(f"scoring stopped: {type(error).__name__}: {error}") from error
        return self._files.rows[-1] if self._files.rows else None

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until nothing is left to score and returns the newest version's row; None after `timeout` seconds.

        With `config.backfill`, skipped checkpoints are scored too, the oldest first.

        Raises:
            EvaluationFailed: scoring stopped with an error.
        """
        if self._config.backfill:
            self.backfill()
        with self._changed:
            is_done = self._changed.wait_for(lambda: self._failure is not None or self.is_idle, timeout)
        row = self.latest()
        return row if is_done else None

    def status(self, row: dict[str, Any] | None) -> EvaluatorStatus:
        """What the learner wants to know, with `row` from `latest` or `finish`."""
        with self._changed:
            paths = (self._scoring, self._waiting_baseline, self._waiting)
            unfinished = frozenset(int(path.name) for path in paths if path is not None)
            return EvaluatorStatus(row, self.last_error, unfinished, self._newest_version)

    def backfill(self) -> None:
        """From now on, scores skipped checkpoints when no other checkpoint is waiting.

        The oldest first: then all earlier versions have scores when videos of forgotten levels are chosen.
        """
        with self._changed:
            self._is_backfilling = True
            self._changed.notify_all()

    @property
    def num_scored(self) -> int:
        """Number of scored policy versions."""
        return len(self._files.rows)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being scored or waiting to be scored."""
        with self._changed:
            return self._scoring is None and not self._has_more

    def close(self) -> None:
        """Stops after the checkpoint being scored."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._files.close()

    def _find_unscored(self) -> None:
        """Enqueues the baseline and the newest checkpoint on disk if they have no scores."""
        paths = list_checkpoints(self._run.checkpoints)
        for path in paths:
            version = int(path.name)
            if (version == 0 or path == paths[-1]) and not self._files.is_scored(version):
                self._enqueue(path, version)

    def _enqueue(self, path: Path, policy_version: int) -> None:
        """A version older than one that was enqueued before is skipped: after a slow start the newest is found on the
        disk before the notices of the others arrive.
        """
        is_late = policy_version < self._newest_version
        self._newest_version = max(self._newest_version, policy_version)
        if policy_version == 0:
            self._waiting_baseline = path
        elif is_late:
            self._skipped += not self._files.is_scored(policy_version)
        elif self._waiting is None:
            self._waiting = path
        elif self._waiting.name != path.name:
            logger.info("checkpoint %s skipped: %s is newer", self._waiting.name, path.name)
            self._skipped += 1
            self._waiting = path

    @property
    def _has_more(self) -> bool:
        """Whether a checkpoint is waiting to be scored."""
        with self._changed:
            is_waiting = self._waiting_baseline is not None or self._waiting is not None
            return is_waiting or self._next_unscored() is not None

    def _next_unscored(self) -> Path | None:
        """The oldest readable checkpoint on disk without scores; None unless backfilling."""
        if not self._is_backfilling:
            return None
        try:
            paths = list_checkpoints(self._run.checkpoints)
        except OSError:  # the run directory is away; this is asked again with each notice and each `finish`
            return None
        for path in paths:
            version = int(path.name)
            if not self._files.is_scored(version) and version not in self._unreadable:
                return path
        return None

    def _score_all(self) -> None:
        """The thread: scores one checkpoint after the other until closed."""
        try:
            while (checkpoint := self._next_checkpoint()) is not None:
                self._score_until_written(*checkpoint)
                if not self._has_more:
                    self._files.show_corrections()
        except Exception as error:  # raised again in the threads that call `latest` and `finish`
            logger.exception("scoring stopped")
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _next_checkpoint(self) -> tuple[Path, int] | None:
        """Waits for the next checkpoint to score; returns it and how many were skipped before it, None once closed."""
        with self._changed:
            self._scoring = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or not self.is_idle)
            if self._is_closed:
                return None
            skipped = 0
            if self._waiting_baseline is not None:
                self._scoring, self._waiting_baseline = self._waiting_baseline, None
            elif self._waiting is not None:
                self._scoring, self._waiting = self._waiting, None
                skipped, self._skipped = self._skipped, 0
            else:
                self._scoring = self._next_unscored()
            assert self._scoring is not None  # or it would be idle
            return self._scoring, skipped

    def _score_until_written(self, path: Path, skipped: int) -> None:
        """Scores one checkpoint; goes on where it stopped while the run directory cannot be used."""
        version = int(path.name)
        if self._files.is_scored(version):
            self.last_error = None
            with self._changed:
                self._skipped += skipped  # they belong to the next row
            return
        evaluation: Evaluation | None = None
        must_reload = False
        while True:
            try:
                if must_reload:
                    self._files.reload()
                if evaluation is None:
                    started = time.perf_counter()
                    if (evaluation := self._evaluate(path, skipped)) is None:
                        break
                    seconds = time.perf_counter() - started
                if not self._files.is_scored(version):
                    self._store(evaluation, skipped, seconds)
                self._draw(evaluation)
                self.last_error = None
                break
            except OSError as error:
                self.last_error = f"cannot write the scores of {path.name}: {error.strerror or error}; retrying"
                if not must_reload:  # log only the first failure
                    logger.warning("%s every %.0f s", self.last_error, RETRY_SECONDS, exc_info=True)
                must_reload = True
                with self._changed:
                    if self._changed.wait_for(lambda: self._is_closed, RETRY_SECONDS):
                        return
        if must_reload:
            logger.info("the run directory can be written again")

    def _evaluate(self, path: Path, skipped: int) -> Evaluation | None:
        """Plays a checkpoint; None if it cannot be read, and then it counts as skipped too."""
        config = self._config
        try:
            checkpoint = load_checkpoint(path, policy_only=True)
        except CheckpointError as error:
            self._run.require_present()  # or the checkpoint is only away
            self.last_error = f"checkpoint skipped: {error}"
            logger.warning(self.last_error)
            with self._changed:
                self._unreadable.add(int(path.name))
                self._skipped += skipped + 1
            return None
        if self._level_sets is None:
            self._level_sets = stored_level_sets(self._run, config)
        slots = self._level_sets.slots(live_splits(config, checkpoint.policy_version))
        return evaluate(checkpoint, slots, config.eval_episodes_per_level, config.seed)

    def _store(self, evaluation: Evaluation, skipped: int, seconds: float) -> None:
        """Writes the row."""
        version = evaluation.checkpoint.policy_version
        row = self._files.add(
            evaluation,
            skipped=skipped,
            eval_seconds=round(seconds, 3),
            updates_behind=max(0, self._newest_version - version),
        )
        scores = ", ".join(f"{split} {format_score(row[split])}" for split in evaluation.splits)
        logger.info("scored policy_version %d in %.1f s: %s", version, row["eval_seconds"], scores)

    def _draw(self, evaluation: Evaluation) -> None:
        """Writes what follows from the row: plots, the link to the best checkpoint, videos."""
        version = evaluation.checkpoint.policy_version
        self._files.draw(version)
        policy = load_policy(evaluation.checkpoint)
        for kind, level in self._files.levels_to_record(version).items():
            video = record_episode(policy, self._config.game, level, self._config.seed)
            self._files.add_video(version, kind, video)
