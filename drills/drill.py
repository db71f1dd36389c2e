"""`python -m drills.drill`: each fault that a run must survive, once, on this host, and a table of what happened.

Procgen, Ray, signals and removed raylets are real. The counters "add up" if metrics.jsonl contains every version once,
frames are versions times batch, and exactly the lost actors, hung actors and lost rollouts of the fault were counted.
Exit code 1 if a fault was not survived or something does not add up. `--short` skips the faults that need a cluster or
take a minute.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Column, make_console, make_parser, show_table
from common.storage.checkpoints import list_checkpoints
from common.storage.jsonl import read_jsonl
from drills.trainee import ACTOR, EVALUATOR, Row, Trainee, limit_memory

ACTORS, ENVS, STEPS = 2, 4, 32
BATCH = ACTORS * ENVS * STEPS
FLAGS = [
    *("--num-actors", str(ACTORS), "--envs-per-actor", str(ENVS), "--unroll-length", str(STEPS)),
    *("--num-minibatches", "2", "--update-epochs", "1", "--num-levels", "3", "--checkpoint-interval", "5"),
    *("--total-frames", "1000000000", "--actor-timeout", "10", "--eval-episodes-per-level", "1"),
]
OBJECT_STORE = 200 << 20
# The learner waits a minute for a hung evaluator, which must then start again and score.
EVALUATOR_PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table. `frames_lost` had been collected or trained on and had to be collected again."""

    fault: str
    happened: str
    seconds: float
    frames_lost: int
    adds_up: str


COLUMNS: dict[str, Column] = {
    "fault": "{fault!s}",
    "what happened": "{happened!s}",
    "seconds": "{seconds:.1f}",
    "frames lost": "{frames_lost}",
    "adds up": "{adds_up!s}",
}


class Drill:
    """Harms one run again and again. Each method is one fault; its outcome is appended and printed immediately."""

    def __init__(self, trainee: Trainee, outcomes: list[Outcome]):
        self.trainee = trainee
        self.outcomes = outcomes

    def note(
        self, fault: str, happened: str, seconds: float, before: Row, frames_lost: int | None = None, **counted: int
    ) -> None:
        """Appends an outcome. `counted` are the increases of counters that the fault should cause; others must be 0."""
        rows = self.trainee.rows()
        lost_rollouts = rows[-1]["lost_rollouts"] - before["lost_rollouts"]
        if frames_lost is None:
            frames_lost = lost_rollouts * STEPS * ENVS
        outcome = Outcome(fault, happened, round(seconds, 1), frames_lost, adds_up(rows, before, rows[-1], counted))
        self.outcomes.append(outcome)
        print(f"{outcome.seconds:6.1f} s  {fault}: {happened} ({outcome.adds_up})", file=sys.stderr, flush=True)

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
        happened = "refused with the first one's process" if refused else f"NOT REFUSED: {second.stderr[-200:]}"
        self.note("second learner on the run", happened, time.monotonic() - started, before)

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

    def restart_learner(self, fault: str, signum: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Ends the learner with a signal, calls `meanwhile`, and repeats the learner's command."""
        self.trainee.end(signum)
        before = self.trainee.last()
        rows = {row["policy_version"]: row for row in self.trainee.rows()}
        meanwhile()
        started, restarted_at = time.monotonic(), time.time()
        self.trainee.start()
        self.trainee.wait(fault, lambda: self.trainee.last()["time"] > restarted_at)
        resumed_at = min(row["policy_version"] for row in self.trainee.rows() if row["time"] > restarted_at) - 1
        self.trainee.wait(fault, lambda: self.trainee.last()["policy_version"] > before["policy_version"])
        lost = before["policy_version"] - resumed_at
        damage = ", damage named" if "is damaged" in self.trainee.text() else ""
        happened = f"--resume auto went on {lost} updates back{damage}"
        # Counters continue from the checkpoint: what was counted after it belongs to updates that are repeated.
        self.note(fault, happened, time.monotonic() - started, rows.get(resumed_at, before), frames_lost=lost * BATCH)

    def stop(self) -> None:
        """Ends the run for good."""
        before, started = self.trainee.last(), time.monotonic()
        exit_code = self.trainee.end(signal.SIGTERM)
        lost = self.trainee.last()["policy_version"] - int(self.newest_checkpoint().name)
        happened = f"exit code {exit_code} after a checkpoint"
        self.note("SIGTERM", happened, time.monotonic() - started, before, lost * BATCH)


def adds_up(rows: list[Row], before: Row, after: Row, counted: dict[str, int]) -> str:
    """ "yes", or what does not add up."""
    wrong = []
    if [row["policy_version"] for row in rows] != list(range(1, len(rows) + 1)):
        wrong.append("versions have gaps or duplicates")
    if any(row["frames"] != row["policy_version"] * BATCH for row in rows):
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
    """Faults on one machine, with the Ray that the learner itself starts."""
    with Trainee(directory, FLAGS) as trainee:
        drill = Drill(trainee, outcomes)
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
            trainee.wait("evaluator SIGSTOP", lambda: drill.num_scores() > scored, EVALUATOR_PATIENCE)
            happened = "found hung, started again; training went on meanwhile"
            now = trainee.last()
            same = {name: now[name] - before_freeze[name] for name in ("actor_restarts", "actors_hung")}
            drill.note("evaluator SIGSTOP", happened, time.monotonic() - frozen_at, before_freeze, 0, **same)
        drill.restart_learner("learner SIGKILL, torn last line", signal.SIGKILL, drill.tear_last_line)
        if not short:
            corrupt = drill.corrupt_newest_checkpoint
            drill.restart_learner("SIGTERM, newest checkpoint corrupt", signal.SIGTERM, corrupt)
        drill.stop()


def on_cluster(directory: Path, outcomes: list[Outcome]) -> None:
    """Faults of nodes: a cluster of two raylets on this host, whose size determines the number of actors."""
    from ray.cluster_utils import Cluster

    node_args = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}

    def new_cluster() -> Any:  # Ray's own annotations are incomplete
        return Cluster(initialize_head=True, head_node_args={**node_args, "include_dashboard": False})

    cluster = new_cluster()
    node: Any = cluster.add_node(**node_args)
    flags = [*FLAGS, "--no-evaluator", "--num-actors", f"1:{ACTORS}"]
    flags += ["--allow-unauthenticated", "--address", cluster.address]  # a cluster of `ray.cluster_utils` has no token
    try:
        with Trainee(directory, flags) as trainee:
            drill = Drill(trainee, outcomes)

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
            started = time.monotonic()
            cluster.head_node.kill_gcs_server()
            cluster.head_node.kill_raylet()
            exit_code = trainee.process.wait(120)
            ended = time.monotonic() - started
            cluster.shutdown()
            cluster = new_cluster()
            trainee.flags[-1] = cluster.address
            fault = f"head lost (learner ended after {ended:.0f} s, exit code {exit_code})"
            drill.restart_learner(fault, signal.SIGKILL)
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
        with tempfile.TemporaryDirectory(prefix="drill-") as one, tempfile.TemporaryDirectory(prefix="drill-") as two:
            embedded(Path(one), outcomes, options.short)
            if not options.short:
                on_cluster(Path(two), outcomes)
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
    return int(bool(failure) or any(outcome.adds_up != "yes" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
