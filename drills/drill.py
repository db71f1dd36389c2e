"""`python -m drills.drill`: each fault that a run must survive, once, on this host, and a table of what happened.

Procgen, Ray, signals and removed raylets are real. The counters "add up" if metrics.jsonl contains every version once,
frames are versions times batch, and exactly the lost actors, hung actors and lost rollouts of the fault were counted.
The newest update survived if a fault that ended the learner left files from which at most one completed update is lost.
Exit code 1 if one of these does not hold or the learner did not say how to continue. `--short` skips the faults that
take a minute, end the learner or need a cluster, and those that have a test of their own.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import make_console, make_parser, show_table
from drills.faults import ACTORS, LONG_UPDATES, SHORT_UPDATES, Drill
from drills.outcome import COLUMNS, Outcome
from drills.trainee import EVALUATOR, Trainee, limit_memory

OBJECT_STORE = 320 << 20
# Ray ends a learner that has not reached the cluster's head for this long; its default is 60.
HEAD_SECONDS = 10
# The learner waits a minute for a hung evaluator, which must then start again and score.
EVALUATOR_PATIENCE = 180.0


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
        drill.second_learner()
        if not short:
            drill.take_away_disk()
            drill.fill_disks()
            trainee.wait("evaluator SIGSTOP", lambda: drill.num_scores() > scored, EVALUATOR_PATIENCE)
            happened = "found hung, started again; training went on meanwhile"
            now = trainee.last()
            same = {name: now[name] - before_freeze[name] for name in ("actor_restarts", "actors_hung")}
            drill.note("evaluator SIGSTOP", happened, time.monotonic() - frozen_at, before_freeze, 0, **same)
            drill.suspend_everything()
        drill.stop()


def ended(directory: Path, outcomes: list[Outcome]) -> None:
    """Faults that end the learner, which starts its own Ray."""
    no_home = {"HOME": "/nonexistent"}
    started = time.monotonic()
    flags, environment = [*LONG_UPDATES.flags(), "--no-evaluator"], {"RAY_TMPDIR": str(directory)}
    with Trainee(directory, flags, {**environment, **no_home}) as trainee:
        drill = Drill(trainee, outcomes, LONG_UPDATES)
        trainee.wait_for_updates(1)
        drill.note("HOME does not exist", "started and trained", time.monotonic() - started, trainee.rows()[0])
        trainee.environment = environment
        drill.end_and_resume("learner SIGKILL, torn last line", lambda: trainee.learner.kill(), 1, drill.tear_last_line)
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
        config = {"gcs_rpc_server_reconnect_timeout_s": HEAD_SECONDS, "prestart_worker_first_driver": False}
        # Any port of the agent: with its default, Ray starts three seconds later beside another Ray.
        quiet = {"include_dashboard": False, "dashboard_agent_listen_port": 0}
        head_args = {**node_args, **quiet, "_system_config": config}
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
    parser.add_argument(
        "--short",
        action="store_true",
        help="skip the faults that take a minute, end the learner, need a cluster or have a test of their own",
    )
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
            if not options.short:
                ended(two, outcomes)
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
