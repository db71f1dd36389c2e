"""`python -m benchmarks.throughput`: how close the service comes to its parts, and how far beyond the notebook.

In one run on one machine, preset `lab` on CoinRun, in frames/s:

    a  environments stepped with random actions, nothing else, on all cores
    b  policy inference alone, on all cores
    c  forward, backward and optimizer alone, samples/s, on all cores
    p  the service's own parts in one process: actors on threads, then an update, no Ray; before d and after it
    d  the service: `python -m learner`, several updates after the first
    e  the notebook's data path in one process; e' the same with an allocator that keeps its memory

    ideal    1 / (1/a + 1/b + epochs/c)    where actors and learner share the cores (sync)

Nothing else should run on the machine: figures of a busy one are worthless.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from actors.rollout_actor import RolloutActor
from benchmarks.peers import measure_peers
from benchmarks.processes import end_on_sigterm, machine, run_and_watch
from common.config import Config, resolve
from common.games import NUM_ACTIONS
from common.messages import ActorIdentity, Rollout
from common.policy_network import PolicyNetwork
from common.precision import autocast, choose_precision
from common.process import prepare_process
from common.procgen_env import make_envs, observe
from common.storage.jsonl import read_jsonl
from learner.ppo.learner import PPOLearner
from learner.rollouts.staging import StagedBatch
from learner.startup import flags as command_line

CPU = torch.device("cpu")
# What CPU users set who know about it: glibc then keeps freed memory.
KEEPING_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_MMAP_MAX_": "0",
}


def rate(work: Callable[[], int], seconds: float) -> float:
    """Units of work a second; `work` does some and returns how much. The first call is not counted."""
    work()
    done, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        done += work()
    return done / elapsed


def on_all_cores(make_work: Callable[[int], Callable[[], int]], cores: int, seconds: float) -> float:
    """The sum of `rate` over as many threads as cores, all at once."""
    with ThreadPoolExecutor(cores) as threads:
        works = [make_work(core) for core in range(cores)]
        return sum(threads.map(lambda work: rate(work, seconds), works))


def env_stepping(config: Config, cores: int, seconds: float) -> float:
    """a: the C++ threads of one batch step all environments."""
    envs = make_envs(config.num_envs, config.env_name, config.distribution_mode, 0, 20, rand_seed=1, num_threads=cores)
    generator = np.random.default_rng(0)

    def work() -> int:
        for _ in range(64):
            envs.act(generator.integers(0, NUM_ACTIONS, config.num_envs, dtype=np.int32))
            observe(envs)
        return 64 * config.num_envs

    return rate(work, seconds)


def inference(config: Config, cores: int, seconds: float) -> float:
    """b: one policy a core, each with its share of the environments as the batch."""
    precision = choose_precision(config.precision, CPU)

    def make_work(core: int) -> Callable[[], int]:
        policy = PolicyNetwork(config.network).eval()
        frames = torch.randint(0, 256, (config.num_envs // cores, 64, 64, 3), dtype=torch.uint8)

        def work() -> int:
            with torch.inference_mode(), autocast(CPU, precision):
                for _ in range(16):
                    policy(frames)
            return 16 * len(frames)

        return work

    return on_all_cores(make_work, cores, seconds)


def random_batch(config: Config, device: torch.device) -> StagedBatch:
    """A full staged batch of random numbers."""
    staged = StagedBatch(config, device)
    staged.observations.random_(0, 256)
    staged.actions.random_(0, NUM_ACTIONS)
    staged.dones.bernoulli_(0.01)
    for tensor in (staged.rewards, staged.values, staged.bootstrap_value):
        tensor.normal_()
    staged.behavior_log_probs.fill_(-np.log(NUM_ACTIONS))
    return staged


def updating(config: Config, cores: int) -> float:
    """c: samples/s of one epoch over a batch, after one to warm up."""
    config = dataclasses.replace(config, update_epochs=1)
    learner = PPOLearner(config, CPU, cores)
    staged = random_batch(config, CPU)
    learner.update(staged, lambda: None)
    started = time.perf_counter()
    learner.update(staged, lambda: None)
    seconds = time.perf_counter() - started
    learner.close()
    return config.batch_size / seconds


def parts_in_one_process(config: Config, cores: int) -> float:
    """p: the same actors and learner without Ray; rollouts are collected on threads."""
    actors = [RolloutActor(config, ActorIdentity(actor_id)) for actor_id in range(config.num_actors)]
    learner = PPOLearner(config, CPU, cores)
    staged = StagedBatch(config, CPU)

    def one_update() -> None:
        weights = learner.weights()

        def collect(actor: RolloutActor) -> Rollout:
            return actor.collect(weights, learner.policy_version)

        for slot, rollout in enumerate(threads.map(collect, actors)):
            staged.stage(slot, rollout)
        learner.update(staged, lambda: None)

    with ThreadPoolExecutor(config.num_actors) as threads:
        one_update()
        started = time.perf_counter()
        one_update()
        seconds = time.perf_counter() - started
    learner.close()
    return config.batch_size / seconds


def service(updates: int, *flags: str) -> dict[str, Any]:
    """d: `python -m learner` from outside, without evaluator; frames/s over the updates after the first."""
    given = command_line.parse(list(flags))
    frames = resolve(given.preset or "lab", given.given).batch_size * (updates + 1)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        arguments = [*flags, "--no-evaluator", "--run-dir", str(run_dir), "--total-frames", str(frames)]
        peaks = run_and_watch([sys.executable, "-m", "learner", *arguments], {})[1]
        rows = read_jsonl(run_dir / "metrics.jsonl")
    first, last, counted = rows[0], rows[-1], rows[1:]
    names = ("seconds_waiting", "seconds_staging", "seconds_training", "seconds_publishing", "seconds_collecting")
    return {
        "frames_per_second": (last["frames"] - first["frames"]) / (last["time"] - first["time"]),
        **{name: float(np.mean([row[name] for row in counted])) for name in names if name in last},
        "peak_memory_mib": peaks,
    }


def notebook(environment: Mapping[str, str]) -> dict[str, Any]:
    """e: one iteration of the notebook's data path, half as long, in a process of its own."""
    out, _ = run_and_watch([sys.executable, "-m", "benchmarks.notebook_path", "--steps", "128"], environment)
    return json.loads(out)


def measure(updates: int, seconds: float) -> dict[str, Any]:
    """Everything, one after the other."""
    cores = len(os.sched_getaffinity(0))
    config = resolve("lab", {})
    prepare_process(num_threads=1, sees_gpu=False)
    a = env_stepping(config, cores, seconds)
    b = inference(config, cores, seconds)
    c = updating(config, cores)
    # Around d: d / p is a matter of a few percent, and a machine's speed drifts by more within minutes.
    p_before = parts_in_one_process(config, cores)
    d = service(updates)
    p_after = parts_in_one_process(config, cores)
    p = (p_before + p_after) / 2
    e = notebook({})
    e_keeping = notebook(KEEPING_ALLOCATOR)
    ideal = 1 / (1 / a + 1 / b + config.update_epochs / c)
    speed = d["frames_per_second"]
    return {
        "machine": machine(cores),
        "precision": choose_precision(config.precision, CPU),
        "a_env_stepping": a,
        "b_inference": b,
        "c_update_samples": c,
        "p_one_process": p,
        "p_before_and_after": [p_before, p_after],
        "d_service": d,
        "e_notebook": e,
        "e_notebook_keeping_memory": e_keeping,
        "ideal": ideal,
        "d_over_ideal": speed / ideal,
        "d_over_p": speed / p,
        "d_over_e": speed / e["frames_per_second"],
        "d_over_e_keeping_memory": speed / e_keeping["frames_per_second"],
    }


def show(result: Mapping[str, Any]) -> None:
    """The table a person reads, on stderr."""
    table = Table(title="preset lab, frames/s")
    table.add_column("part")
    table.add_column("frames/s", justify="right")
    service_figures, plain, keeping = (result[k] for k in ("d_service", "e_notebook", "e_notebook_keeping_memory"))
    for name, value in (
        ("a environments alone", result["a_env_stepping"]),
        ("b inference alone", result["b_inference"]),
        ("c update alone (samples/s)", result["c_update_samples"]),
        ("ideal of a, b, c", result["ideal"]),
        ("p parts in one process, no Ray", result["p_one_process"]),
        ("d service", service_figures["frames_per_second"]),
        ("e notebook", plain["frames_per_second"]),
        ("e' notebook, memory kept", keeping["frames_per_second"]),
    ):
        table.add_row(name, f"{value:,.0f}")
    for peer, figures in result.get("peers", {}).items():
        table.add_row(peer, f"{figures['frames_per_second']:,.0f}")
    for name in ("d_over_ideal", "d_over_p", "d_over_e", "d_over_e_keeping_memory"):
        table.add_row(name.replace("_", " "), f"{result[name]:.2f}")
    for name, value in service_figures.items():
        if name.startswith("seconds_"):
            table.add_row(f"service, {name.replace('_', ' ')} an update", f"{value:.2f}")
    for name, value in service_figures["peak_memory_mib"].items():
        table.add_row(f"service, peak MiB of {name}", f"{value:,.0f}")
    Console(stderr=True).print(table)


def main() -> None:
    """Prints the JSON on stdout and the table on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=2, help="updates of the service to time, after one (2)")
    parser.add_argument("--seconds", type=float, default=5, help="for each part alone (5)")
    parser.add_argument("--peers", action="store_true", help="measure Stable-Baselines3 and RLlib too, where installed")
    arguments = parser.parse_args()
    end_on_sigterm()
    result = measure(arguments.updates, arguments.seconds)
    if arguments.peers:
        result["peers"] = measure_peers()
    show(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
