"""The evaluator beside a training run: told of checkpoints, it scores them on a thread of its own. Plain Python.

The mailbox holds one notice, the newest: an evaluator that falls behind skips checkpoints, counts them and says so
in the next row. What was skipped stays on the disk and can be scored later. The untrained policy, version 0, is the
baseline of every curve and is never skipped. Started on a run that has checkpoints, it finds those without scores.
"""

import sys
import threading
import time
from pathlib import Path
from typing import Any

from common.config import Config
from common.messages import CheckpointNotice
from common.storage.checkpoints import CheckpointError, list_checkpoints, load_checkpoint
from common.storage.run_directory import RunDirectory
from evaluator.levels.level_file import stored_level_sets
from evaluator.levels.level_sets import LevelSets, live_splits
from evaluator.output.score_files import Report
from evaluator.output.video import film_episode
from evaluator.scores.evaluation import evaluate
from evaluator.scores.play import load_policy

# A run directory that could not be written is tried again after so many seconds.
RETRY_SECONDS = 10.0


class EvaluationFailed(RuntimeError):
    """The thread that scores ended with an error; nothing more will be scored."""


class EvaluationService:
    """Scores the checkpoints it is notified of and reports them into the run directory.

    `problem` is a line about the last checkpoint it took up, when that could not be read; else None.
    """

    def __init__(self, run: RunDirectory, config: Config):
        self.problem: str | None = None
        self._run = run
        self._config = config
        self._sets: LevelSets | None = None  # their audit takes seconds: on the thread
        self._report = Report(run, config)
        self._changed = threading.Condition()
        # Guarded by `_changed`.
        self._latest: dict[str, Any] | None = self._report.rows[-1] if self._report.rows else None
        self._baseline: Path | None = None
        self._newest: Path | None = None
        self._newest_version = -1
        self._skipped = 0
        self._unreadable: set[int] = set()
        self._is_backfilling = False
        self._is_scoring = False
        self._is_closed = False
        self._failure: Exception | None = None
        self._find_unscored()
        self._thread = threading.Thread(target=self._work, name="evaluator", daemon=True)
        self._thread.start()

    def notify(self, notice: CheckpointNotice) -> None:
        """Returns at once. A notice that still waits is replaced and counted as skipped, except version 0's."""
        with self._changed:
            self._put(Path(notice.path), notice.policy_version)
            self._changed.notify_all()

    def latest(self) -> dict[str, Any] | None:
        """The row of the newest scored version, or None.

        Raises:
            EvaluationFailed: scoring has stopped with an error.
        """
        with self._changed:
            self._raise_failure()
            return self._latest

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until nothing waits to be scored and returns the newest version's row; None after `timeout` seconds.

        With `config.backfill` what was skipped is scored first, the newest of it first.

        Raises:
            EvaluationFailed: scoring has stopped with an error.
        """
        if self._config.backfill:
            self.backfill()
        with self._changed:
            done = self._changed.wait_for(lambda: self._failure is not None or self._is_idle(), timeout)
            self._raise_failure()
            return self._latest if done else None

    def backfill(self) -> None:
        """From now on checkpoints that were skipped are scored when nothing else waits."""
        with self._changed:
            self._is_backfilling = True
            self._changed.notify_all()

    @property
    def num_scored(self) -> int:
        """Policy versions with scores."""
        return len(self._report.rows)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is scored or waits to be."""
        with self._changed:
            return self._is_idle()

    def close(self) -> None:
        """Scores no more; what is being scored is finished first."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._thread.join()
        self._report.close()

    def _find_unscored(self) -> None:
        """After a restart: the baseline, and the newest checkpoint, where they lack scores."""
        paths = list_checkpoints(self._run.checkpoints)
        for path in (*paths[:1], *paths[-1:]):
            if not self._report.is_scored(int(path.name)) and (path is paths[-1] or int(path.name) == 0):
                self._put(path, int(path.name))

    def _put(self, path: Path, policy_version: int) -> None:
        self._newest_version = max(self._newest_version, policy_version)
        if policy_version == 0:
            self._baseline = path
        elif self._newest is None or self._newest.name != path.name:
            self._skipped += self._newest is not None
            self._newest = path

    def _is_idle(self) -> bool:
        waiting = self._baseline is not None or self._newest is not None or self._is_scoring
        return not waiting and self._next_skipped() is None

    def _next_skipped(self) -> Path | None:
        """The newest checkpoint on the disk without scores, while backfilling."""
        if not self._is_backfilling:
            return None
        for path in reversed(list_checkpoints(self._run.checkpoints)):
            version = int(path.name)
            if not self._report.is_scored(version) and version not in self._unreadable:
                return path
        return None

    def _raise_failure(self) -> None:
        if self._failure is not None:
            error = self._failure
            raise EvaluationFailed(f"scoring stopped: {type(error).__name__}: {error}") from error

    def _work(self) -> None:
        try:
            while (taken := self._take()) is not None:
                try:
                    self._score(*taken)
                except OSError as error:
                    self._wait_for_disk(*taken, error)
        except Exception as error:  # kept for `latest` and `finish`: a thread has nobody else to tell
            print(f"evaluator: scoring stopped: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _wait_for_disk(self, path: Path, skipped: int, error: OSError) -> None:
        """A run directory that cannot be written: after a while everything is read anew and the version tried again."""
        with self._changed:
            self.problem = f"scores of {path.name} cannot be written: {error.strerror or error}; tried again"
            self._changed.wait_for(lambda: self._is_closed, RETRY_SECONDS)
            if self._is_closed:
                return
        self._report.close()
        while True:
            try:
                self._report = Report(self._run, self._config)
                break
            except OSError:
                with self._changed:
                    if self._changed.wait_for(lambda: self._is_closed, RETRY_SECONDS):
                        return
        with self._changed:
            version = int(path.name)
            self._latest = self._report.rows[-1] if self._report.rows else None
            if self._report.is_scored(version):  # only what is drawn from it could not be written
                self.problem = None
            elif version == 0:
                self._baseline = path
            elif self._newest is None:
                self._newest, self._skipped = path, self._skipped + skipped
            else:
                self._skipped += skipped + 1

    def _take(self) -> tuple[Path, int] | None:
        """The next checkpoint and how many were skipped before it; None once closed. Waits as long as it takes."""
        with self._changed:
            self._is_scoring = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_closed or not self._is_idle())
            if self._is_closed:
                return None
            self._is_scoring = True
            if self._baseline is not None:
                path, self._baseline = self._baseline, None
                return path, 0
            if self._newest is not None:
                path, self._newest = self._newest, None
                skipped, self._skipped = self._skipped, 0
                return path, skipped
            skipped_one = self._next_skipped()
            assert skipped_one is not None
            return skipped_one, 0

    def _score(self, path: Path, skipped: int) -> None:
        started = time.perf_counter()
        if self._report.is_scored(int(path.name)):
            return
        try:
            checkpoint = load_checkpoint(path, policy_only=True)
        except CheckpointError as error:
            print(f"evaluator: checkpoint skipped: {error}", file=sys.stderr, flush=True)
            with self._changed:
                self.problem = f"checkpoint skipped: {error}"
                self._unreadable.add(int(path.name))
                self._skipped += skipped + 1
            return
        with self._changed:
            self.problem = None
        if self._sets is None:
            self._sets = stored_level_sets(self._run, self._config)
        config, version = self._config, checkpoint.policy_version
        slots = self._sets.slots(live_splits(config, version))
        evaluation = evaluate(checkpoint, slots, config.eval_episodes_per_level, config.seed)
        row = self._report.add(
            evaluation,
            skipped=skipped,
            eval_seconds=round(time.perf_counter() - started, 3),
            updates_behind=max(0, self._newest_version - version),
        )
        with self._changed:
            if self._latest is None or row["policy_version"] > self._latest["policy_version"]:
                self._latest = row
        policy = load_policy(checkpoint)
        for kind, level in self._report.levels_to_film(version).items():
            film = film_episode(policy, config.game, level, config.seed)
            self._report.add_film(version, kind, film)
