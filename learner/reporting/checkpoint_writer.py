"""Writes checkpoints on their own thread, so that training pauses only for a copy in memory."""

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

logger = logging.getLogger(__name__)

# A failed write is tried again after this many seconds, or immediately with the next checkpoint.
RETRY_SECONDS = 10.0
# Training waits this long for a slow disk before a newer checkpoint replaces the one that waits.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One policy_version's checkpoint in memory; it shares nothing with the learner."""

    policy_version: int
    frames: int
    weights: Weights
    state: dict[str, Any]


class CheckpointWriter:
    """Writes snapshots in order; while the disk fails, the newest replaces the one that waits.

    `last_error` is one line about the disk, or None. `newest` is the newest policy_version on the disk, -1 for none.
    The main thread calls the public methods; files are written on the thread "checkpoints".
    """

    def __init__(self, run: RunDirectory, config: Config, newest: int = -1):
        self.last_error: str | None = None
        self.newest = newest
        self._run = run
        self._config = config
        self._changed = threading.Condition()
        self._waiting: Snapshot | None = None
        self._is_closing = False
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

    def written(self) -> list[CheckpointNotice]:
        """Checkpoints that became complete since the last call, oldest first."""
        with self._changed:
            written, self._written = self._written, []
            return written

    def close(self, timeout: float) -> bool:
        """Writes what waits, trying a failed disk once more, and ends the thread. False if it was not written."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive() and self._waiting is None

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                path = self._write(snapshot)
            except Exception as error:  # whatever the disk does, training continues and so does this thread
                if not self._keep_for_later(snapshot, error):
                    return
            else:
                with self._changed:
                    if self.last_error is not None:
                        logger.info("checkpoints are written again, the newest is %s", path)
                    self.last_error = None
                    self.newest = snapshot.policy_version
                    self._written.append(CheckpointNotice(str(path), snapshot.policy_version, snapshot.frames))
                    self._changed.notify_all()

    def _next(self) -> Snapshot | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._is_closing)
            snapshot, self._waiting = self._waiting, None
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

    def _needed_by_evaluator(self) -> Callable[[int], bool]:
        """Whether a version is the best one or, with --backfill, not scored yet."""
        best = self._run.best_checkpoint() or ""
        scored = {row.get("policy_version") for row in read_jsonl(self._run.evaluations)}
        keeps_unscored = self._config.evaluator and self._config.backfill
        return lambda version: (best.isdigit() and version == int(best)) or (keeps_unscored and version not in scored)

    def _keep_for_later(self, snapshot: Snapshot, error: Exception) -> bool:
        """Waits until the next try; False when closing."""
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{error}" or type(error).__name__
        deadline = time.monotonic() + RETRY_SECONDS
        with self._changed:
            was_last_try = self._is_closing
            kept = f"policy_version {self.newest}" if self.newest >= 0 else "none"
            line = f"checkpoints cannot be written to {self._run.checkpoints}: {reason}; the newest is {kept}"
            if self.last_error is None:
                logger.warning(line, exc_info=error)
            self.last_error = line
            self._waiting = self._waiting or snapshot
            self._changed.notify_all()
            if was_last_try:
                return False
            waiting = self._waiting
            self._changed.wait_for(
                lambda: self._is_closing or self._waiting is not waiting, max(0.0, deadline - time.monotonic())
            )
            return True


def on_host(state: Any) -> Any:
    """A deep copy of nested dicts, lists, tensors and plain values, with all tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state
