"""Runs the learners of a study: N at a time, each an ordinary `python -m learner`, stopped cleanly by a signal.

One thread. Each learner is started in its own session, so that Ctrl-C in the terminal reaches it once, from here. It
is also told to end if this process is killed. With several at a time each gets its share of the cores by its CPU
affinity, from which a learner chooses its actors, its threads and the size of its Ray.
"""

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.limits import available_cores
from common.storage.file_lock import lock_holder
from common.storage.run_directory import RunDirectory
from learner.stopping import SENT_BY_PEOPLE, ended_by, handled_signals
from learner.study import run_files
from learner.study.plan import PlannedRun
from learner.study.progress import StudyProgress

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# After a second signal learners end immediately; one that does not is killed.
_LAST_SECONDS = 10.0
# After an error of the study; a learner takes up to 20 s for its last checkpoint.
_STOPPING_SECONDS = 60.0
# The learners of a study that was killed write a checkpoint before they end; then a run is started whoever uses it.
_EARLIER_LEARNERS_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Learner:
    run: PlannedRun
    process: "subprocess.Popen[bytes]"
    slot: int
    started: float
    output_begin: int  # where its output begins in a file that earlier attempts wrote to


class StudySignals:
    """Collects the signals that end programs, in the order in which they come. A context manager."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StudySignals":
        self._previous = handled_signals()
        for signum in self._previous:
            signal.signal(signum, lambda number, frame: self.received.append(number))
        # If it were ignored, the kernel would discard exit codes.
        self._previous[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    @property
    def ends_immediately(self) -> bool:
        """Whether a person asked a second time; systems may repeat their signals."""
        return len(self.received) > 1 and sum(number in SENT_BY_PEOPLE for number in self.received) > 1


class Learners:
    """Starts and ends the learners of the runs in `directory`; `program` is how a learner is started."""

    def __init__(self, directory: Path, program: Sequence[str], jobs: int, progress: StudyProgress):
        self._directory = directory
        self._program = list(program)
        self._jobs = jobs
        self._progress = progress
        self._running: list[_Learner] = []
        self._failed = 0
        self._earlier_end = time.monotonic() + _EARLIER_LEARNERS_SECONDS
        self._has_said_waiting = False

    def run(self, runs: Sequence[PlannedRun], signals: StudySignals) -> int:
        """Runs all; returns the exit code: 0, 1 if a run failed, 128 + n after signal n."""
        waiting, forwarded, deadline = list(runs), 0, float("inf")
        previous = signal.signal(signal.SIGTSTP, self._suspend)
        try:
            while self._running or (waiting and not signals.received):
                while len(self._running) < self._jobs and not signals.received and (run := self._next(waiting)):
                    waiting.remove(run)
                    self._start(run)
                if len(signals.received) > forwarded:
                    if not forwarded:
                        self._progress.stopping(signals.received[0], len(self._running))
                    for number in signals.received[forwarded:]:
                        self._send(number)
                    forwarded = len(signals.received)
                    if signals.ends_immediately:
                        deadline = min(deadline, time.monotonic() + _LAST_SECONDS)
                if time.monotonic() > deadline:
                    self._send(signal.SIGKILL)
                self._collect(is_stopping=bool(signals.received))
                self._progress.refresh()
                time.sleep(_POLL_SECONDS)
        except BaseException:  # an error of ours
            self._end_all(signals)
            raise
        finally:
            signal.signal(signal.SIGTSTP, previous)
        if signals.received:
            return 128 + signals.received[0]
        return 1 if self._failed else 0

    def _next(self, waiting: Sequence[PlannedRun]) -> PlannedRun | None:
        """The first run that no earlier learner uses, as far as this machine can see; None: wait for those."""
        if time.monotonic() > self._earlier_end:
            return next(iter(waiting), None)
        for run in waiting:
            if lock_holder(RunDirectory(run.directory(self._directory)).learner_lock) is None:
                return run
        if waiting and not self._has_said_waiting:
            self._has_said_waiting = True
            self._progress.note(f"waiting for the learner of {waiting[0].name}, which has not ended yet")
        return None

    def _start(self, run: PlannedRun) -> None:
        directory = run.directory(self._directory)
        slot = min(set(range(self._jobs)) - {learner.slot for learner in self._running})
        cores = os.sched_getaffinity(0)
        try:
            run_files.is_finished(RunDirectory(directory), run.frames)  # whether its files can be read
            run_files.note_start(directory)
            with open(run_files.output_path(directory), "ab") as output:
                begin = output.seek(0, os.SEEK_END)
                os.sched_setaffinity(0, share_of_cores(sorted(cores), self._jobs, slot))
                process = subprocess.Popen(
                    [*self._program, *run.arguments(self._directory)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=_end_with_study,
                )
        except OSError as error:
            self._fail(run, f"cannot start it: {error}")
            return
        finally:
            os.sched_setaffinity(0, cores)
        self._running.append(_Learner(run, process, slot, time.monotonic(), begin))
        self._progress.started(run)

    def _collect(self, is_stopping: bool) -> None:
        """Reports the learners that have ended."""
        for learner in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(learner)
            directory, code = learner.run.directory(self._directory), learner.process.returncode
            output = run_files.output_path(directory)
            last_line = run_files.last_line(output, learner.output_begin)
            reason = last_line or "it printed nothing"
            if code < 0:
                reason = f"{ended_by(-code)}; {f'it last printed: {last_line}' if last_line else reason}"
                code = 128 - code
            try:
                if code == 0 and not run_files.is_finished(RunDirectory(directory), learner.run.frames):
                    code, reason = 1, "it ended without its last score; start the study again to score it"
            except OSError as error:
                code, reason = 1, run_files.describe(error, RunDirectory(directory))
            was_stopped = is_stopping and code >= 128
            with contextlib.suppress(OSError):  # a full disk
                run_files.note_end(directory, code, reason, was_stopped)
            if code == 0:
                self._progress.finished(learner.run, time.monotonic() - learner.started)
            elif was_stopped:
                self._progress.stopped(learner.run, reason)
            else:
                self._fail(learner.run, f"exit code {code}: {reason}")

    def _end_all(self, signals: StudySignals) -> None:
        """Ends all learners, each after a checkpoint, and waits for them: others may use the directory afterwards."""
        deadline = time.monotonic() + _STOPPING_SECONDS
        self._send(signal.SIGTERM)
        while any(learner.process.poll() is None for learner in self._running):
            if time.monotonic() > deadline or signals.ends_immediately:
                self._send(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)

    def _fail(self, run: PlannedRun, reason: str) -> None:
        self._failed += 1
        logger.info("%s failed: %s", run.name, reason)
        self._progress.failed(run, reason)

    def _send(self, signum: int) -> None:
        for learner in self._running:
            with contextlib.suppress(ProcessLookupError):
                learner.process.send_signal(signum)

    def _suspend(self, signum: int, frame: object) -> None:
        """Ctrl-Z stops the learners too; `fg` and `bg` continue all."""
        self._send(signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)


def cores_of_each(jobs: int) -> int:
    """Cores of each of `jobs` learners; 0: too few to divide, so that all learners use all of them."""
    return available_cores() // jobs


def share_of_cores(cores: Sequence[int], jobs: int, slot: int) -> set[int]:
    """The cores of the learner in `slot` of `jobs`: equal parts without overlap, or all if there are too few.

    `cores` are those of this process's affinity. A CPU quota is divided as well: it does not say which cores.
    """
    share = cores_of_each(jobs)
    return set(cores[slot * share : (slot + 1) * share]) if jobs > 1 and share else set(cores)


def _end_with_study() -> None:
    """In a learner before it begins: the kernel sends it SIGTERM if this process is killed (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
