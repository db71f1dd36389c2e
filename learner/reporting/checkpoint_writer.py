"""Writes checkpoints and resume points on their own thread, so that training pauses only for a copy in memory.

A checkpoint, every `checkpoint_interval` updates, is scored and kept. A resume point is the newest update, written as
often as `ResumeSchedule` allows; a resumed run continues from it, nothing else reads it, and two are kept.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.config import Config
from common.messages import CheckpointNotice, Weights
from common.storage.checkpoints import prune_checkpoints, save_checkpoint
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from learner.reporting.resume_schedule import ResumeSchedule

logger = logging.getLogger(__name__)

# A failed write is tried again after this many seconds, or immediately with the next checkpoint.
RETRY_SECONDS = 10.0
# Training waits this long for a slow disk before a newer checkpoint replaces the one that waits.
PATIENCE_SECONDS = 60.0
# The second newest is for the case that the newest is damaged.
RESUME_POINTS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One policy_version's checkpoint in memory; it shares nothing with the learner."""

    policy_version: int
    frames: int
    weights: Weights
    state: dict[str, Any]
    copy_seconds: float = 0.0  # for which training paused


class CheckpointWriter:
    """Writes snapshots in order; while the disk fails, the newest replaces the one that waits.

    `last_error` and `resume_error` are one line about the disk, or None. `newest` is the newest policy_version on the
    disk, -1 for none.
    The main thread calls the public methods; files are written on the thread "checkpoints".
    """

    def __init__(self, run: RunDirectory, config: Config, may_score: Callable[[int], bool], newest: int = -1):
        """`may_score` says which unscored versions the evaluator still needs; it is called on the thread."""
        self.last_error: str | None = None
        self.resume_error: str | None = None
        self.newest = newest
        self._run = run
        self._config = config
        self._may_score = may_score
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._schedule = ResumeSchedule(time.monotonic())
        self._resume_point: Snapshot | None = None  # waiting or being written
        self._is_closing = False
        self._is_last_try = False  # of what is being written: it began after `close`
        self._written: list[CheckpointNotice] = []
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, snapshot: Snapshot, patience: float = PATIENCE_SECONDS) -> None:
        """Hands over a snapshot and returns immediately, unless the one before still waits.

        Then it waits up to `patience` seconds, in case the disk is only slow, and replaces the one before after that.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self.last_error is not None, patience)
            self._waiting = snapshot
            self._changed.notify_all()

    def resume_point_is_due(self) -> bool:
        """Whether a snapshot for `put_resume_point` may be made now."""
        with self._changed:
            return self._resume_point is None and self._schedule.is_due(time.monotonic())

    def put_resume_point(self, snapshot: Snapshot) -> None:
        """Hands over a resume point and returns immediately."""
        with self._changed:
            self._resume_point = snapshot
            self._changed.notify_all()

    def written(self) -> list[CheckpointNotice]:
        """Checkpoints that became complete since the last call, oldest first."""
        with self._changed:
            written, self._written = self._written, []
            return written

    def close(self, timeout: float) -> bool:
        """Writes the checkpoint that waits, trying a failed disk once more, and ends the thread. False if it was not
        written.
        """
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive() and self._waiting is None

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            if snapshot is self._resume_point:
                self._write_resume_point(snapshot)
                continue
            try:
                path = self._write(snapshot)
            except Exception as error:  # whatever the disk does, training continues and so does this thread
                if not self._keep_for_later(snapshot, error):
                    return
            else:
                with self._changed:
                    if self.last_error is not None:
                        logger.info("checkpoints can be written again; the newest is %s", path)
                    self.last_error = None
                    self.newest = snapshot.policy_version
                    self._written.append(CheckpointNotice(str(path), snapshot.policy_version, snapshot.frames))
                    self._changed.notify_all()

    def _next(self) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._resume_point or self._is_closing)
            if self._waiting is None and not self._is_closing:
                return self._resume_point
            snapshot, self._waiting, self._is_last_try = self._waiting, None, self._is_closing
            self._changed.notify_all()
            return snapshot

    def _write(self, snapshot: Snapshot) -> Path:
        config, version = self._config, snapshot.policy_version
        path = save_checkpoint(
            self._run.checkpoints, config, version, snapshot.frames, snapshot.weights, snapshot.state
        )
        if config.keep_checkpoints:
            with contextlib.suppress(OSError):  # the checkpoint is written; the next one prunes again
                protected = self._needed_by_evaluator()
                prune_checkpoints(self._run.checkpoints, config.keep_checkpoints, config.keep_every, protected)
        return path

    def _write_resume_point(self, snapshot: Snapshot) -> None:
        """Tries once: after the next update there is a newer one."""
        version, started = snapshot.policy_version, time.thread_time()
        error = None
        try:
            if version > self.newest:
                directory = self._run.resume_points
                save_checkpoint(directory, self._config, version, snapshot.frames, snapshot.weights, snapshot.state)
                with contextlib.suppress(OSError):  # the next one prunes again
                    prune_checkpoints(directory, RESUME_POINTS_KEPT, 0, lambda version: False)
        except Exception as caught:  # whatever the disk does, training continues and so does this thread
            error = caught
        with self._changed:
            self._resume_point = None
            self._schedule.record(snapshot.copy_seconds, time.thread_time() - started)
            if error is None:
                self.newest = max(self.newest, version)
                self.resume_error = None
            else:
                line = f"resume points cannot be written to {self._run.resume_points}: {_reason(error)}"
                if self.resume_error is None:
                    logger.warning(line, exc_info=error)
                self.resume_error = line

    def _needed_by_evaluator(self) -> Callable[[int], bool]:
        """Whether a version is the best one, or is not scored yet and will or may be: 0 is never skipped."""
        best = self._run.best_checkpoint() or ""
        scored = {row["policy_version"] for row in read_jsonl(self._run.evaluations, {"policy_version": int})}

        def is_needed(version: int) -> bool:
            if not self._config.evaluator or version in scored:
                return False
            return self._config.backfill or version == 0 or self._may_score(version)

        return lambda version: (best.isdigit() and version == int(best)) or is_needed(version)

    def _keep_for_later(self, snapshot: Snapshot, error: Exception) -> bool:
        """Waits until the next try; False when closing."""
        deadline = time.monotonic() + RETRY_SECONDS
        with self._changed:
            kept = f"the newest is policy_version {self.newest}" if self.newest >= 0 else "none has been written"
            line = f"checkpoints cannot be written to {self._run.checkpoints}: {_reason(error)}; {kept}"
            if self.last_error is None:
                logger.warning(line, exc_info=error)
            self.last_error = line
            self._waiting = self._waiting or snapshot
            self._changed.notify_all()
            if self._is_last_try:
                return False
            waiting = self._waiting
            self._changed.wait_for(
                lambda: self._is_closing or self._waiting is not waiting, max(0.0, deadline - time.monotonic())
            )
            return True


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or f"{error}" or type(error).__name__


def on_host(state: Any) -> Any:
    """A deep copy of nested dicts, lists, tensors and plain values, with all tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state
