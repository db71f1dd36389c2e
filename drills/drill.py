"""`python -m drills.drill`: each fault that a run must survive, once, on this host, and a table of what happened.

Procgen, Ray, signals and removed raylets are real. The counters "add up" if metrics.jsonl contains every version once,
frames are versions times batch, and exactly the lost actors, hung actors and lost rollouts of the fault were counted.
The newest update survived if a fault that ended the learner left files from which at most one completed update is lost.
Exit code 1 if one of these does not hold or the learner did not say how to continue. `--short` skips the faults that
need a cluster, take a minute or have a test elsewhere.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler._private.constants import RAY_PROCESSES

from benchmarks.processes import process_tree
from benchmarks.report import Column, make_console, make_parser, show_table
from common.storage.checkpoints import list_checkpoints, load_newest_complete
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from drills.trainee import ACTOR, EVALUATOR, Row, Trainee, limit_file_sizes, limit_memory

ACTORS = 2
COMMON_FLAGS = [
    *("--num-actors", str(ACTORS), "--num-levels", "3", "--total-frames", "1000000000"),
    *("--eval-episodes-per-level", "1"),
]
OBJECT_STORE = 320 << 20
# Ray ends a learner that has not reached the cluster's head for this long; its default is 60.
HEAD_SECONDS = 10
DISK_FULL_SECONDS = 4.0
# The learner waits a minute for a hung evaluator, which must then start again and score.
EVALUATOR_PATIENCE = 180.0


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


SHORT_UPDATES = Size(4, 32, 2, 1, checkpoint_interval=5, actor_timeout=10)
# More than a hundred times what a resume point costs, so that one is written after every update. No checkpoints, from
# which such a run would otherwise continue.
LONG_UPDATES = Size(16, 128, 4, 3, checkpoint_interval=10**6, actor_timeout=120)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table. `frames_lost` had been collected or trained on and had to be collected again. `survived`
    says whether the newest update did, "n.a." if the learner did not end.
    """

    fault: str
    happened: str
    seconds: float
    frames_lost: int
    adds_up: str
    survived: str


COLUMNS: dict[str, Column] = {
    "fault": "{fault!s}",
    "what happened": "{happened!s}",
    "seconds": "{seconds:.1f}",
    "frames lost": "{frames_lost}",
    "adds up": "{adds_up!s}",
    "newest update survived": "{survived!s}",
}


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

        A `problem` is told in place of whether the counters add up.
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

        Training must go on with the second one, and end in order without it.
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


def newest_update_survived(run: RunDirectory, newest: int) -> str:
    """Whether the run can be resumed at its `newest` update or the one before: "yes" or "no", from its files."""
    directories = (run.checkpoints, run.resume_points)
    found = [load_newest_complete(directory, on_damaged=lambda line: None) for directory in directories]
    return "yes" if max((one.policy_version for one in found if one), default=-1) >= newest - 1 else "no"


def adds_up(rows: list[Row], before: Row, after: Row, counted: dict[str, int], batch: int) -> str:
    """ "yes", or what does not add up."""
    wrong = []
    if [row["policy_version"] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append("versions have gaps or duplicates")
    if any(row["frames"] != row["policy_version"] * batch for row in rows):
        wrong.append("frames are not versions times batch")
    for name in ("actor_restarts", "actors_hung", "dropped_for_lag", "skipped_updates"):
        increase = after[name] - before[name]
        if increase != counted.get(name, 0):
            wrong.append(f"{name} +{increase} instead of +{counted.get(name, 0)}")
    lost, most = after["lost_rollouts"] - before["lost_rollouts"], counted.get("actor_restarts", 0)
    if lost > most:
        wrong.append(f"lost_rollouts +{lost}, at most {most}")
    return "; ".join(wrong) or "yes"


def embedded(directory: Path, outcomes: list[Outcome], short: bool) -> None:
    """Faults that the learner survives, on one machine, with the Ray that the learner itself starts."""
    with Trainee(directory, SHORT_UPDATES.flags()) as trainee:
        drill = Drill(trainee, outcomes, SHORT_UPDATES)
        trainee.wait("first score", lambda: drill.num_scores() > 1)
        drill.kill_evaluator()
        frozen_at, before_freeze, scored = time.monotonic(), trainee.last(), drill.num_scores()
        if not short:
            trainee.processes(EVALUATOR)[0].suspend()
        drill.harm_actors("actor SIGKILL", psutil.Process.kill)
        drill.harm_actors("actor SIGSTOP", psutil.Process.suspend, hung=True)
        drill.harm_actors("actor without memory", limit_memory, hung=None)
        drill.harm_actors("all actors SIGKILL", psutil.Process.kill, number=ACTORS)
        drill.delete_tensorboard()
        drill.take_away_disk()
        drill.second_learner()
        if not short:
            drill.fill_disks()
            trainee.wait("evaluator SIGSTOP", lambda: drill.num_scores() > scored, EVALUATOR_PATIENCE)
            happened = "found hung, started again; training went on meanwhile"
            now = trainee.last()
            same = {name: now[name] - before_freeze[name] for name in ("actor_restarts", "actors_hung")}
            drill.note("evaluator SIGSTOP", happened, time.monotonic() - frozen_at, before_freeze, 0, **same)
            drill.suspend_everything()
        drill.stop()


def ended(directory: Path, outcomes: list[Outcome], short: bool) -> None:
    """Faults that end the learner, which starts its own Ray."""
    no_home = {"HOME": "/nonexistent"}
    started = time.monotonic()
    flags, environment = [*LONG_UPDATES.flags(), "--no-evaluator"], {"RAY_TMPDIR": str(directory)}
    with Trainee(directory, flags, {**environment, **no_home}) as trainee:
        drill = Drill(trainee, outcomes, LONG_UPDATES)
        trainee.wait_for_updates(1)
        if not short:
            drill.note("HOME does not exist", "started and trained", time.monotonic() - started, trainee.rows()[0])
        trainee.environment = environment
        drill.end_and_resume("learner SIGKILL, torn last line", lambda: trainee.learner.kill(), 1, drill.tear_last_line)
        if not short:
            drill.end_and_resume("ray stop", drill.stop_ray)
            drill.end_and_resume("raylet SIGKILL", drill.kill_raylet)
            clean = partial(drill.clean_session_directory, directory / "ray")
            drill.end_and_resume("session directory cleaned, actors SIGKILL", clean)
            terminate, corrupt = partial(trainee.end, signal.SIGTERM), drill.corrupt_newest_checkpoint
            drill.end_and_resume("SIGTERM, newest checkpoint corrupt", terminate, 128 + signal.SIGTERM, corrupt)


def on_cluster(directory: Path, outcomes: list[Outcome]) -> None:
    """Faults of nodes: a cluster of two raylets on this host, whose size determines the number of actors."""
    from ray.cluster_utils import Cluster

    node_args = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}

    def new_cluster() -> Any:  # Ray's own annotations are incomplete
        deadline = {"gcs_rpc_server_reconnect_timeout_s": HEAD_SECONDS}
        head_args = {**node_args, "include_dashboard": False, "_system_config": deadline}
        return Cluster(initialize_head=True, head_node_args=head_args)

    cluster = new_cluster()
    node: Any = cluster.add_node(**node_args)
    flags = [*LONG_UPDATES.flags(), "--no-evaluator", "--num-actors", f"1:{ACTORS}"]
    flags += ["--allow-unauthenticated", "--address", cluster.address]  # a cluster of `ray.cluster_utils` has no token
    try:
        with Trainee(directory, flags) as trainee:
            drill = Drill(trainee, outcomes, LONG_UPDATES)

            def wait_for_actors(fault: str, count: int) -> float:
                return trainee.wait(fault, lambda: trainee.last().get("actors_ready") == count)

            wait_for_actors("two actors", 2)
            before = trainee.last()
            cluster.remove_node(node, allow_graceful=False)
            seconds = wait_for_actors("node lost", 1)
            trainee.wait_for_updates(2)
            drill.note("node lost (raylet SIGKILL)", "trained on with 1 actor", seconds, before, actor_restarts=1)
            before, started = trainee.last(), time.monotonic()
            node = cluster.add_node(**node_args)
            wait_for_actors("node joined", 2)
            drill.note("node joined", "the waiting actor was placed on it", time.monotonic() - started, before)
            before, started = trainee.last(), time.monotonic()
            drain(cluster.address, node.node_id)
            wait_for_actors("node drained", 1)
            drill.note("node drained", "its actor was taken off", time.monotonic() - started, before, actor_restarts=1)

            def lose_head() -> None:
                cluster.head_node.kill_gcs_server()
                cluster.head_node.kill_raylet()

            def replace_cluster() -> None:
                nonlocal cluster
                cluster.shutdown()
                cluster = new_cluster()
                trainee.flags[-1] = cluster.address

            drill.end_and_resume("head lost", lose_head, meanwhile=replace_cluster)
            trainee.end(signal.SIGTERM)
    finally:
        cluster.shutdown()


def drain(address: str, node_id: str) -> None:
    """Tells Ray that a node will be removed, as an autoscaler does."""
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", address, "--node-id", node_id]
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
    deadline = ["--deadline-remaining-seconds", "600"]
    subprocess.run([*command, *reason, *deadline], check=True, capture_output=True, timeout=60)


def main() -> int:
    """Runs the drill, prints the table on stdout and returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--short", action="store_true", help="skip the faults that need a cluster or take a minute")
    parser.add_argument("--json", type=Path, help="file to which the table is also written")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    outcomes: list[Outcome] = []
    started = time.monotonic()
    failure = None
    try:
        with contextlib.ExitStack() as stack:
            one, two, three = (
                Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="drill-"))) for _ in range(3)
            )
            embedded(one, outcomes, options.short)
            ended(two, outcomes, options.short)
            if not options.short:
                on_cluster(three, outcomes)
    except TimeoutError as error:
        failure = str(error)
    rows = [dataclasses.asdict(outcome) for outcome in outcomes]
    console = make_console(stderr=False)
    show_table(console, None, rows, COLUMNS)
    console.print(f"{len(outcomes)} faults in {(time.monotonic() - started) / 60:.1f} minutes")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if failure:
        print(f"not survived: {failure}", file=sys.stderr)
    return int(bool(failure) or any(outcome.adds_up != "yes" or outcome.survived == "no" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
