"""`python -m drills.drill`: every fault that a run must survive, once, on this host, and a table of what happened.

Real Procgen, real Ray, real signals and removed raylets. The counters "add up" where metrics.jsonl has every version
once, frames are versions times batch, and exactly the lost actors, hung actors and lost rollouts of the fault were
counted. Exit code 1 if a fault was not survived or something does not add up. `--short` leaves out what needs a
cluster and what takes a minute.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.storage.checkpoints import list_checkpoints
from drills.trainee import (
    ACTOR,
    EVALUATOR,
    Row,
    Trainee,
    delete_tensorboard,
    give_back_checkpoints,
    limit_memory,
    take_away_checkpoints,
)

ACTORS, ENVS, STEPS = 2, 4, 32
BATCH = ACTORS * ENVS * STEPS
FLAGS = [
    *("--num-actors", str(ACTORS), "--envs-per-actor", str(ENVS), "--unroll-length", str(STEPS)),
    *("--num-minibatches", "2", "--update-epochs", "1", "--num-levels", "3", "--checkpoint-interval", "5"),
    *("--total-frames", "1000000000", "--actor-timeout", "10"),
]
OBJECT_STORE = 200 << 20
# A hung evaluator is given a minute, and then has to start and score.
EVALUATOR_PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the table. `frames_lost` were collected, or trained on, and had to be collected again."""

    fault: str
    happened: str
    seconds: float
    frames_lost: int
    adds_up: str


class Drill:
    """One run, hurt again and again; outcomes are shown as they come."""

    def __init__(self, trainee: Trainee, outcomes: list[Outcome]):
        self.trainee = trainee
        self.outcomes = outcomes

    def note(
        self, fault: str, happened: str, seconds: float, before: Row, frames_lost: int | None = None, **counted: int
    ) -> None:
        """`counted` are the increases of counters that the fault should have caused; all others should be 0."""
        after = self.trainee.last()
        lost_rollouts = after["lost_rollouts"] - before["lost_rollouts"]
        outcome = Outcome(
            fault,
            happened,
            round(seconds, 1),
            lost_rollouts * STEPS * ENVS if frames_lost is None else frames_lost,
            adds_up(self.trainee.rows(), before, after, counted),
        )
        self.outcomes.append(outcome)
        print(f"{outcome.seconds:6.1f} s  {fault}: {happened} ({outcome.adds_up})", file=sys.stderr, flush=True)

    def hurt_actors(self, fault: str, hurt: Callable[[], int], hung: bool | None = False) -> None:
        """`hurt` hurts that many actors, which then are hung, or not, or (None) either. Recovered: all are counted and
        replaced, and updates are made by all.
        """
        before = self.trainee.last()
        number = hurt()

        def recovered() -> bool:
            row = self.trainee.last()
            return row["actor_restarts"] >= before["actor_restarts"] + number and row["actors_ready"] == ACTORS

        seconds = self.trainee.wait(fault, recovered)
        self.trainee.wait_for_updates(2)
        counted = self.trainee.last()["actors_hung"] - before["actors_hung"]
        happened = f"{'hung, ' if counted else 'dead, '}replaced, training went on"
        expected = counted if hung is None else number if hung else 0
        self.note(fault, happened, seconds, before, actor_restarts=number, actors_hung=expected)

    def one_actor(self, act: Callable) -> Callable[[], int]:
        """Does it to one actor."""

        def hurt() -> int:
            act(self.trainee.processes(ACTOR)[0])
            return 1

        return hurt

    def all_actors(self) -> int:
        """Kills every actor at once."""
        actors = self.trainee.processes(ACTOR)
        for actor in actors:
            actor.kill()
        return len(actors)

    def kill_evaluator(self) -> None:
        """Recovered: another process has written a score."""
        before, scored = self.trainee.last(), self.num_scores()
        self.trainee.processes(EVALUATOR)[0].kill()
        seconds = self.trainee.wait("evaluator SIGKILL", lambda: self.num_scores() > scored)
        self.note("evaluator SIGKILL", "started again, scores go on", seconds, before)

    def num_scores(self) -> int:
        """Lines of evaluations.jsonl."""
        file = self.trainee.run.evaluations
        return len(file.read_text().splitlines()) if file.exists() else 0

    def delete_tensorboard(self) -> None:
        before = self.trainee.last()
        delete_tensorboard(self.trainee.run)
        there = (self.trainee.run.tensorboard / "learner").exists
        seconds = self.trainee.wait("TensorBoard deleted", there)
        self.note("TensorBoard directory deleted", "made again", seconds, before)

    def take_away_disk(self) -> None:
        before = self.trainee.last()
        aside = take_away_checkpoints(self.trainee.run)
        self.trainee.wait("warning", lambda: "cannot be written to" in self.trainee.text())
        self.trainee.wait_for_updates(5)
        newest = list_checkpoints(aside)[-1].name
        give_back_checkpoints(self.trainee.run, aside)
        written = lambda: list_checkpoints(self.trainee.run.checkpoints)[-1].name > newest  # noqa: E731
        seconds = self.trainee.wait("a checkpoint", written)
        self.note("checkpoints cannot be written", "warned, training went on, writing resumed", seconds, before)

    def second_learner(self) -> None:
        before = self.trainee.last()
        started = time.monotonic()
        command = [sys.executable, "-m", "learner", "--resume", str(self.trainee.run.path)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        refused = second.returncode == 2 and "in use by another learner" in second.stderr
        self.trainee.wait_for_updates(1)
        happened = "refused with the first one's process" if refused else f"NOT REFUSED: {second.stderr[-200:]}"
        self.note("second learner on the run", happened, time.monotonic() - started, before)

    def kill_learner(self) -> None:
        """And tear the last line of its log, as a crash may; what restarts it repeats the command."""
        self.restart_learner("learner SIGKILL, torn last line", signal.SIGKILL, self.tear_last_line)

    def tear_last_line(self) -> None:
        with open(self.trainee.run.metrics, "ab") as metrics:
            metrics.write(b'{"policy_version": 12')

    def stop_and_corrupt(self) -> None:
        self.restart_learner("SIGTERM, newest checkpoint corrupt", signal.SIGTERM, self.flip_byte)

    def flip_byte(self) -> None:
        path = list_checkpoints(self.trainee.run.checkpoints)[-1] / "learner.pt"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def restart_learner(self, fault: str, signum: int, meanwhile: Callable[[], None]) -> None:
        self.trainee.end(signum)
        before = self.trainee.last()
        rows = {row["policy_version"]: row for row in self.trainee.rows()}
        meanwhile()
        started = time.monotonic()
        self.trainee.start()
        said = "resumed at policy_version "
        resumptions = self.trainee.text().count(said)
        self.trainee.wait(fault, lambda: self.trainee.text().count(said) > resumptions)
        resumed_at = int(self.trainee.text().rpartition(said)[2].split(",")[0])
        self.trainee.wait(fault, lambda: self.trainee.last()["policy_version"] > before["policy_version"])
        lost = before["policy_version"] - resumed_at
        happened = f"--resume auto went on {lost} updates back" + (
            ", damage named" if "is damaged" in self.trainee.text() else ""
        )
        # Counters go on from the checkpoint's: what was counted after it belongs to updates that are made again.
        self.note(fault, happened, time.monotonic() - started, rows.get(resumed_at, before), frames_lost=lost * BATCH)

    def stop(self) -> None:
        before = self.trainee.last()
        started = time.monotonic()
        exit_code = self.trainee.end(signal.SIGTERM)
        newest = int(list_checkpoints(self.trainee.run.checkpoints)[-1].name)
        lost = self.trainee.last()["policy_version"] - newest
        self.note(
            "SIGTERM", f"exit code {exit_code} after a checkpoint", time.monotonic() - started, before, lost * BATCH
        )


def adds_up(rows: list[Row], before: Row, after: Row, counted: dict[str, int]) -> str:
    """ "yes", or what does not."""
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
    """Faults on one machine with the Ray that the learner starts itself."""
    with running(Trainee(directory, FLAGS)) as trainee:
        drill = Drill(trainee, outcomes)
        trainee.wait("first score", lambda: drill.num_scores() > 1)
        drill.kill_evaluator()
        frozen_at = time.monotonic()
        before_freeze, scored = trainee.last(), drill.num_scores()
        if not short:
            trainee.processes(EVALUATOR)[0].send_signal(signal.SIGSTOP)
        drill.hurt_actors("actor SIGKILL", drill.one_actor(lambda actor: actor.kill()))
        drill.hurt_actors("actor SIGSTOP", drill.one_actor(lambda actor: actor.send_signal(signal.SIGSTOP)), hung=True)
        drill.hurt_actors("actor without memory", drill.one_actor(limit_memory), hung=None)
        drill.hurt_actors("all actors SIGKILL", drill.all_actors)
        drill.delete_tensorboard()
        drill.take_away_disk()
        drill.second_learner()
        if not short:
            trainee.wait("evaluator SIGSTOP", lambda: drill.num_scores() > scored, EVALUATOR_PATIENCE)
            happened = "found hung, started again; training went on meanwhile"
            now, before = trainee.last(), before_freeze
            same = {name: now[name] - before[name] for name in ("actor_restarts", "actors_hung")}
            drill.note("evaluator SIGSTOP", happened, time.monotonic() - frozen_at, before, 0, **same)
        drill.kill_learner()
        if not short:
            drill.stop_and_corrupt()
        drill.stop()


def on_cluster(directory: Path, outcomes: list[Outcome]) -> None:
    """Faults of nodes: a cluster of two raylets on this host, the actors following its size."""
    from ray.cluster_utils import Cluster

    node_args = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}

    def new_cluster() -> Any:  # Ray's own types say less than it takes
        return Cluster(initialize_head=True, head_node_args={**node_args, "include_dashboard": False})

    def add_node() -> Any:
        return cluster.add_node(**node_args)

    cluster = new_cluster()
    node = add_node()
    flags = [*FLAGS, "--no-evaluator", "--num-actors", f"1:{ACTORS}"]
    flags += ["--allow-unauthenticated", "--address", cluster.address]  # a cluster of `ray.cluster_utils` has no token
    try:
        with running(Trainee(directory, flags)) as trainee:
            drill = Drill(trainee, outcomes)
            alive = lambda count: lambda: trainee.last().get("actors_ready") == count  # noqa: E731
            trainee.wait("two actors", alive(2))
            before = trainee.last()
            cluster.remove_node(node, allow_graceful=False)
            seconds = trainee.wait("node lost", alive(1))
            trainee.wait_for_updates(2)
            drill.note("node lost (raylet SIGKILL)", "trained on with 1 actor", seconds, before, actor_restarts=1)
            before, started = trainee.last(), time.monotonic()
            node = add_node()
            trainee.wait("node joined", alive(2))
            drill.note("node joined", "the waiting actor was placed there", time.monotonic() - started, before)
            before, started = trainee.last(), time.monotonic()
            drain(cluster.address, node.node_id)
            trainee.wait("node drained", alive(1))
            drill.note("node drained", "its actor was taken off", time.monotonic() - started, before, actor_restarts=1)
            before, started = trainee.last(), time.monotonic()
            cluster.head_node.kill_gcs_server()
            cluster.head_node.kill_raylet()
            assert trainee.process is not None
            exit_code = trainee.process.wait(120)
            ended = time.monotonic() - started
            cluster.shutdown()
            cluster = new_cluster()
            trainee.flags[-1] = cluster.address
            fault = f"head lost (learner ended after {ended:.0f} s, exit code {exit_code})"
            drill.restart_learner(fault, signal.SIGKILL, lambda: None)
            trainee.end(signal.SIGTERM)
    finally:
        cluster.shutdown()


def drain(address: str, node_id: str) -> None:
    """Tells Ray that a node will go, as an autoscaler does."""
    ray = str(Path(sys.executable).with_name("ray"))
    words = (
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        "drill",
        "--deadline-remaining-seconds",
        "600",
    )
    command = [ray, "drain-node", "--address", address, "--node-id", node_id, *words]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@contextlib.contextmanager
def running(trainee: Trainee) -> Iterator[Trainee]:
    """Started, and gone afterwards whatever happens."""
    trainee.start()
    try:
        trainee.wait("first update", lambda: bool(trainee.rows()))
        yield trainee
    finally:
        trainee.kill_with_children()


def main() -> int:
    """Runs, prints a table on stdout and returns the exit code."""
    parser = argparse.ArgumentParser(prog="drill", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--short", action="store_true", help="without a cluster, and without what takes a minute")
    parser.add_argument("--json", type=Path, help="write the table there too")
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    outcomes: list[Outcome] = []
    started = time.monotonic()
    failure = None
    try:
        with tempfile.TemporaryDirectory(prefix="drill-") as directory:
            for name in ("one", "two"):
                (Path(directory) / name).mkdir()
            embedded(Path(directory) / "one", outcomes, options.short)
            if not options.short:
                on_cluster(Path(directory) / "two", outcomes)
    except TimeoutError as error:
        failure = str(error)
    _print(outcomes, time.monotonic() - started)
    if options.json:
        options.json.write_text(json.dumps([_as_dict(outcome) for outcome in outcomes], indent=1) + "\n")
    if failure:
        print(f"not survived: {failure}", file=sys.stderr)
    return int(bool(failure) or any(outcome.adds_up != "yes" for outcome in outcomes))


def _as_dict(outcome: Outcome) -> dict[str, object]:
    return {name: getattr(outcome, name) for name in Outcome.__slots__}


def _print(outcomes: list[Outcome], seconds: float) -> None:
    table = Table("fault", "what happened", "seconds", "frames lost", "adds up")
    for o in outcomes:
        table.add_row(o.fault, o.happened, f"{o.seconds:.1f}", str(o.frames_lost), o.adds_up)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(f"{len(outcomes)} faults in {seconds / 60:.1f} minutes")


if __name__ == "__main__":
    sys.exit(main())
