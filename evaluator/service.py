"""The evaluator beside a training run: told of checkpoints, it scores them on a thread of its own. Plain Python.

The mailbox holds one notice, the newest: an evaluator that falls behind skips checkpoints, counts them and says so
in the next row. The untrained policy, version 0, is the baseline of every curve and is never skipped.
"""

import sys
import threading
from pathlib import Path
from typing import Any

from common.checkpoints import CheckpointError, load_checkpoint
from common.config import Config
from common.messages import CheckpointNotice
from common.run_directory import RunDirectory
from evaluator.evaluation import evaluate
from evaluator.level_sets import level_sets
from evaluator.report import Report


class EvaluationFailed(RuntimeError):
    """The thread that scores ended with an error; nothing more will be scored."""


class EvaluationService:
    """Scores the checkpoints it is notified of and reports them into the run directory.

    `problem` is a line about the last checkpoint it took up, when that could not be read; else None.
    """

    def __init__(self, run: RunDirectory, config: Config):
        self.problem: str | None = None
        self._config = config
        self._slots = level_sets(config).slots()
        # Always the same level, so that the films of a run show one level being learned, or not.
        self._film_level = level_sets(config).held_out[0]
        self._report = Report(run, config)
        self._latest: dict[str, Any] | None = self._report.rows[-1] if self._report.rows else None
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._baseline: CheckpointNotice | None = None
        self._newest: CheckpointNotice | None = None
        self._skipped = 0
        self._is_scoring = False
        self._is_closed = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def notify(self, notice: CheckpointNotice) -> None:
        """Returns at once. A notice that still waits is replaced and counted as skipped, except version 0's."""
        with self._changed:
            if notice.policy_version == 0:
                self._baseline = notice
            else:
                self._skipped += self._newest is not None
                self._newest = notice
            self._changed.notify_all()

    def latest(self) -> dict[str, Any] | None:
        """The newest row of evaluations.jsonl, or None.

        Raises:
            EvaluationFailed: scoring has stopped with an error.
        """
        with self._changed:
            self._raise_failure()
            return self._latest

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until nothing waits to be scored and returns the newest row; None after `timeout` seconds.

        Raises:
            EvaluationFailed: scoring has stopped with an error.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self._failure is not None or self._is_idle(), timeout)
            self._raise_failure()
            return self._latest if done else None

    def close(self) -> None:
        """Scores no more; what is being scored is finished first."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._report.close()

    def _is_idle(self) -> bool:
        return self._baseline is None and self._newest is None and not self._is_scoring

    def _raise_failure(self) -> None:
        if self._failure is not None:
            error = self._failure
            raise EvaluationFailed(f"scoring stopped: {type(error).__name__}: {error}") from error

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                self._score(*taken)
        except Exception as error:  # kept for `latest` and `finish`: a thread has nobody else to tell
            print(f"evaluator: scoring stopped: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _take(self) -> tuple[CheckpointNotice, int] | None:
        """The next notice and how many were skipped before it; None once closed. Waits for as long as it takes."""
        with self._changed:
            self._is_scoring = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or not self._is_idle())
            if self._is_closed:
                return None
            self._is_scoring = True
            if self._baseline is not None:
                notice, self._baseline = self._baseline, None
                return notice, 0
            assert self._newest is not None
            notice, self._newest = self._newest, None
            skipped, self._skipped = self._skipped, 0
            return notice, skipped

    def _score(self, notice: CheckpointNotice, skipped: int) -> None:
        if self._report.is_scored(notice.policy_version):
            return
        try:
            checkpoint = load_checkpoint(Path(notice.path), policy_only=True)
        except CheckpointError as error:
            print(f"evaluator: checkpoint skipped: {error}", file=sys.stderr, flush=True)
            with self._changed:
                self.problem = f"checkpoint skipped: {error}"
                self._skipped += skipped + 1
            return
        with self._changed:
            self.problem = None
        evaluation = evaluate(
            checkpoint,
            self._slots,
            self._config.eval_episodes_per_level,
            self._config.seed,
            film_level=self._film_level,
        )
        row = self._report.add(evaluation, skipped)
        with self._changed:
            self._latest = row
