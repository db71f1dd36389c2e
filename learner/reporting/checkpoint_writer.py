"""Checkpoints written on a thread of their own, so that training pauses only for a copy in memory."""

import contextlib
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

# A disk that failed is tried again after so many seconds, or at once with the next checkpoint.
RETRY_SECONDS = 10.0
# Training waits so long for a disk that is slow before the checkpoint that waits is given up for a newer one.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One policy_version's checkpoint in memory, independent of what the learner does next."""

    policy_version: int
    frames: int
    weights: Weights
    state: dict[str, Any]


class CheckpointWriter:
    """Writes what it is given, in order; while the disk fails, the newest replaces what waits.

    `problem` is a line about the disk, or None; `newest` is the policy_version on the disk, -1 for none.
    """

    def __init__(self, run: RunDirectory, config: Config, newest: int = -1):
        self.problem: str | None = None
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
        """Returns at once, unless the one before has not been begun: then when it is, for a disk that only is slow.

        After `patience` seconds of that the one before is given up.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self.problem is not None, patience)
            self._waiting = snapshot
            self._changed.notify_all()

    def written(self) -> list[CheckpointNotice]:
        """Checkpoints that became complete since the last call, oldest first."""
        with self._changed:
            written, self._written = self._written, []
            return written

    def close(self, timeout: float) -> bool:
        """Writes what waits, trying a failed disk once more, and ends. False if something could not be written."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive() and self._waiting is None

    def _work(self) -> None:
        while (snapshot := self._next()) is not None:
            try:
                path = self._write(snapshot)
            except Exception as error:  # whatever a disk can do: training goes on, and this thread with it
                if not self._keep_for_later(snapshot, error):
                    return
            else:
                with self._changed:
                    self.problem = None
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
        path = save_checkpoint(
            self._run.checkpoints,
            self._config,
            snapshot.policy_version,
            snapshot.frames,
            snapshot.weights,
            snapshot.state,
        )
        config = self._config
        if config.keep_checkpoints:
            with contextlib.suppress(OSError):  # this one is written; what stayed goes with the next
                protected = self._needed_by_evaluator()
                prune_checkpoints(self._run.checkpoints, config.keep_checkpoints, config.keep_every, protected)
        return path

    def _needed_by_evaluator(self) -> Callable[[int], bool]:
        """The best one, and with --backfill all that lack scores."""
        best = self._run.best.readlink().name if self._run.best.is_symlink() else ""
        scored = {row.get("policy_version") for row in read_jsonl(self._run.evaluations)}
        keeps_unscored = self._config.evaluator and self._config.backfill
        return lambda version: (best.isdigit() and version == int(best)) or (keeps_unscored and version not in scored)

    def _keep_for_later(self, snapshot: Snapshot, error: Exception) -> bool:
        """Waits until it is worth trying again; False when closing."""
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{error}" or type(error).__name__
        deadline = time.monotonic() + RETRY_SECONDS
        with self._changed:
            was_last_try = self._is_closing
            kept = f"policy_version {self.newest}" if self.newest >= 0 else "none"
            self.problem = f"checkpoints cannot be written to {self._run.checkpoints}: {reason}; the newest is {kept}"
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
    """A copy of nested dicts, lists, tensors and plain values that shares nothing and is in the host's memory."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: on_host(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_host(value) for value in state)
    return state
