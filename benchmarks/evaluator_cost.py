"""`python -m benchmarks.evaluator_cost`: what a busy evaluator costs the learner, and what telling it costs.

Runs of `python -m learner` with one actor and one learner thread, so that a second core is free for the evaluator,
with it, without it, and beside a process that only counts, in turn. The evaluator scores without a pause: every update
makes a checkpoint, and each score takes longer than an update. Compared are the seconds of the updates after the first.
The counting process touches no memory and knows nothing of the run: what an update loses beside it is what the machine
takes for a second busy core (shared cores, clock); what it loses beside the evaluator beyond that is the evaluator's.

`notify` is timed in this process, against an evaluator that is scoring all the while.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.processes import end_on_sigterm, machine, run_and_watch
from common.config import flag, resolve
from common.messages import CheckpointNotice
from common.policy_network import PolicyNetwork
from common.storage.checkpoints import save_checkpoint
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from learner.cluster import connection
from learner.evaluator_handle import RemoteEvaluator

# 2,048 frames an update: about ten seconds of one core.
SIZES = {"num_actors": 1, "envs_per_actor": 16, "unroll_length": 128, "num_minibatches": 2, "learner_threads": 1}
EPISODES_PER_LEVEL = 50  # a score never ends while the updates are timed


def update_seconds(updates: int, evaluator: bool) -> list[float]:
    """`seconds_training` of each update of a run but the first."""
    frames = SIZES["envs_per_actor"] * SIZES["unroll_length"] * (updates + 1)
    sizes = [part for name, value in SIZES.items() for part in (flag(name), str(value))]
    scoring = ["--eval-episodes-per-level", str(EPISODES_PER_LEVEL), "--eval-timeout", "0.1"]
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        where = ["--run-dir", str(run_dir), "--total-frames", str(frames), "--checkpoint-interval", "1"]
        on_or_off = "--evaluator" if evaluator else "--no-evaluator"
        run_and_watch([sys.executable, "-m", "learner", *sizes, *scoring, *where, on_or_off], {})
        rows = read_jsonl(run_dir / "metrics.jsonl")
    return [row["seconds_training"] for row in rows[1:]]


@contextlib.contextmanager
def counting_process() -> Iterator[None]:
    """A second busy core that shares nothing with the learner but the machine."""
    process = subprocess.Popen([sys.executable, "-c", "n = 0\nwhile True: n += 1"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def notify_seconds(calls: int) -> list[float]:
    """Seconds of each `notify` of an evaluator that is scoring meanwhile."""
    config = resolve("lab", {**SIZES, "eval_episodes_per_level": EPISODES_PER_LEVEL})
    connection.connect(None, config)
    try:
        with tempfile.TemporaryDirectory() as directory:
            run = RunDirectory(Path(directory) / "run")
            run.create()
            run.write_config(config, {})
            policy = PolicyNetwork(config.network)
            path = save_checkpoint(run.checkpoints, config, 0, 0, policy.weights(), {})
            evaluator = RemoteEvaluator.start(run.path, config)
            seconds = []
            for version in range(calls):
                started = time.perf_counter()
                evaluator.notify(CheckpointNotice(str(path), version, version))
                seconds.append(time.perf_counter() - started)
                time.sleep(0.2)
            problem = evaluator.problem
            evaluator.stop()
    finally:
        connection.disconnect()
    if problem:
        raise RuntimeError(problem)
    return seconds


def measure(updates: int, rounds: int) -> dict[str, Any]:
    """Without the evaluator, with it, and beside a counting process in turn, `rounds` times; then `notify`."""
    without: list[float] = []
    beside: list[float] = []
    beside_counting: list[float] = []
    for _ in range(rounds):
        without += update_seconds(updates, evaluator=False)
        beside += update_seconds(updates, evaluator=True)
        with counting_process():
            beside_counting += update_seconds(updates, evaluator=False)
    notify = notify_seconds(calls=100)
    return {
        "machine": machine(len(os.sched_getaffinity(0))),
        "update_seconds_without": without,
        "update_seconds_beside": beside,
        "update_seconds_beside_counting_process": beside_counting,
        "ratio_of_medians": statistics.median(beside) / statistics.median(without),
        "ratio_of_medians_counting_process": statistics.median(beside_counting) / statistics.median(without),
        "notify_milliseconds": {
            "median": 1e3 * statistics.median(notify),
            "max": 1e3 * max(notify),
            "calls": len(notify),
        },
    }


def show(result: Mapping[str, Any]) -> None:
    """The table a person reads, on stderr."""
    table = Table(title="one learner thread, one core free for the evaluator")
    table.add_column("")
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    for name, key in (
        ("without evaluator", "update_seconds_without"),
        ("beside it", "update_seconds_beside"),
        ("beside a counting process", "update_seconds_beside_counting_process"),
    ):
        values = result[key]
        table.add_row(
            f"update {name}, s", f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"
        )
    table.add_row("ratio, evaluator", f"{result['ratio_of_medians']:.3f}", "")
    table.add_row("ratio, counting process", f"{result['ratio_of_medians_counting_process']:.3f}", "")
    notify = result["notify_milliseconds"]
    table.add_row(f"notify, ms ({notify['calls']} calls)", f"{notify['median']:.2f}", f"at most {notify['max']:.2f}")
    Console(stderr=True).print(table)


def main() -> None:
    """Prints the JSON on stdout and the table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=6, help="timed updates of a run (6)")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of runs (2)")
    arguments = parser.parse_args()
    end_on_sigterm()
    result = measure(arguments.updates, arguments.rounds)
    show(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
