"""`python -m benchmarks.scaling`: the cost of everything between actors and learner, for growing numbers of actors.

Two things are replaced by sleeps: stepping Procgen and the learner's update. Everything else is the service's: an
embedded Ray, one process per actor, `Rollout` messages of 12,305 bytes per frame, `RolloutStream` with its staging
buffers, and real weights published after each update. The sleeps set an upper bound on the speed; what is missing from
it is the service's own cost.

    sweep    weak scaling: each actor returns one rollout of a fixed size per update; the batch grows with the actors
    ingest   no sleeps, few actors, also larger rollouts: the highest rate in GB/s at which the learner's process stages

    efficiency          rollouts/s divided by actors / max(collect, update seconds), in both modes
    efficiency_of_mode  rollouts/s divided by what the sleeps allow in this mode: sync sleeps collect + update seconds
    shared memory       pages that Ray's object store has ever written to; it never returns them (before `ingest`, the
                        benchmark writes to all of them)
    PSS                 memory of all processes; of what n processes share, each counts an n-th. The learner keeps all
                        memory that it has ever used, as it does in the service

During the sleeps the cores are free for Ray, as they are beside a learner on a GPU; real stepping and updates leave
less. The update's sleep begins when the batch is complete, an actor's sleep when `collect` is called. Actors are
started as they are needed, so that each size runs with exactly its number of processes. Memory is sampled during
separate updates after the timed ones, because sampling takes CPU time. Run nothing else on the machine: the figures of
a busy machine are worthless.

64 actors with rollouts of 3.1 MB need about 6 GB of memory, most of it for 64 Python processes that run Ray. For
rollouts of 12.6 MB, a batch of 0.8 GB: --envs-per-actor 4 --memory-gigabytes 9
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from rich.console import Console

from benchmarks.processes import memory_by_kind, process_tree, watch_peaks
from benchmarks.report import Column, Row, machine, make_console, make_parser, median_seconds, show_table
from benchmarks.sleeping_actor import SleepingFleet, make_rollout, sleep_until
from common.config import Config
from common.messages import rollout_bytes
from common.policy_network import PolicyNetwork
from common.process import prepare_process
from common.resolution import resolve
from learner.cluster import connection
from learner.cluster.machine_checks import SHARED_MEMORY
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import StagedBatch
from learner.rollouts.stream import RolloutStream
from learner.stopping import StopRequested, StopSignals

CPU = torch.device("cpu")
LAGS = {"sync": 0, "overlap": 1}
WARM_UP_UPDATES = 2  # the first updates are the first to write to the object store's pages
WATCHED_UPDATES = 2  # after the timed updates, while memory is sampled
ACTOR_BYTES = 64 << 20  # a Ray worker process with the weights, without a rollout
OTHER_BYTES = 700 << 20  # learner process, raylet, GCS
# A batch is held in two staging buffers, the object store and the actors: 4 x 450 MB. `ingest` skips larger batches.
INGEST_BATCH_BYTES = 450_000_000
ROLLOUT_TIMEOUT = 120.0
SPILL_LINE = "Triggering object spilling"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a table: `updates` are timed, the seconds are those of the sleeps."""

    mode: str
    actors: int
    unroll_length: int
    envs_per_actor: int
    collect_seconds: float
    update_seconds: float
    updates: int

    @property
    def rollout_bytes(self) -> int:
        return rollout_bytes(self.unroll_length, self.envs_per_actor)

    @property
    def memory_needed(self) -> int:
        """Approximate bytes of all processes: each rollout is held by its actor, the object store and two buffers."""
        return OTHER_BYTES + self.actors * (ACTOR_BYTES + 4 * self.rollout_bytes)

    def config(self) -> Config:
        """The service's config with the sizes of this case."""
        sizes = {name: getattr(self, name) for name in ("unroll_length", "envs_per_actor")}
        more = {"num_actors": self.actors, "num_minibatches": 1, "actor_timeout": ROLLOUT_TIMEOUT}
        return resolve("lab", {**sizes, **more})


def sleeping_learner(stream: RolloutStream, update_seconds: float, stop: StopSignals) -> Iterator[dict[str, float]]:
    """The loop of `learner/training.py` with sleeps instead of updates; yields each one's figures, times in seconds."""
    policy = PolicyNetwork(stream.config.network)
    stream.publish(policy.weights(), 0)
    for policy_version in itertools.count():
        stop.check()
        started = time.perf_counter()
        staged = stream.next_batch(stop.check)
        waited = time.perf_counter()
        sources, staging = list(staged.sources.values()), staged.staging_seconds
        sleep_until(waited + update_seconds)
        trained = time.perf_counter()
        stream.publish(policy.weights(), policy_version + 1)
        ended = time.perf_counter()
        yield {
            "rollouts": len(sources),
            "policy_lag": policy_version - min(source.policy_version for source in sources),
            "whole": ended - started,
            "waiting": waited - started,
            "publishing": ended - trained,
            "staging": staging,
            "collecting": max(source.collect_seconds for source in sources),  # the slowest actor
            # The slowest rollout, from the request until it is staged, without collecting.
            "transfer": max(source.transfer_seconds for source in sources),
        }


def run_case(case: Case, fleet: SleepingFleet, stop: StopSignals) -> dict[str, Any]:
    """Measures one row with a new stream; the fleet must have the case's number of actors.

    Raises:
        RuntimeError: a rollout was lost or dropped, which invalidates the measurement.
    """
    fleet.arrange(case.unroll_length, case.envs_per_actor, case.collect_seconds)
    spills_before = spills_triggered()
    updates = WARM_UP_UPDATES + case.updates + WATCHED_UPDATES
    lag = LAGS[case.mode]
    stream = RolloutStream(case.config(), fleet, lag, 0, updates, CPU, RunCounters())
    try:
        learner = sleeping_learner(stream, case.update_seconds, stop)
        list(islice(learner, WARM_UP_UPDATES))
        psutil.cpu_percent()  # the next call covers the time since this one
        timed = list(islice(learner, case.updates))
        busy = psutil.cpu_percent()
        with watch_peaks(lambda: memory_in_use(fleet.pids), interval=0.05) as memory:
            watched = list(islice(learner, WATCHED_UPDATES))
        if unused := stream.counters.lost_rollouts + stream.counters.dropped_for_lag:
            raise RuntimeError(f"{unused} rollouts were lost or dropped")
    finally:
        stream.close()
    return {
        **dataclasses.asdict(case),
        **speed(case, timed),
        "cpu_busy_percent": busy,
        "max_policy_lag": max(figures["policy_lag"] for figures in timed + watched),
        "rollout_bytes": case.rollout_bytes,
        "peak_rollouts_in_flight": fleet.peak_in_flight,
        "peak_bytes_in_flight": fleet.peak_in_flight * case.rollout_bytes,
        "staging_buffer_bytes": (lag + 1) * case.actors * case.rollout_bytes,
        **memory,
        "spills_triggered": spills_triggered() - spills_before,
    }


def speed(case: Case, timed: list[dict[str, float]]) -> dict[str, Any]:
    """The speed over the timed updates; each `seconds_` figure is the mean per update."""
    total = {name: sum(figures[name] for figures in timed) for name in timed[0]}
    seconds, rollouts = total["whole"], total["rollouts"]
    rate = rollouts / seconds
    longer = max(case.collect_seconds, case.update_seconds)
    slept = longer if case.mode == "overlap" else case.collect_seconds + case.update_seconds
    means = ("waiting", "publishing", "staging", "collecting", "transfer")
    return {
        "rollouts": rollouts,
        "seconds": seconds,
        "rollouts_per_second": rate,
        "frames_per_second": rate * case.unroll_length * case.envs_per_actor,
        "gigabytes_per_second": rate * case.rollout_bytes / 1e9,
        "efficiency": rate / case.actors * longer if longer else None,
        "efficiency_of_mode": rate / case.actors * slept if slept else None,
        "learner_idle_percent": 100 * total["waiting"] / seconds,
        **{f"seconds_{name}": total[name] / len(timed) for name in means},
    }


def ingest_case(case: Case, fleet: SleepingFleet, stop: StopSignals) -> dict[str, Any]:
    """Measures one row without sleeps, and which step limits it."""
    fleet.arrange(case.unroll_length, case.envs_per_actor, case.collect_seconds)
    producing, staging = fleet.put_seconds(repeats=5), staging_seconds_alone(case)
    row = run_case(case, fleet, stop)
    # All actors copy at the same time, one rollout per update; the stream's thread stages one rollout at a time; the
    # learner's thread publishes. The three run in parallel, so their shares may add up to more than 1.
    update = row["seconds"] / case.updates
    parts = {"producers' copy": producing, "staging copy": row["seconds_staging"], "publish": row["seconds_publishing"]}
    shares = {name: seconds / update for name, seconds in parts.items()}
    shares["messages and waits"] = max(0.0, 1 - sum(shares.values()))
    return {
        **row,
        "producers_alone_gigabytes_per_second": case.actors * case.rollout_bytes / producing / 1e9,
        "staging_alone_gigabytes_per_second": case.rollout_bytes / staging / 1e9,
        "shares_of_an_update": shares,
        "bound_by": max(shares, key=lambda name: shares[name]),
    }


def touch_object_store(stop: StopSignals) -> None:
    """Fills the object store until all its pages have been written to: a page's first write is several times slower.

    Ray deletes objects that are no longer needed up to a second late, so without sleeps a store of any size is soon
    used completely; a service that runs for hours has passed that point.
    """
    size = ray.cluster_resources()["object_store_memory"]
    filler = np.ones(min(32 << 20, int(size) // 8), np.uint8)
    for _ in range(math.ceil(2 * size / filler.nbytes)):
        stop.check()
        ray.put(filler)


def staging_seconds_alone(case: Case) -> float:
    """Seconds to copy one rollout from this process's own memory into its columns."""
    staged = StagedBatch(case.config(), CPU)
    rollout = make_rollout(0, case.unroll_length, case.envs_per_actor)
    staged.stage(0, rollout)
    return median_seconds(lambda: staged.stage(0, rollout), repeats=3)


def memory_in_use(actor_pids: set[int]) -> dict[str, int]:
    """Bytes of memory of the learner, its actors and Ray (PSS), and of the object store."""
    learner = psutil.Process()

    def kind(process: psutil.Process) -> str:
        return f"pss_{'learner' if process == learner else 'actors' if process.pid in actor_pids else 'ray'}"

    sizes = memory_by_kind(learner, kind)
    total, free = ray.cluster_resources(), ray.available_resources()
    return {
        **sizes,
        "pss_all_together": sum(sizes.values()),
        "object_store_bytes_used": int(total["object_store_memory"] - free.get("object_store_memory", 0.0)),
        "shared_memory_bytes": shared_memory_bytes(),
    }


def raylet_files() -> list[Path]:
    """The embedded raylet's open files, as links in /proc."""
    raylet = next(member for member in process_tree(psutil.Process()) if member.name() == "raylet")
    return list(Path(f"/proc/{raylet.pid}/fd").iterdir())


def shared_memory_bytes() -> int:
    """Allocated bytes of the object store's file; it is unlinked, so only the raylet's descriptor leads to it."""
    files: dict[int, int] = {}
    for link in raylet_files():
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(str(SHARED_MEMORY)):
                status = link.stat()
                files[status.st_ino] = status.st_blocks * 512
    return sum(files.values())


def spills_triggered() -> int:
    """How often Ray's log reports spilling of objects to disk, which begins when the object store is 80 % full."""
    for link in raylet_files():
        with contextlib.suppress(OSError):
            if os.readlink(link).endswith("raylet.out"):
                return link.read_text(errors="replace").count(SPILL_LINE)
    return 0


def sweep_cases(arguments: argparse.Namespace) -> list[Case]:
    """Both modes for each number of actors, in ascending order; sync first, because it needs less memory."""
    sleeps = (arguments.collect_seconds, arguments.update_seconds)
    return [
        Case(mode, actors, arguments.unroll_length, arguments.envs_per_actor, *sleeps, arguments.updates)
        for actors in sorted(arguments.actors)
        for mode in LAGS
    ]


def ingest_cases(arguments: argparse.Namespace) -> list[Case]:
    """Cases without sleeps, each staging about the same number of bytes."""
    cases = []
    for actors in sorted(arguments.ingest_actors):
        for envs in sorted(arguments.ingest_envs):
            batch = actors * rollout_bytes(arguments.unroll_length, envs)
            updates = max(3, math.ceil(arguments.ingest_gigabytes * 1e9 / batch))
            if batch <= INGEST_BATCH_BYTES:
                cases.append(Case("overlap", actors, arguments.unroll_length, envs, 0.0, 0.0, updates))
    return cases


def measure(sweep: list[Case], ingest: list[Case], console: Console, stop: StopSignals) -> dict[str, list[Row]]:
    """All rows. Each part gets a new Ray, because the object store keeps every page that was ever used."""
    rows: dict[str, list[Row]] = {"sweep": [], "ingest": []}
    for part, cases, run in (("sweep", sweep, run_case), ("ingest", ingest, ingest_case)):
        if not cases:
            continue
        console.print(f"{part}: starting Ray")
        # The object store is as large as the service's would be for the largest case.
        largest = max((case.config() for case in cases), key=connection.object_store_bytes_needed)
        try:
            connection.connect(None, largest)
            stop.install()  # Ray replaced the signal handlers
            fleet = SleepingFleet()
            if part == "ingest":
                touch_object_store(stop)
            for case in cases:
                fleet.grow_to(case.actors, stop.check)
                row = run(case, fleet, stop)
                rows[part].append(row)
                size = f"{case.rollout_bytes / 1e6:.1f} MB per rollout"
                speed = f"{row['gigabytes_per_second']:.3f} GB/s"
                console.print(f"{part}: {case.actors} actors, {case.mode}, {size}: {speed}")
        finally:
            connection.disconnect()
    return rows


SWEEP_COLUMNS: dict[str, Column] = {
    "mode": "{mode!s}",
    "actors": "{actors}",
    "rollouts/s": "{rollouts_per_second:.2f}",
    "frames/s": "{frames_per_second:,.0f}",
    "GB/s": "{gigabytes_per_second:.3f}",
    "eff. %": lambda row: f"{100 * row['efficiency']:.1f}",
    "of mode %": lambda row: f"{100 * row['efficiency_of_mode']:.1f}",
    "idle %": "{learner_idle_percent:.1f}",
    "CPU %": "{cpu_busy_percent:.0f}",
    "staging s": "{seconds_staging:.3f}",
    "transfer s": "{seconds_transfer:.3f}",
    "in flight MB": lambda row: f"{row['peak_bytes_in_flight'] / 1e6:,.0f}",
    "shared MB": lambda row: f"{row['shared_memory_bytes'] / 1e6:,.0f}",
    "PSS MB": lambda row: f"{row['pss_all_together'] / 1e6:,.0f}",
    "spills": "{spills_triggered}",
}
INGEST_COLUMNS: dict[str, Column] = {
    "actors": "{actors}",
    "rollout MB": lambda row: f"{row['rollout_bytes'] / 1e6:.1f}",
    "GB/s": "{gigabytes_per_second:.2f}",
    "producers alone": "{producers_alone_gigabytes_per_second:.2f}",
    "staging alone": "{staging_alone_gigabytes_per_second:.2f}",
    "producers' copy": "{shares_of_an_update[producers' copy]:.1%}",
    "staging copy": "{shares_of_an_update[staging copy]:.1%}",
    "publish": "{shares_of_an_update[publish]:.1%}",
    "messages, waits": "{shares_of_an_update[messages and waits]:.1%}",
    "bound by": "{bound_by!s}",
    "CPU %": "{cpu_busy_percent:.0f}",
    "spills": "{spills_triggered}",
}


def counts(text: str) -> list[int]:
    """`1,2,4` as numbers, each at least 1; an empty text gives an empty list."""
    numbers = [int(part) for part in text.split(",") if part]
    if min(numbers, default=1) < 1:
        raise ValueError
    return numbers


def parse() -> argparse.Namespace:
    """Reads the command line; refuses cases that need too much memory."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--actors", type=counts, default="1,2,4,8,16,32,64", help="numbers of actors in the sweep")
    add("--collect-seconds", type=float, default=0.8, help="how long a collect sleeps")
    add("--update-seconds", type=float, default=1.0, help="how long an update sleeps")
    add("--updates", type=int, default=5, help="timed updates per row")
    add("--envs-per-actor", type=int, default=1, help="environments per actor in the sweep")
    add("--unroll-length", type=int, default=256, help="steps per rollout, 12,305 bytes per environment and step")
    add("--ingest-actors", type=counts, default="1,2,4", help="numbers of actors in ingest; '' skips it")
    add("--ingest-envs", type=counts, default="4,16,64", help="environments per actor in ingest")
    add("--ingest-gigabytes", type=float, default=2.0, help="gigabytes to stage per row of ingest")
    add("--memory-gigabytes", type=float, default=6.0, help="refuse to start if more memory would be needed")
    arguments = parser.parse_args()
    if arguments.updates < 1 or arguments.unroll_length < 1 or arguments.envs_per_actor < 1:
        parser.error("--updates, --unroll-length and --envs-per-actor must be at least 1")
    needed = max((case.memory_needed for case in sweep_cases(arguments) + ingest_cases(arguments)), default=0)
    if needed > arguments.memory_gigabytes * 1e9:
        parser.error(f"about {needed / 1e9:.1f} GB of memory are needed: lower --actors or raise --memory-gigabytes")
    if needed > (free := psutil.virtual_memory().available):
        parser.error(f"about {needed / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free")
    return arguments


def main() -> int:
    """Prints the JSON on stdout and the tables on stderr; returns the exit code."""
    arguments, console = parse(), make_console()
    prepare_process(num_threads=1, sees_gpu=False)  # as the service does
    try:
        # Ray prints remarks on stdout, which is reserved for the JSON, mainly that there are more processes than cores.
        with StopSignals() as stop, contextlib.redirect_stdout(io.StringIO()):
            rows = measure(sweep_cases(arguments), ingest_cases(arguments), console, stop)
    except StopRequested as request:
        console.print(f"stopped by {request}")
        return request.exit_code
    limit = max((row["gigabytes_per_second"] for row in rows["ingest"]), default=None)
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *sys.argv[1:]]),
        "machine": {**machine(), "ray": ray.__version__, "memory_bytes": psutil.virtual_memory().total},
        "settings": vars(arguments),
        **rows,
        "ingest_limit_gigabytes_per_second": limit,
    }
    for title, columns in (("sweep", SWEEP_COLUMNS), ("ingest", INGEST_COLUMNS)):
        if rows[title]:
            show_table(console, title, rows[title], columns)
    if limit:
        console.print(f"ingest limit of the learner's process: {limit:.2f} GB/s")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
