"""`python -m drills.soak --hours 1`: a run that is hurt every half minute, and what becomes of its memory.

Real Procgen, real Ray, real signals, chosen at random by `--seed`: an actor killed, stopped, or left without memory,
the evaluator killed, TensorBoard's files deleted, the checkpoints' directory taken away for ten seconds. A table on
stdout, a row for every twelfth of the time: frames, updates, memory and open files of the learner, of everything it
started, faults so far, the run's counters. Exit code 1 if the learner ended or stood still.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.processes import machine
from drills.trainee import (
    ACTOR,
    EVALUATOR,
    Trainee,
    delete_tensorboard,
    give_back_checkpoints,
    limit_memory,
    take_away_checkpoints,
)

FLAGS = [
    *("--num-actors", "2", "--envs-per-actor", "16", "--unroll-length", "64", "--update-epochs", "1"),
    *("--num-minibatches", "4", "--num-levels", "10", "--checkpoint-interval", "10", "--keep-checkpoints", "5"),
    *("--total-frames", "1000000000", "--actor-timeout", "20"),
]
SECONDS_BETWEEN_FAULTS = 30.0
SECONDS_WITHOUT_DISK = 10.0
ROWS = 12
MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the table. Memory in MB, unique to the processes."""

    minutes: float
    frames: int
    updates: int
    learner_mb: float
    learner_files: int
    all_mb: float
    processes: int
    faults: int
    restarts: int
    hung: int
    lost: int


def main() -> int:
    """Runs, prints and returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--hours", type=float, default=1.0, help="how long (1)")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (0)")
    parser.add_argument("--json", type=Path, help="write samples and faults there too")
    options = parser.parse_args()
    seconds = options.hours * 3600
    faults: collections.Counter[str] = collections.Counter()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        trainee = Trainee(Path(directory), FLAGS)
        trainee.start()
        try:
            trainee.wait("first update", lambda: bool(trainee.rows()))
            soak(trainee, seconds, random.Random(options.seed), faults, samples)
            exit_code = trainee.end(signal.SIGTERM)
            text = trainee.text()
        finally:
            trainee.kill_with_children()
    rows_missing = samples[-1].updates - samples[0].updates <= 0
    print(f"\nlast words: {text.splitlines()[-1]} (exit code {exit_code})")
    print(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(faults.items()))}")
    if options.json:
        contents = {
            "machine": machine(len(os.sched_getaffinity(0))),
            "flags": FLAGS,
            "faults": dict(faults),
            "samples": [_as_dict(s) for s in samples],
        }
        options.json.write_text(json.dumps(contents, indent=1) + "\n")
    return int(exit_code != 143 or rows_missing)


def soak(
    trainee: Trainee, seconds: float, rng: random.Random, faults: collections.Counter[str], samples: list[Sample]
) -> None:
    """Fills `faults` and `samples`, and prints each sample when it is taken."""
    print("minutes    frames  updates  learner MB  files  all MB  processes  faults  restarts  hung  lost", flush=True)
    started = time.monotonic()
    next_fault, next_sample = started + SECONDS_BETWEEN_FAULTS, started
    while (now := time.monotonic()) < started + seconds or len(samples) <= ROWS:
        if now >= next_sample:
            samples.append(sample(trainee, (now - started) / 60, sum(faults.values())))
            _print(samples[-1])
            next_sample += seconds / ROWS
        if now >= next_fault and now < started + seconds:
            name = rng.choice(list(FAULTS))
            faults[name] += FAULTS[name](trainee, rng)
            next_fault += SECONDS_BETWEEN_FAULTS
        trainee.wait("a moment", lambda until=now + 1: time.monotonic() > until)  # type: ignore[misc]


def sample(trainee: Trainee, minutes: float, faults: int) -> Sample:
    """What the system says now."""
    assert trainee.process is not None
    learner = psutil.Process(trainee.process.pid)
    others = []
    for process in trainee.processes():
        try:
            others.append(process.memory_full_info().uss)
        except psutil.Error:
            continue
    uss, row = learner.memory_full_info().uss, trainee.last()
    return Sample(
        minutes=round(minutes, 1),
        frames=row["frames"],
        updates=row["policy_version"],
        learner_mb=round(uss / MB),
        learner_files=learner.num_fds(),
        all_mb=round((uss + sum(others)) / MB),
        processes=1 + len(others),
        faults=faults,
        restarts=row["actor_restarts"],
        hung=row["actors_hung"],
        lost=row["lost_rollouts"],
    )


def _signal(name: str, signum: int) -> Callable[[Trainee, random.Random], int]:
    def hurt(trainee: Trainee, rng: random.Random) -> int:
        there = trainee.processes(name)
        if there:
            rng.choice(there).send_signal(signum)
        return len(there[:1])

    return hurt


def _without_memory(trainee: Trainee, rng: random.Random) -> int:
    there = trainee.processes(ACTOR)
    if there:
        limit_memory(rng.choice(there))
    return len(there[:1])


def _without_tensorboard(trainee: Trainee, rng: random.Random) -> int:
    delete_tensorboard(trainee.run)
    return 1


def _without_disk(trainee: Trainee, rng: random.Random) -> int:
    aside = take_away_checkpoints(trainee.run)
    time.sleep(SECONDS_WITHOUT_DISK)
    give_back_checkpoints(trainee.run, aside)
    return 1


# What each did, as a number: 0 where there was nothing to hurt.
FAULTS: dict[str, Callable[[Trainee, random.Random], int]] = {
    "actor SIGKILL": _signal(ACTOR, signal.SIGKILL),
    "actor SIGSTOP": _signal(ACTOR, signal.SIGSTOP),
    "actor without memory": _without_memory,
    "evaluator SIGKILL": _signal(EVALUATOR, signal.SIGKILL),
    "TensorBoard deleted": _without_tensorboard,
    "checkpoints taken away": _without_disk,
}


def _as_dict(one: Sample) -> dict[str, float]:
    return {name: getattr(one, name) for name in Sample.__slots__}


def _print(s: Sample) -> None:
    print(
        f"{s.minutes:7.1f} {s.frames:9,} {s.updates:8,} {s.learner_mb:11,.0f} {s.learner_files:6} {s.all_mb:7,.0f} "
        f"{s.processes:10} {s.faults:7} {s.restarts:9} {s.hung:5} {s.lost:5}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
