"""`python -m benchmarks.scaling`: what lies between actors and learner, with more and more actors.

Stepping Procgen is replaced by a sleep and so is the update. All else is the service's: an embedded Ray, a process for
each actor, `Rollout` messages of 12,305 bytes a frame, `RolloutStream` with its staging buffers, real weights published
after each update. What is missing from what the sleeps alone would allow is therefore the service's own cost.

    sweep    weak scaling: each actor returns one rollout of the same size an update, so the batch grows with the actors
    ingest   no sleeps, few actors, larger rollouts too: the most GB/s that the learner's process can stage

    efficiency          rollouts/s over actors / max(collect, update seconds), in both modes
    efficiency_of_mode  the same over what sleeping alone allows in this mode: sync sleeps collect + update seconds
    shared memory       pages that Ray's object store has ever written to; it gives none back (before `ingest` it
                        writes to all of them)
    PSS                 memory of all processes, where what n of them share counts a n-th in each; the learner keeps
                        what it ever had, here as in the service

Sleeping leaves the cores to Ray, as a GPU learner does; with stepping and updates on the same cores less is left. The
update's sleep begins when the batch is there, an actor's when it is called. Actors are started as they are needed, so
that at each size just as many processes live. Memory is sampled in updates of its own after the timed ones, because
sampling takes CPU time. Nothing else should run on the machine: figures of a busy one are worthless.

64 actors with rollouts of 3.1 MB need about 6 GB of memory, most of it for 64 Python processes with Ray in them. For
rollouts of 12.6 MB, a batch of 0.8 GB: --envs-per-actor 4 --memory-gigabytes 9
"""

import argparse
import contextlib
import dataclasses
import io
import json
import math
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.processes import family, machine
from benchmarks.sleeping_actor import SleepingFleet, make_rollout, sleep_until
from common.config import Config, resolve
from common.messages import rollout_bytes
from common.policy_network import PolicyNetwork
from common.process import prepare_process
from learner.cluster import connection
from learner.cluster.machine_checks import SHARED_MEMORY
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import StagedBatch
from learner.rollouts.stream import RolloutStream
from learner.stopping import StopRequested, StopSignals

Row = Mapping[str, Any]

CPU = torch.device("cpu")
LAGS = {"sync": 0, "overlap": 1}
WARM_UP_UPDATES = 2  # the first ones are the first to write to the object store's pages
WATCHED_UPDATES = 2  # after the timed ones, while memory is sampled
ACTOR_BYTES = 64 << 20  # a worker process of Ray with the weights, before it holds a rollout
OTHER_BYTES = 700 << 20  # learner process, raylet, GCS
# Staged twice, in the object store and at the actors: 4 x 450 MB. Larger batches are left out of `ingest`.
INGEST_BATCH_BYTES = 450_000_000
ROLLOUT_TIMEOUT = 120.0
SPILL_LINE = "Triggering object spilling"


@dataclass(frozen=True, slots=True)
class Case:
    """One row: `updates` are timed. Seconds are those of the sleeps."""

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
    def total_updates(self) -> int:
        return WARM_UP_UPDATES + self.updates + WATCHED_UPDATES

    def config(self) -> Config:
        """A config of the service with this case's sizes."""
        return resolve(
            "lab",
            {
                "num_actors": self.actors,
                "envs_per_actor": self.envs_per_actor,
                "unroll_length": self.unroll_length,
                "num_minibatches": 1,
                "actor_timeout": ROLLOUT_TIMEOUT,
            },
        )


@dataclass(frozen=True, slots=True)
class UpdateFigures:
    """One update of the learner; seconds."""

    rollouts: int
    waiting: float
    publishing: float
    whole: float
    staging: float
    collecting: float  # the slowest actor's
    transfer: float  # the slowest rollout's: asked for until staged, without collecting
    policy_lag: int


class SleepingLearner:
    """The loop of `learner/training.py` with a sleep for the update."""

    def __init__(self, stream: RolloutStream, update_seconds: float, stop: StopSignals):
        self.stream = stream
        self.stop = stop
        self.update_seconds = update_seconds
        self.policy = PolicyNetwork(stream.config.network)
        self.policy_version = 0
        self.stream.publish(self.policy.weights(), self.policy_version)

    def run(self, updates: int) -> list[UpdateFigures]:
        """Trains `updates` times."""
        return [self._one_update() for _ in range(updates)]

    def _one_update(self) -> UpdateFigures:
        self.stop.check()
        started = time.perf_counter()
        staged = self.stream.next_batch(self.stop.check)
        waited = time.perf_counter()
        sources, staging = list(staged.sources.values()), staged.staging_seconds
        lag = self.policy_version - min(source.policy_version for source in sources)
        sleep_until(waited + self.update_seconds)
        trained = time.perf_counter()
        self.policy_version += 1
        self.stream.publish(self.policy.weights(), self.policy_version)
        ended = time.perf_counter()
        return UpdateFigures(
            rollouts=len(sources),
            waiting=waited - started,
            publishing=ended - trained,
            whole=ended - started,
            staging=staging,
            collecting=max(source.collect_seconds for source in sources),
            transfer=max(source.transfer_seconds for source in sources),
            policy_lag=lag,
        )


def run_case(case: Case, fleet: SleepingFleet, stop: StopSignals) -> dict[str, Any]:
    """One row, measured with a stream of its own; the fleet must have the case's actors.

    Raises:
        RuntimeError: a rollout was lost or dropped; then nothing that was measured counts.
    """
    fleet.arrange(case.unroll_length, case.envs_per_actor, case.collect_seconds)
    spills_before = spills_triggered()
    stream = RolloutStream(
        case.config(),
        fleet,
        max_policy_lag=LAGS[case.mode],
        first_batch=0,
        num_batches=case.total_updates,
        device=CPU,
        counters=RunCounters(),
    )
    try:
        learner = SleepingLearner(stream, case.update_seconds, stop)
        learner.run(WARM_UP_UPDATES)
        psutil.cpu_percent()  # the next call covers what lies between
        timed = learner.run(case.updates)
        busy = psutil.cpu_percent()
        with MemoryWatch(fleet.pids) as memory:
            watched = learner.run(WATCHED_UPDATES)
        unused = stream.counters.lost_rollouts + stream.counters.dropped_for_lag
        if unused:
            raise RuntimeError(f"{unused} rollouts were lost or dropped")
    finally:
        stream.close()
    return {
        **dataclasses.asdict(case),
        **speed(case, timed),
        "cpu_busy_percent": busy,
        "max_policy_lag": max(figures.policy_lag for figures in timed + watched),
        "rollout_bytes": case.rollout_bytes,
        "peak_rollouts_in_flight": fleet.peak_in_flight,
        "peak_bytes_in_flight": fleet.peak_in_flight * case.rollout_bytes,
        "staging_buffer_bytes": (LAGS[case.mode] + 1) * case.actors * case.rollout_bytes,
        **memory.peaks,
        "spills_triggered": spills_triggered() - spills_before,
    }


def speed(case: Case, timed: list[UpdateFigures]) -> dict[str, Any]:
    """What the timed updates say; `seconds_` are means of an update."""
    seconds = sum(figures.whole for figures in timed)
    rollouts = sum(figures.rollouts for figures in timed)
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
        "learner_idle_percent": 100 * sum(figures.waiting for figures in timed) / seconds,
        **{f"seconds_{name}": float(np.mean([getattr(figures, name) for figures in timed])) for name in means},
    }


def ingest_case(case: Case, fleet: SleepingFleet, stop: StopSignals) -> dict[str, Any]:
    """A row without sleeps, and which part of the way bounds it."""
    fleet.arrange(case.unroll_length, case.envs_per_actor, case.collect_seconds)
    producing, staging = fleet.put_seconds(repeats=5), staging_seconds_alone(case)
    row = run_case(case, fleet, stop)
    # All actors copy at once, one rollout an update; the stream's thread stages one rollout at a time; the learner's
    # thread publishes. The three run beside each other, so together they may be more than the whole.
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
    """Writes to the object store until it has used all its pages: the first write to one takes several times as long.

    Ray deletes what nobody needs up to a second later. So without sleeps a store of any size is soon used up, and a
    service that runs for hours is past that.
    """
    size = ray.cluster_resources()["object_store_memory"]
    filler = np.ones(min(32 << 20, int(size) // 8), np.uint8)
    for _ in range(math.ceil(2 * size / filler.nbytes)):
        stop.check()
        ray.put(filler)


def staging_seconds_alone(case: Case, repeats: int = 3) -> float:
    """Seconds to copy one rollout of this process's own memory into its columns."""
    staged = StagedBatch(case.config(), CPU)
    rollout = make_rollout(0, case.unroll_length, case.envs_per_actor)
    staged.stage(0, rollout)
    started = time.perf_counter()
    for _ in range(repeats):
        staged.stage(0, rollout)
    return (time.perf_counter() - started) / repeats


class MemoryWatch:
    """Samples memory on a thread while in its `with` block; `peaks` are bytes."""

    def __init__(self, actor_pids: set[int]):
        self.actor_pids = actor_pids
        self.peaks: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for name, value in self._sample().items():
                self.peaks[name] = max(self.peaks.get(name, 0), value)
            if self._ended.wait(0.05):
                return

    def _sample(self) -> dict[str, int]:
        learner = psutil.Process()
        sizes = {"pss_learner": 0, "pss_actors": 0, "pss_ray": 0}
        for member in family(learner):
            name = "learner" if member == learner else "actors" if member.pid in self.actor_pids else "ray"
            with contextlib.suppress(psutil.Error):
                sizes[f"pss_{name}"] += member.memory_full_info().pss
        store, left = ray.cluster_resources(), ray.available_resources()
        return {
            **sizes,
            "pss_all_together": sum(sizes.values()),
            "object_store_bytes_used": int(store["object_store_memory"] - left.get("object_store_memory", 0.0)),
            "shared_memory_bytes": shared_memory_bytes(),
        }


def raylet_files() -> list[Path]:
    """What the embedded raylet has open, each as a link in /proc."""
    raylet = next(member for member in family(psutil.Process()) if member.name() == "raylet")
    return list(Path(f"/proc/{raylet.pid}/fd").iterdir())


def shared_memory_bytes() -> int:
    """Pages of the object store's file, which has no name any more and is counted through the raylet's descriptor."""
    files: dict[int, int] = {}
    for link in raylet_files():
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(str(SHARED_MEMORY)):
                status = link.stat()
                files[status.st_ino] = status.st_blocks * 512
    return sum(files.values())


def spills_triggered() -> int:
    """How often Ray's log says that it moves objects to the disk; it begins at 80 % of the object store."""
    for link in raylet_files():
        with contextlib.suppress(OSError):
            if os.readlink(link).endswith("raylet.out"):
                return link.read_text(errors="replace").count(SPILL_LINE)
    return 0


@contextlib.contextmanager
def embedded_ray(cases: list[Case], stop: StopSignals) -> Iterator[SleepingFleet]:
    """An embedded Ray whose object store is as large as the service's would be for the largest of the cases."""
    try:
        connection.connect(max((case.config() for case in cases), key=connection.object_store_bytes_needed), "local")
        stop.install()  # Ray installed handlers of its own
        yield SleepingFleet()
    finally:
        connection.disconnect()


def sweep_cases(arguments: argparse.Namespace) -> list[Case]:
    """Both modes of each number of actors, fewest first. Sync goes first: it needs less of the memory that is kept."""
    return [
        Case(
            mode,
            actors,
            arguments.unroll_length,
            arguments.envs_per_actor,
            arguments.collect_seconds,
            arguments.update_seconds,
            arguments.updates,
        )
        for actors in sorted(arguments.actors)
        for mode in LAGS
    ]


def ingest_cases(arguments: argparse.Namespace) -> list[Case]:
    """No sleeps; each case stages about the same number of bytes."""
    cases = []
    for actors in sorted(arguments.ingest_actors):
        for envs in sorted(arguments.ingest_envs):
            batch = actors * rollout_bytes(arguments.unroll_length, envs)
            updates = max(3, math.ceil(arguments.ingest_gigabytes * 1e9 / batch))
            if batch <= INGEST_BATCH_BYTES:
                cases.append(Case("overlap", actors, arguments.unroll_length, envs, 0.0, 0.0, updates))
    return cases


def memory_needed(case: Case) -> int:
    """About how many bytes all processes take: a rollout lies at its actor, in the object store and in two buffers."""
    return OTHER_BYTES + case.actors * (ACTOR_BYTES + 4 * case.rollout_bytes)


def measure(
    sweep: list[Case], ingest: list[Case], console: Console, stop: StopSignals
) -> dict[str, list[dict[str, Any]]]:
    """All rows. A Ray of its own for each part: the object store keeps every page that was ever used."""
    rows: dict[str, list[dict[str, Any]]] = {"sweep": [], "ingest": []}
    for part, cases, run in (("sweep", sweep, run_case), ("ingest", ingest, ingest_case)):
        if not cases:
            continue
        console.print(f"{part}: starting Ray")
        with embedded_ray(cases, stop) as fleet:
            if part == "ingest":
                touch_object_store(stop)
            for case in cases:
                fleet.grow_to(case.actors, stop.check)
                row = run(case, fleet, stop)
                rows[part].append(row)
                console.print(f"{part}: {brief(row)}")
    return rows


def brief(row: Row) -> str:
    """A row in one line, for who waits for the table."""
    return (
        f"{row['actors']} actors, {row['mode']}, {row['rollout_bytes'] / 1e6:.1f} MB a rollout: "
        f"{row['gigabytes_per_second']:.3f} GB/s"
    )


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables a person reads."""
    show_rows(console, "sweep", result["sweep"], SWEEP_COLUMNS)
    show_rows(console, "ingest", result["ingest"], INGEST_COLUMNS)
    if limit := result["ingest_limit_gigabytes_per_second"]:
        console.print(f"ingest limit of the learner's process: {limit:.2f} GB/s")


SWEEP_COLUMNS: dict[str, Callable[[Row], str]] = {
    "mode": lambda row: row["mode"],
    "actors": lambda row: f"{row['actors']}",
    "rollouts/s": lambda row: f"{row['rollouts_per_second']:.2f}",
    "frames/s": lambda row: f"{row['frames_per_second']:,.0f}",
    "GB/s": lambda row: f"{row['gigabytes_per_second']:.3f}",
    "eff. %": lambda row: percent(row["efficiency"]),
    "of mode %": lambda row: percent(row["efficiency_of_mode"]),
    "idle %": lambda row: f"{row['learner_idle_percent']:.1f}",
    "CPU %": lambda row: f"{row['cpu_busy_percent']:.0f}",
    "staging s": lambda row: f"{row['seconds_staging']:.3f}",
    "transfer s": lambda row: f"{row['seconds_transfer']:.3f}",
    "in flight MB": lambda row: megabytes(row["peak_bytes_in_flight"]),
    "shared MB": lambda row: megabytes(row["shared_memory_bytes"]),
    "PSS MB": lambda row: megabytes(row["pss_all_together"]),
    "spills": lambda row: f"{row['spills_triggered']}",
}
INGEST_COLUMNS: dict[str, Callable[[Row], str]] = {
    "actors": lambda row: f"{row['actors']}",
    "rollout MB": lambda row: f"{row['rollout_bytes'] / 1e6:.1f}",
    "GB/s": lambda row: f"{row['gigabytes_per_second']:.2f}",
    "producers alone": lambda row: f"{row['producers_alone_gigabytes_per_second']:.2f}",
    "staging alone": lambda row: f"{row['staging_alone_gigabytes_per_second']:.2f}",
    "producers' copy %": lambda row: percent(row["shares_of_an_update"]["producers' copy"]),
    "staging copy %": lambda row: percent(row["shares_of_an_update"]["staging copy"]),
    "publish %": lambda row: percent(row["shares_of_an_update"]["publish"]),
    "messages, waits %": lambda row: percent(row["shares_of_an_update"]["messages and waits"]),
    "bound by": lambda row: row["bound_by"],
    "CPU %": lambda row: f"{row['cpu_busy_percent']:.0f}",
    "spills": lambda row: f"{row['spills_triggered']}",
}


def show_rows(console: Console, title: str, rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> None:
    """One table; none where there are no rows."""
    if not rows:
        return
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="left" if name in ("mode", "bound by") else "right")
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console.print(table)


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"


def counts(text: str) -> list[int]:
    """`1,2,4` as numbers, each at least 1; an empty text is none."""
    numbers = [int(part) for part in text.split(",") if part]
    if min(numbers, default=1) < 1:
        raise ValueError
    return numbers


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--actors", type=counts, default="1,2,4,8,16,32,64", help="numbers of actors in the sweep (%(default)s)")
    add("--collect-seconds", type=float, default=0.8, help="sleep of a collect (%(default)s)")
    add("--update-seconds", type=float, default=1.0, help="sleep of an update (%(default)s)")
    add("--updates", type=int, default=5, help="timed updates of each row (%(default)s)")
    add("--envs-per-actor", type=int, default=1, help="environments of an actor in the sweep (%(default)s)")
    add("--unroll-length", type=int, default=256, help="steps of a rollout, 12,305 bytes an environment (%(default)s)")
    add("--ingest-actors", type=counts, default="1,2,4", help="numbers of actors without sleeps; '' for none")
    add("--ingest-envs", type=counts, default="4,16,64", help="environments of an actor there (%(default)s)")
    add("--ingest-gigabytes", type=float, default=2.0, help="staged in each row there (%(default)s)")
    add("--memory-gigabytes", type=float, default=6.0, help="refuse to start if it would need more (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.updates < 1 or arguments.unroll_length < 1 or arguments.envs_per_actor < 1:
        parser.error("--updates, --unroll-length and --envs-per-actor must be at least 1")
    needed = max(map(memory_needed, sweep_cases(arguments) + ingest_cases(arguments)), default=0)
    if needed > arguments.memory_gigabytes * 1e9:
        parser.error(f"about {needed / 1e9:.1f} GB of memory are needed: fewer --actors, or more --memory-gigabytes")
    if needed > (free := psutil.virtual_memory().available):
        parser.error(f"about {needed / 1e9:.1f} GB of memory are needed, {free / 1e9:.1f} GB are free")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Prints the JSON on stdout and the tables on stderr; returns the exit code."""
    arguments = parse(argv)
    # Without a terminal rich assumes 80 columns, which cuts the table.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
    prepare_process(num_threads=1, sees_gpu=False)  # as the service does
    try:
        # Ray prints remarks to stdout, which is for the JSON; above all that there are more processes than cores.
        with StopSignals() as stop, contextlib.redirect_stdout(io.StringIO()):
            rows = measure(sweep_cases(arguments), ingest_cases(arguments), console, stop)
    except StopRequested as request:
        console.print(f"stopped by {request}")
        return request.exit_code
    cores = len(os.sched_getaffinity(0))
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.scaling", *(sys.argv[1:] if argv is None else argv)]),
        "machine": {**machine(cores), "ray": ray.__version__, "memory_bytes": psutil.virtual_memory().total},
        "settings": vars(arguments),
        **rows,
        "ingest_limit_gigabytes_per_second": max((row["gigabytes_per_second"] for row in rows["ingest"]), default=None),
    }
    show(result, console)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
