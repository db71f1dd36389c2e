"""A real `python -m learner` for `drills.drill` and `drills.soak` to start, watch and harm.

Faults are signals to the processes that the learner started, and changes to its files. The learner contains no code for
them.
"""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.processes import kill_tree, process_tree
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory

ACTOR, EVALUATOR = "ray::RemoteRolloutActor", "ray::RemoteEvaluatorActor"
Row = dict[str, Any]


class Trainee:
    """A run, and the process that is training it. `flags` are the learner's, without --run-dir and --resume, and
    `environment` is added to ours. `process` is the learner's small parent, `learner` the one that trains.

    A context manager: starts the learner, waits for its first update, and finally kills it and all its descendants.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, directory: Path, flags: list[str], environment: Mapping[str, str] | None = None):
        self.run = RunDirectory(directory / "run")
        self.flags = flags
        self.environment = dict(environment or {})
        self.output = directory / "learner.log"

    def __enter__(self) -> "Trainee":
        self.start()
        try:
            self.wait("first update", lambda: bool(self.rows()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            kill_tree(psutil.Process(self.process.pid))
        self.process.wait(30)

    def start(self) -> None:
        """Runs the command that a supervisor's restart loop would repeat."""
        # At low priority: it trains without an end, also while a test or a drill waits for something else.
        learner = ["nice", "-n", "10", sys.executable, "-m", "learner"]
        command = [*learner, *self.flags, "--resume", "auto", "--run-dir", str(self.run.path)]
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def learner(self) -> psutil.Process:
        """The process that trains."""
        return psutil.Process(self.process.pid).children()[0]

    def rows(self) -> list[Row]:
        """The current rows of metrics.jsonl."""
        return read_jsonl(self.run.metrics)

    def last(self) -> Row:
        """The newest row of metrics.jsonl."""
        rows = self.rows()
        return rows[-1] if rows else {"policy_version": 0, "frames": 0, "time": 0.0}

    def text(self) -> str:
        """Everything that the learner has printed."""
        return self.output.read_text(errors="replace")

    def processes(self, name: str = "") -> list[psutil.Process]:
        """The learner's descendants whose command begins with `name`, which excludes idle Ray workers; "" for all."""
        found = []
        for process in process_tree(psutil.Process(self.process.pid))[1:]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if "".join(process.cmdline()[:1]).startswith(name):  # Ray writes an actor's class into it
                    found.append(process)
        return found

    def wait(self, what: str, condition: Callable[[], bool], timeout: float = 180.0) -> float:
        """Waits until `condition` holds; returns the seconds that this took.

        Raises:
            TimeoutError: it did not hold within `timeout`, or the learner ended.
        """
        started = time.monotonic()
        while not condition():
            exit_code = self.process.poll()
            if exit_code is not None or time.monotonic() - started > timeout:
                ended = f"the learner ended with exit code {exit_code}"
                problem = f"not within {timeout:.0f} s" if exit_code is None else ended
                raise TimeoutError(f"{what}: {problem}\n{self.text()[-2000:]}")
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for_updates(self, count: int) -> float:
        """Waits until `count` more updates are logged; returns the seconds that this took."""
        target = self.last()["policy_version"] + count
        return self.wait(f"update {target}", lambda: self.last()["policy_version"] >= target)

    def end(self, signum: int = signal.SIGTERM, timeout: float = 60.0) -> int:
        """Sends the learner a signal and returns its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(timeout)

    @contextlib.contextmanager
    def checkpoints_taken_away(self) -> Iterator[Path]:
        """Simulates the loss of the disk inside its `with` block; yields where the checkpoints are meanwhile."""
        aside = self.run.path / "checkpoints.away"
        os.rename(self.run.checkpoints, aside)
        self.run.checkpoints.write_text("")  # a file in place of the directory stops even root
        yield aside
        learner = self.learner
        learner.suspend()  # it would create the directory as soon as nothing is in its place
        self.run.checkpoints.unlink()
        os.rename(aside, self.run.checkpoints)
        learner.resume()

    def delete_tensorboard(self) -> None:
        """Deletes TensorBoard's directory while its files are open."""
        shutil.rmtree(self.run.tensorboard)


def limit_file_sizes(process: psutil.Process, is_limited: bool) -> None:
    """Lets every write to a file fail, as on a full disk (with EFBIG), or undoes that."""
    _, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (0 if is_limited else hard, hard))


def limit_memory(process: psutil.Process) -> None:
    """Limits a process to the memory that it has: the next allocation fails inside Procgen, torch or Ray."""
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms, resource.RLIM_INFINITY))
