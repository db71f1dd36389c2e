"""`python -m benchmarks.evaluator_cost`: what a busy evaluator costs the learner, and what notifying it costs.

`python -m learner` runs with one actor and one learner thread, so that a second core is free for the evaluator: without
the evaluator, with it, and beside a process that only counts, in turns. The evaluator never stops scoring: each update
writes a checkpoint, and each score takes longer than an update. All updates after the first are compared.
The counting process uses no memory bandwidth and none of the run's files: what an update loses beside it is the
machine's cost of a second busy core (shared cores, clock); the rest of what it loses beside the evaluator is the
evaluator's.

`notify` is timed in this process, with an evaluator that is scoring all the time.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.processes import end_on_sigterm, run_learner
from benchmarks.report import machine, make_console, make_parser, show_table
from common.config import flag
from common.messages import CheckpointNotice
from common.policy_network import PolicyNetwork
from common.resolution import resolve
from common.storage.checkpoints import save_checkpoint
from common.storage.run_directory import RunDirectory
from learner.cluster import connection
from learner.evaluator_handle import RemoteEvaluator

# 2,048 frames per update: about ten seconds of one core.
SIZES = {"num_actors": 1, "envs_per_actor": 16, "unroll_length": 128, "num_minibatches": 2, "learner_threads": 1}
EPISODES_PER_LEVEL = 50  # enough that no score ends while the updates are timed


def update_seconds(updates: int, evaluator: bool) -> list[float]:
    """`seconds_training` of each update of a run but the first."""
    frames = SIZES["envs_per_actor"] * SIZES["unroll_length"] * (updates + 1)
    sizes = [part for name, value in SIZES.items() for part in (flag(name), value)]
    scoring = ("--eval-episodes-per-level", EPISODES_PER_LEVEL, "--eval-timeout", 0.1)
    on_or_off = "--evaluator" if evaluator else "--no-evaluator"
    rows, _ = run_learner(*sizes, *scoring, "--total-frames", frames, "--checkpoint-interval", 1, on_or_off)
    return [row["seconds_training"] for row in rows[1:]]


@contextlib.contextmanager
def counting_process() -> Iterator[None]:
    """Keeps a second core busy without sharing anything but the machine with the learner."""
    process = subprocess.Popen([sys.executable, "-c", "n = 0\nwhile True: n += 1"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def notify_seconds(calls: int) -> list[float]:
    """Seconds of each `notify` call to an evaluator that is scoring."""
    config = resolve("lab", {**SIZES, "eval_episodes_per_level": EPISODES_PER_LEVEL})
    connection.connect(None, config)
    try:
        with tempfile.TemporaryDirectory() as directory:
            run = RunDirectory(Path(directory) / "run")
            run.create()
            run.write_config(config, {})
            policy = PolicyNetwork(config.network)
            path = save_checkpoint(run.checkpoints, config, 0, 0, policy.weights(), {})
            evaluator = RemoteEvaluator(run.path, config)
            seconds = []
            for version in range(calls):
                started = time.perf_counter()
                evaluator.notify(CheckpointNotice(str(path), version, version))
                seconds.append(time.perf_counter() - started)
                time.sleep(0.2)
            problem = evaluator.last_error
            evaluator.stop()
    finally:
        connection.disconnect()
    if problem:
        raise RuntimeError(problem)
    return seconds


def measure(updates: int, rounds: int) -> dict[str, Any]:
    """Measures updates without the evaluator, with it and beside a counting process, `rounds` times; then `notify`."""
    seconds: dict[str, list[float]] = {name: [] for name in ("without", "beside", "beside_counting_process")}
    for _ in range(rounds):
        seconds["without"] += update_seconds(updates, evaluator=False)
        seconds["beside"] += update_seconds(updates, evaluator=True)
        with counting_process():
            seconds["beside_counting_process"] += update_seconds(updates, evaluator=False)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    notify = notify_seconds(calls=100)
    return {
        "machine": machine(),
        **{f"update_seconds_{name}": values for name, values in seconds.items()},
        "ratio_of_medians": medians["beside"] / medians["without"],
        "ratio_of_medians_counting_process": medians["beside_counting_process"] / medians["without"],
        "notify_milliseconds": {
            "median": 1e3 * statistics.median(notify),
            "max": 1e3 * max(notify),
            "calls": len(notify),
        },
    }


def show(result: Mapping[str, Any]) -> None:
    """Prints the table for people on stderr."""

    def update(name: str, key: str) -> dict[str, str]:
        values = result[f"update_seconds_{key}"]
        range_text = f"{min(values):.2f} to {max(values):.2f}"
        return {"what": f"update {name}, s", "median": f"{statistics.median(values):.2f}", "range": range_text}

    notify = result["notify_milliseconds"]
    rows = [
        update("without evaluator", "without"),
        update("beside it", "beside"),
        update("beside a counting process", "beside_counting_process"),
        {"what": "ratio, evaluator", "median": f"{result['ratio_of_medians']:.3f}"},
        {"what": "ratio, counting process", "median": f"{result['ratio_of_medians_counting_process']:.3f}"},
        {
            "what": f"notify, ms ({notify['calls']} calls)",
            "median": f"{notify['median']:.2f}",
            "range": f"at most {notify['max']:.2f}",
        },
    ]
    columns = {"": "{what!s}", "median": "{median}", "range": "{range}"}
    show_table(make_console(), "one learner thread, one core free for the evaluator", rows, columns)


def main() -> None:
    """Prints the JSON on stdout and the table on stderr."""
    parser = make_parser(__doc__)
    parser.add_argument("--updates", type=int, default=6, help="timed updates per run")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the three runs")
    arguments = parser.parse_args()
    end_on_sigterm()
    result = measure(arguments.updates, arguments.rounds)
    show(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
