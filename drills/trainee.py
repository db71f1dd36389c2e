"""A real `python -m learner` as `drills.drill` and `drills.soak` treat it: started, watched, hurt.

Faults are signals to the processes that the learner itself started, and changes of its files. Nothing in the learner
knows of them.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory

ACTOR, EVALUATOR = "ray::RemoteRolloutActor", "ray::RemoteEvaluatorActor"
Row = dict[str, Any]


class Trainee:
    """One run and the process that trains it now. `flags` are the learner's, without --run-dir and --resume."""

    def __init__(self, directory: Path, flags: list[str]):
        self.run = RunDirectory(directory / "run")
        self.flags = flags
        self.output = directory / "learner.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._first_row = 0

    def start(self) -> None:
        """The command that a restarting loop would repeat."""
        command = [sys.executable, "-m", "learner", *self.flags, "--resume", "auto", "--run-dir", str(self.run.path)]
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def rows(self) -> list[Row]:
        """metrics.jsonl as it stands."""
        return read_jsonl(self.run.metrics)

    def last(self) -> Row:
        """Its newest row."""
        rows = self.rows()
        return rows[-1] if rows else {"policy_version": 0, "frames": 0, "time": 0.0}

    def text(self) -> str:
        """Everything that the learner has printed."""
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The learner's descendants whose name begins with `name`, actors that wait to be used left out; or all."""
        assert self.process is not None
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [process for process in found if _name(process).startswith(name)]

    def wait(self, what: str, condition: Callable[[], bool], timeout: float = 120.0) -> float:
        """Seconds until `condition` held.

        Raises:
            TimeoutError: it did not within `timeout`, or the learner ended.
        """
        assert self.process is not None
        started = time.monotonic()
        while not condition():
            if self.process.poll() is not None or time.monotonic() - started > timeout:
                state = f"exit code {self.process.poll()}" if self.process.poll() is not None else "still running"
                raise TimeoutError(f"{what}: not within {timeout:.0f} s ({state})\n{self.text()[-2000:]}")
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for_updates(self, count: int = 2) -> float:
        """Seconds until that many more updates were logged."""
        target = self.last()["policy_version"] + count
        return self.wait(f"update {target}", lambda: self.last()["policy_version"] >= target)

    def end(self, signum: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Sends the learner a signal and returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(timeout)

    def kill_with_children(self) -> None:
        """Leaves nothing behind, whatever state it is in."""
        if self.process is None:
            return
        for process in [
            *self.processes(),
            *([psutil.Process(self.process.pid)] if self.process.poll() is None else []),
        ]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(30)


def limit_memory(process: psutil.Process) -> None:
    """Not a byte more than it has: the next allocation fails inside Procgen, torch or Ray."""
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms, resource.RLIM_INFINITY))


def take_away_checkpoints(run: RunDirectory) -> Path:
    """As if the disk had gone: a file stands in the directory's place, which stops root too. Returns where it is."""
    aside = run.path / "checkpoints.away"
    os.rename(run.checkpoints, aside)
    run.checkpoints.write_text("")
    return aside


def give_back_checkpoints(run: RunDirectory, aside: Path) -> None:
    """The disk is there again."""
    run.checkpoints.unlink()
    os.rename(aside, run.checkpoints)


def delete_tensorboard(run: RunDirectory) -> None:
    """Under the open files."""
    shutil.rmtree(run.tensorboard)


def _name(process: psutil.Process) -> str:
    """Ray writes an actor's class into its command line."""
    try:
        return process.cmdline()[0] if process.cmdline() else ""
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""
