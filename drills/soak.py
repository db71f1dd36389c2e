"""`python -m drills.soak --hours 1`: a run that suffers a random fault every half minute, and how its memory develops.

Procgen, Ray and signals are real. `--seed` determines the faults: an actor killed, stopped, or out of memory, the
evaluator killed, TensorBoard's files deleted, the checkpoint directory missing for ten seconds. Prints a table with a
row for every twelfth of the time: frames, updates, memory and open files of the learner, memory of all its processes,
the number of faults, and the run's counters. Exit code 1 if the learner ended or made no progress.
"""

import collections
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import machine, make_parser
from drills.trainee import ACTOR, EVALUATOR, Trainee, limit_memory

FLAGS = [
    *("--num-actors", "2", "--envs-per-actor", "16", "--unroll-length", "64", "--update-epochs", "1"),
    *("--num-minibatches", "4", "--num-levels", "10", "--checkpoint-interval", "10", "--keep-checkpoints", "5"),
    *("--total-frames", "1000000000", "--actor-timeout", "20", "--eval-episodes-per-level", "1"),
]
SECONDS_BETWEEN_FAULTS = 30.0
SECONDS_WITHOUT_DISK = 10.0
ROWS = 12
MB = 1 << 20
PROCESS_FAULTS: dict[str, tuple[str, Callable[[psutil.Process], object]]] = {
    "actor SIGKILL": (ACTOR, psutil.Process.kill),
    "actor SIGSTOP": (ACTOR, psutil.Process.suspend),
    "actor without memory": (ACTOR, limit_memory),
    "evaluator SIGKILL": (EVALUATOR, psutil.Process.kill),
}
FAULTS = (*PROCESS_FAULTS, "TensorBoard deleted", "checkpoints taken away")
COLUMNS = {
    "minutes": "{minutes:7.1f}",
    "   frames": "{frames:9,}",
    " updates": "{updates:8,}",
    " learner MB": "{learner_mb:11,.0f}",
    " files": "{learner_files:6}",
    " all MB": "{all_mb:7,.0f}",
    " processes": "{processes:10}",
    " faults": "{faults:7}",
    " restarts": "{restarts:9}",
    " hung": "{hung:5}",
    " lost": "{lost:5}",
}


def main() -> int:
    """Runs the soak, prints the table and returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--hours", type=float, default=1.0, help="duration")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faults")
    parser.add_argument("--json", type=Path, help="file to which samples and faults are also written")
    options = parser.parse_args()
    faults: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory, Trainee(Path(directory), FLAGS) as trainee:
        samples = soak(trainee, options.hours * 3600, random.Random(options.seed), faults)
        exit_code = trainee.end(signal.SIGTERM)
        last_line = trainee.text().splitlines()[-1]
    print(f"\nlast line of output: {last_line} (exit code {exit_code})")
    print(f"faults: {', '.join(f'{name} {count}' for name, count in sorted(faults.items()))}")
    if options.json:
        contents = {"machine": machine(), "flags": FLAGS, "faults": dict(faults), "samples": samples}
        options.json.write_text(json.dumps(contents, indent=1) + "\n")
    return int(exit_code != 143 or samples[-1]["updates"] <= samples[0]["updates"])


def soak(
    trainee: Trainee, seconds: float, rng: random.Random, faults: collections.Counter[str]
) -> list[dict[str, Any]]:
    """Counts the faults in `faults`; prints each sample when it is taken and returns all of them."""
    print(" ".join(COLUMNS), flush=True)
    samples: list[dict[str, Any]] = []
    started = time.monotonic()
    next_fault, next_sample = started + SECONDS_BETWEEN_FAULTS, started
    while (now := time.monotonic()) < started + seconds or len(samples) <= ROWS:
        if now >= next_sample:
            samples.append(take_sample(trainee, (now - started) / 60, faults.total()))
            print(" ".join(column.format_map(samples[-1]) for column in COLUMNS.values()), flush=True)
            next_sample += seconds / ROWS
        if now >= next_fault and now < started + seconds:
            name = rng.choice(FAULTS)
            faults[name] += inflict(name, trainee, rng)
            next_fault += SECONDS_BETWEEN_FAULTS
        trainee.wait("the next second", lambda until=now + 1: time.monotonic() > until)  # type: ignore[misc]
    return samples


def take_sample(trainee: Trainee, minutes: float, faults: int) -> dict[str, Any]:
    """One row of the table. Memory in MB, without what processes share with others."""
    learner = trainee.learner
    others = []
    for process in trainee.processes():
        with contextlib.suppress(psutil.Error):
            others.append(process.memory_full_info().uss)
    uss, row = learner.memory_full_info().uss, trainee.last()
    return {
        "minutes": round(minutes, 1),
        "frames": row["frames"],
        "updates": row["policy_version"],
        "learner_mb": round(uss / MB),
        "learner_files": learner.num_fds(),
        "all_mb": round((uss + sum(others)) / MB),
        "processes": 1 + len(others),
        "faults": faults,
        "restarts": row["actor_restarts"],
        "hung": row["actors_hung"],
        "lost": row["lost_rollouts"],
    }


def inflict(fault: str, trainee: Trainee, rng: random.Random) -> bool:
    """Inflicts one fault, on a randomly chosen process if it is one of a process; False if there was none."""
    if fault == "TensorBoard deleted":
        trainee.delete_tensorboard()
    elif fault == "checkpoints taken away":
        with trainee.checkpoints_taken_away():
            time.sleep(SECONDS_WITHOUT_DISK)
    else:
        name, harm = PROCESS_FAULTS[fault]
        if not (found := trainee.processes(name)):
            return False
        harm(rng.choice(found))
    return True


if __name__ == "__main__":
    sys.exit(main())
