"""Faults, one method each: it harms a run, waits until the run has recovered and appends what happened."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.autoscaler._private.constants import RAY_PROCESSES

from benchmarks.processes import process_tree
from common.storage.checkpoints import list_checkpoints
from common.storage.jsonl import read_jsonl
from drills.outcome import Outcome, adds_up, newest_update_survived
from drills.trainee import ACTOR, EVALUATOR, Row, Trainee, limit_file_sizes

ACTORS = 2
# leaper: its episodes are short, so that a score takes a second. impoola: its checkpoints are small, so that a resume
# point costs little.
COMMON_FLAGS = [
    *("--env-name", "leaper", "--encoder", "impoola"),
    *("--num-actors", str(ACTORS), "--num-levels", "3", "--total-frames", "1000000000"),
    *("--eval-episodes-per-level", "1"),
]
DISK_FULL_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a trainee's rollouts, and the flags that make it."""

    envs: int
    steps: int
    minibatches: int
    epochs: int
    checkpoint_interval: int
    actor_timeout: int

    @property
    def rollout(self) -> int:
        return self.envs * self.steps

    @property
    def batch(self) -> int:
        return ACTORS * self.rollout

    def flags(self) -> list[str]:
        return [
            *("--envs-per-actor", str(self.envs), "--unroll-length", str(self.steps)),
            *("--num-minibatches", str(self.minibatches), "--update-epochs", str(self.epochs)),
            *("--checkpoint-interval", str(self.checkpoint_interval), "--actor-timeout", str(self.actor_timeout)),
            *COMMON_FLAGS,
        ]


SHORT_UPDATES = Size(4, 32, 2, 1, checkpoint_interval=10, actor_timeout=10)
# More than a hundred times what a resume point costs, so that one is written after every update. No checkpoints, from
# which such a run would otherwise continue.
LONG_UPDATES = Size(8, 64, 2, 2, checkpoint_interval=10**6, actor_timeout=120)


class Drill:
    """Harms one run again and again. Each method is one fault; its outcome is appended and printed immediately."""

    def __init__(self, trainee: Trainee, outcomes: list[Outcome], size: Size):
        self.trainee = trainee
        self.outcomes = outcomes
        self.size = size

    def note(
        self,
        fault: str,
        happened: str,
        seconds: float,
        before: Row,
        frames_lost: int | None = None,
        problem: str | None = None,
        survived: str = "n.a.",
        **counted: int,
    ) -> None:
        """Appends an outcome. `counted` are the increases of counters that the fault should cause; others must be 0.

        A `problem` is reported instead of whether the counters add up.
        """
        rows = self.trainee.rows()
        lost_rollouts = rows[-1]["lost_rollouts"] - before["lost_rollouts"]
        if frames_lost is None:
            frames_lost = lost_rollouts * self.size.rollout
        adding_up = problem or adds_up(rows, before, rows[-1], counted, self.size.batch)
        outcome = Outcome(fault, happened, round(seconds, 1), frames_lost, adding_up, survived)
        self.outcomes.append(outcome)
        end = "" if survived == "n.a." else f", newest update survived: {survived}"
        print(f"{outcome.seconds:6.1f} s  {fault}: {happened} ({outcome.adds_up}{end})", file=sys.stderr, flush=True)

    def harm_actors(
        self, fault: str, harm: Callable[[psutil.Process], object], number: int = 1, hung: bool | None = False
    ) -> None:
        """Harms `number` actors, which then hang, die, or (hung=None) either.

        The run has recovered when all of them are counted and replaced and all actors take part in updates.
        """
        before = self.trainee.last()
        for actor in self.trainee.processes(ACTOR)[:number]:
            harm(actor)

        def recovered() -> bool:
            row = self.trainee.last()
            return row["actor_restarts"] >= before["actor_restarts"] + number and row["actors_ready"] == ACTORS

        seconds = self.trainee.wait(fault, recovered)
        self.trainee.wait_for_updates(2)
        counted = self.trainee.last()["actors_hung"] - before["actors_hung"]
        happened = f"{'hung' if counted else 'dead'}, replaced, training went on"
        expected = counted if hung is None else number if hung else 0
        self.note(fault, happened, seconds, before, actor_restarts=number, actors_hung=expected)

    def num_scores(self) -> int:
        """The number of rows in evaluations.jsonl."""
        return len(read_jsonl(self.trainee.run.evaluations))

    def kill_evaluator(self) -> None:
        """The run has recovered when another process has written a score."""
        before, scored = self.trainee.last(), self.num_scores()
        self.trainee.processes(EVALUATOR)[0].kill()
        seconds = self.trainee.wait("evaluator SIGKILL", lambda: self.num_scores() > scored)
        self.note("evaluator SIGKILL", "started again, scores go on", seconds, before)

    def delete_tensorboard(self) -> None:
        """The run has recovered when the directory exists again."""
        before = self.trainee.last()
        self.trainee.delete_tensorboard()
        seconds = self.trainee.wait("TensorBoard deleted", (self.trainee.run.tensorboard / "learner").exists)
        self.note("TensorBoard directory deleted", "created again", seconds, before)

    def take_away_disk(self) -> None:
        """The run has recovered when it writes checkpoints again."""
        before = self.trainee.last()
        with self.trainee.checkpoints_taken_away() as aside:
            self.trainee.wait("warning", lambda: "cannot be written to" in self.trainee.text())
            self.trainee.wait_for_updates(5)
            newest = list_checkpoints(aside)[-1].name
        seconds = self.trainee.wait("a checkpoint", lambda: self.newest_checkpoint().name > newest)
        self.note("checkpoints cannot be written", "warned, training went on, writing resumed", seconds, before)

    def fill_disks(self) -> None:
        """No file can be written for some seconds: standard output, standard error, logs, rows and checkpoints."""
        before, newest, started = self.trainee.last(), self.newest_checkpoint().name, time.time()
        writers = [self.trainee.learner, *self.trainee.processes(EVALUATOR)]
        for writer in writers:
            limit_file_sizes(writer, True)
        time.sleep(DISK_FULL_SECONDS)
        for writer in writers:
            limit_file_sizes(writer, False)
        ended = time.time()
        self.trainee.wait("a row", lambda: self.trainee.last()["time"] > ended)
        self.trainee.wait("a checkpoint", lambda: self.newest_checkpoint().name > newest)
        meanwhile = sum(started < row["time"] < ended for row in self.trainee.rows())
        happened = f"{meanwhile} updates meanwhile, their rows were written later"
        problem = None if meanwhile else "training stopped"
        self.note("log and run disks full", happened, time.time() - started, before, problem=problem)

    def suspend_everything(self) -> None:
        """A closed lid: nothing runs for longer than --actor-timeout, and nothing may be replaced."""
        before, started = self.trainee.last(), time.monotonic()
        everyone = process_tree(psutil.Process(self.trainee.process.pid))
        for process in everyone:
            process.suspend()
        time.sleep(self.size.actor_timeout + 2)
        for process in reversed(everyone):
            process.resume()
        self.trainee.wait_for_updates(2)
        seconds = time.monotonic() - started
        self.note("everything SIGSTOP, SIGCONT", "went on, nothing was replaced", seconds, before)

    def newest_checkpoint(self) -> Path:
        """The newest checkpoint's directory."""
        return list_checkpoints(self.trainee.run.checkpoints)[-1]

    def second_learner(self) -> None:
        """A second learner must not get hold of the run."""
        before, started = self.trainee.last(), time.monotonic()
        command = [sys.executable, "-m", "learner", "--resume", str(self.trainee.run.path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        refused = second.returncode == 2 and "in use by another learner" in second.stderr
        self.trainee.wait_for_updates(1)
        problem = None if refused else f"not refused: {second.stderr[-200:]}"
        seconds = time.monotonic() - started
        self.note("second learner on the run", "refused with the first one's process", seconds, before, problem=problem)

    def tear_last_line(self) -> None:
        """Leaves half a line at the end of metrics.jsonl, as a crash may."""
        with open(self.trainee.run.metrics, "ab") as metrics:
            metrics.write(b'{"policy_version": 12')

    def corrupt_newest_checkpoint(self) -> None:
        """Changes one bit."""
        path = self.newest_checkpoint() / "learner.pt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def stop_ray(self) -> None:
        """What `ray stop` does (ray/scripts/scripts.py), but only to this run's Ray and not to others on this host."""
        processes = [(process, process.name(), " ".join(process.cmdline())) for process in self.trainee.processes()]
        for group in (RAY_PROCESSES[:1], RAY_PROCESSES[1:-1], RAY_PROCESSES[-1:]):
            found = [
                process
                for process, name, command in processes
                if any(keyword in (name if is_name else command) for keyword, is_name in group)
            ]
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            for process in psutil.wait_procs(found, timeout=5)[1]:
                process.kill()

    def kill_raylet(self) -> None:
        """Kills the raylet that the learner has started."""
        next(process for process in self.trainee.processes() if process.name() == "raylet").kill()

    def clean_session_directory(self, directory: Path) -> None:
        """Deletes Ray's files as a cleaner of /tmp does. One actor dies, which cannot be replaced, and then the other.

        Training must go on with the second one, and end cleanly without it.
        """
        printed = len(self.trainee.text())
        shutil.rmtree(directory)
        for actor in self.trainee.processes(ACTOR):
            actor.kill()
            if self.trainee.processes(ACTOR):
                self.trainee.wait("warning", lambda: "until Ray is started again" in self.trainee.text()[printed:])
                self.trainee.wait_for_updates(1)

    def end_and_resume(
        self,
        fault: str,
        end: Callable[[], object],
        exit_code: int = 1,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Lets `end` end the learner, which must say how to continue, calls `meanwhile`, and repeats the command.

        Actors that are lost with their Ray may be counted after the update at which the run is resumed.
        """
        started = time.monotonic()
        end()
        exit_code_found = self.trainee.process.wait(120)
        ended_after = time.monotonic() - started
        before = self.trainee.last()
        rows = {row["policy_version"]: row for row in self.trainee.rows()}
        text = self.trainee.text()
        last_line = text.splitlines()[-1]
        problem = None
        if exit_code_found != exit_code or f"--resume {self.trainee.run.path}" not in last_line:
            problem = f"exit code {exit_code_found}, last line {last_line!r}"
        meanwhile()
        survived = newest_update_survived(self.trainee.run, before["policy_version"])
        started, restarted_at = time.monotonic(), time.time()
        self.trainee.start()
        self.trainee.wait(fault, lambda: self.trainee.last()["time"] > restarted_at)
        resumed_at = min(row["policy_version"] for row in self.trainee.rows() if row["time"] > restarted_at) - 1
        self.trainee.wait(fault, lambda: self.trainee.last()["policy_version"] > before["policy_version"])
        lost = before["policy_version"] - resumed_at
        damage = ", damage named" if "is damaged" in self.trainee.text()[len(text) :] else ""
        happened = (
            f"exit code {exit_code} after {ended_after:.0f} s, resumed {lost} update{'s' * (lost != 1)} back{damage}"
        )
        # Counters continue from the checkpoint: what was counted after it belongs to updates that are repeated.
        since = rows.get(resumed_at, before)
        counted = min(ACTORS, self.trainee.last()["actor_restarts"] - since["actor_restarts"])
        self.note(
            fault,
            happened,
            time.monotonic() - started,
            since,
            frames_lost=lost * self.size.batch,
            problem=problem,
            survived=survived,
            actor_restarts=counted,
        )

    def stop(self) -> None:
        """Ends the run for good."""
        before, started = self.trainee.last(), time.monotonic()
        exit_code = self.trainee.end(signal.SIGTERM)
        newest = self.trainee.last()["policy_version"]
        lost = newest - int(self.newest_checkpoint().name)
        self.note(
            "SIGTERM",
            "a checkpoint was written",
            time.monotonic() - started,
            before,
            frames_lost=lost * self.size.batch,
            problem=None if exit_code == 128 + signal.SIGTERM else f"exit code {exit_code}",
            survived=newest_update_survived(self.trainee.run, newest),
        )
