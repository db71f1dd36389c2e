"""`python -m benchmarks.throughput`: the service compared with its parts, and with the notebook.

Everything is measured in one run on one machine, with preset `lab` on CoinRun, in frames/s:

    a  environments stepped with random actions, on all cores
    b  policy inference alone, on all cores
    c  forward, backward and optimizer alone, samples/s, on all cores
    p  the service's own parts in one process without Ray: actors on threads, then an update; before and after d
    d  the service: `python -m learner`, several updates after the first
    e  the notebook's data path in one process; e' the same with an allocator that keeps its memory

    ideal    1 / (1/a + 1/b + epochs/c)    where actors and learner share the cores (sync)

Run nothing else on the machine: the figures of a busy machine are worthless.

`--mode overlap` measures something else: what `--repeatable yes` costs against `no` where actors are the bound. Actors
and learner sleep, so that this is true on any machine; everything between them is real.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from actors.rollout_actor import RolloutActor
from benchmarks.peers import measure_peers
from benchmarks.processes import end_on_sigterm, run_for_json, run_learner, summarize
from benchmarks.report import available_cores, machine, make_console, make_parser, median_seconds, rate, show_table
from benchmarks.scaling import sleeping_learner
from benchmarks.sleeping_actor import SleepingFleet
from common.config import Config
from common.games import NUM_ACTIONS
from common.messages import ActorIdentity, Rollout
from common.policy_network import PolicyNetwork
from common.precision import autocast
from common.process import prepare_process
from common.procgen_env import make_envs
from common.resolution import resolve
from learner.cluster import connection
from learner.ppo.learner import PPOLearner
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import StagedBatch
from learner.rollouts.stream import RolloutStream
from learner.startup import flags as command_line
from learner.stopping import StopSignals

CPU = torch.device("cpu")
# Makes glibc keep freed memory.
KEEPING_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "MALLOC_MMAP_MAX_": "0",
}


def env_stepping(config: Config, cores: int, seconds: float) -> float:
    """a: one batch of all environments, stepped by its C++ threads."""
    envs = make_envs(config.num_envs, config.game, 0, 20, rand_seed=1, num_threads=cores)
    generator = np.random.default_rng(0)

    def work() -> int:
        for _ in range(64):
            envs.act(generator.integers(0, NUM_ACTIONS, config.num_envs, dtype=np.int32))
            envs.observe()
        return 64 * config.num_envs

    return rate(work, seconds)


def inference(config: Config, cores: int, seconds: float) -> float:
    """b: one policy per core, all running in parallel; each policy's batch is its share of the environments."""

    def rate_of_one(policy: PolicyNetwork) -> float:
        frames = torch.randint(0, 256, (config.num_envs // cores, 64, 64, 3), dtype=torch.uint8)

        def work() -> int:
            with torch.inference_mode(), autocast(CPU, config.actor_precision):
                for _ in range(16):
                    policy(frames)
            return 16 * len(frames)

        return rate(work, seconds)

    with ThreadPoolExecutor(cores) as threads:
        return sum(threads.map(rate_of_one, [PolicyNetwork(config.network).eval() for _ in range(cores)]))


def random_batch(config: Config, device: torch.device) -> StagedBatch:
    """A full staged batch of random data."""
    staged = StagedBatch(config, device)
    staged.observations.random_(0, 256)
    staged.bootstrap_observation.random_(0, 256)
    staged.actions.random_(0, NUM_ACTIONS)
    staged.dones.bernoulli_(0.01)
    for tensor in (staged.rewards, staged.values, staged.bootstrap_value):
        tensor.normal_()
    staged.behavior_log_probs.fill_(-np.log(NUM_ACTIONS))
    return staged


def updating(learner: PPOLearner, seconds: float) -> float:
    """c: samples/s of whole updates, GAE and upload included; a sample is one frame, forward and backward."""
    staged = random_batch(learner.config, learner.device)

    def work() -> int:
        staged.start_upload()
        learner.update(staged, lambda: None)
        return learner.config.batch_size * learner.config.update_epochs

    result = rate(work, seconds)
    learner.close()
    return result


def parts_in_one_process(config: Config, cores: int) -> float:
    """p: the service's actors and learner without Ray; rollouts are collected on threads."""
    actors = [RolloutActor(config, ActorIdentity(actor_id)) for actor_id in range(config.num_actors)]
    learner = PPOLearner(dataclasses.replace(config, learner_threads=cores))
    staged = StagedBatch(config, CPU)

    def one_update() -> None:
        weights = learner.weights()

        def collect(actor: RolloutActor) -> Rollout:
            return actor.collect(weights, learner.policy_version)

        for slot, rollout in enumerate(threads.map(collect, actors)):
            staged.stage(slot, rollout)
        learner.update(staged, lambda: None)

    with ThreadPoolExecutor(config.num_actors) as threads:
        one_update()  # warms up
        seconds = median_seconds(one_update, 1)
    learner.close()
    return config.batch_size / seconds


def service(updates: int, *flags: str) -> dict[str, Any]:
    """d: `python -m learner` as a process, without the evaluator; frames/s over the updates after the first."""
    parsed = command_line.parse(list(flags))
    frames = resolve(parsed.preset or "lab", parsed.overrides).batch_size * (updates + 1)
    rows, peaks = run_learner(*flags, "--no-evaluator", "--total-frames", frames)
    names = ("seconds_waiting", "seconds_staging", "seconds_training", "seconds_publishing", "seconds_collecting")
    return {**summarize(rows, names), "peak_memory_mib": peaks}


def measure(updates: int, seconds: float) -> dict[str, Any]:
    """Measures everything, one part after the other."""
    cores = available_cores()
    config = resolve("lab", {"device": "cpu"})
    prepare_process(num_threads=1, sees_gpu=False)
    a = env_stepping(config, cores, seconds)
    b = inference(config, cores, seconds)
    c = updating(PPOLearner(dataclasses.replace(config, update_epochs=1, learner_threads=cores)), seconds)
    # Before and after d: d / p differs from 1 by a few percent, and a machine's speed drifts by more within minutes.
    p_before = parts_in_one_process(config, cores)
    d = service(updates)
    p_after = parts_in_one_process(config, cores)
    p = (p_before + p_after) / 2
    # One iteration with half as many steps, each time in a separate process.
    notebook = ("benchmarks.notebook_path", "--steps", "128")
    e, e_keeping = run_for_json(*notebook), run_for_json(*notebook, environment=KEEPING_ALLOCATOR)
    ideal = 1 / (1 / a + 1 / b + config.update_epochs / c)
    others = {"ideal": ideal, "p": p, "e": e["frames_per_second"], "e_keeping_memory": e_keeping["frames_per_second"]}
    return {
        "machine": machine(),
        "precision": config.precision,
        "a_env_stepping": a,
        "b_inference": b,
        "c_update_samples": c,
        "p_one_process": p,
        "p_before_and_after": [p_before, p_after],
        "d_service": d,
        "e_notebook": e,
        "e_notebook_keeping_memory": e_keeping,
        "ideal": ideal,
        **{f"d_over_{name}": d["frames_per_second"] / other for name, other in others.items()},
    }


# Seconds of a rollout of each actor, and of an update: the learner waits for the actors.
ACTOR_SPEEDS = {"equal": (0.2, 0.2, 0.2, 0.2), "one slower by half": (0.2, 0.2, 0.2, 0.3)}
UPDATE_SECONDS = 0.1
OVERLAP_ROUNDS, OVERLAP_WARM_UP = 3, 3


def overlapped(config: Config, fleet: SleepingFleet, updates: int, stop: StopSignals) -> tuple[float, float]:
    """Frames/s and the mean over the updates of the largest policy lag."""
    lag = config.max_policy_lag
    stream = RolloutStream(config, fleet, lag, 0, updates + OVERLAP_WARM_UP, CPU, RunCounters())
    try:
        learner = sleeping_learner(stream, UPDATE_SECONDS, stop)
        timed = list(itertools.islice(learner, updates + OVERLAP_WARM_UP))[OVERLAP_WARM_UP:]
    finally:
        stream.close()
    seconds = sum(figures["whole"] for figures in timed)
    return updates * config.batch_size / seconds, statistics.mean(figures["policy_lag"] for figures in timed)


def measure_overlap(updates: int) -> dict[str, Any]:
    """`--repeatable yes` and `no` in turn, for lags 1 and 2 and both kinds of speeds; medians of the rounds."""
    sizes = {"num_actors": 4, "envs_per_actor": 4, "unroll_length": 64, "num_minibatches": 1, "mode": "overlap"}
    configs = {
        (lag, repeatable): resolve("lab", {**sizes, "max_policy_lag": lag, "repeatable": repeatable})
        for lag in (1, 2)
        for repeatable in (True, False)
    }
    prepare_process(num_threads=1, sees_gpu=False)
    rows = []
    with StopSignals() as stop:
        connection.connect(None, configs[2, True])
        try:
            stop.install()  # Ray replaced the signal handlers
            fleet = SleepingFleet()
            fleet.grow_to(4, stop.check)
            for (speeds, seconds), lag in itertools.product(ACTOR_SPEEDS.items(), (1, 2)):
                fleet.arrange_each(64, 4, seconds)
                rounds = [
                    [overlapped(configs[lag, repeatable], fleet, updates, stop) for repeatable in (True, False)]
                    for _ in range(OVERLAP_ROUNDS)
                ]
                (fps, own_lag), (newest_fps, newest_lag) = (
                    map(statistics.median, zip(*results, strict=True)) for results in zip(*rounds, strict=True)
                )
                rows.append(
                    {"speeds": speeds, "max_policy_lag": lag, "repeatable": fps, "newest": newest_fps}
                    | {"ratio": fps / newest_fps, "lag_repeatable": own_lag, "lag_newest": newest_lag}
                )
        finally:
            connection.disconnect()
    return {"machine": machine(), "rows": rows}


def show_overlap(result: Mapping[str, Any]) -> None:
    """Prints the table for people on stderr."""
    columns: dict[str, Any] = {
        "actors": "{speeds!s}",
        "--max-policy-lag": "{max_policy_lag}",
        "repeatable, frames/s": "{repeatable:,.0f}",
        "newest, frames/s": "{newest:,.0f}",
        "ratio": "{ratio:.3f}",
        "lag, repeatable": "{lag_repeatable:.2f}",
        "lag, newest": "{lag_newest:.2f}",
    }
    show_table(make_console(), "overlap mode, actors are the bound", result["rows"], columns)


def show(result: Mapping[str, Any]) -> None:
    """Prints the table for people on stderr."""
    service_figures, plain, keeping = (result[k] for k in ("d_service", "e_notebook", "e_notebook_keeping_memory"))
    figures = {
        "a environments alone": result["a_env_stepping"],
        "b inference alone": result["b_inference"],
        "c update alone (samples/s)": result["c_update_samples"],
        "ideal of a, b, c": result["ideal"],
        "p parts in one process, no Ray": result["p_one_process"],
        "d service": service_figures["frames_per_second"],
        "e notebook": plain["frames_per_second"],
        "e' notebook, memory kept": keeping["frames_per_second"],
        **{peer: peer_figures["frames_per_second"] for peer, peer_figures in result.get("peers", {}).items()},
        **{f"service, peak MiB of {name}": value for name, value in service_figures["peak_memory_mib"].items()},
    }
    ratios = {name.replace("_", " "): result[name] for name in result if name.startswith("d_over")}
    seconds = {
        f"service, {name.replace('_', ' ')} per update": value
        for name, value in service_figures.items()
        if name.startswith("seconds_")
    }
    rows = [{"part": name, "value": f"{value:,.0f}"} for name, value in figures.items()]
    rows += [{"part": name, "value": f"{value:.2f}"} for name, value in (ratios | seconds).items()]
    show_table(make_console(), "preset lab", rows, {"part": "{part!s}", "frames/s": "{value}"})


def main() -> None:
    """Prints the JSON on stdout and the table on stderr."""
    parser = make_parser(__doc__)
    parser.add_argument("--updates", type=int, default=2, help="updates of the service to time, after the first")
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure a, b and c each, at least")
    parser.add_argument("--peers", action="store_true", help="also measure Stable-Baselines3 and RLlib if installed")
    parser.add_argument("--mode", choices=("sync", "overlap"), default="sync", help="overlap: see above")
    arguments = parser.parse_args()
    if arguments.mode == "overlap":
        result = measure_overlap(arguments.updates)
        show_overlap(result)
        print(json.dumps(result, indent=2))
        return
    end_on_sigterm()
    result = measure(arguments.updates, arguments.seconds)
    if arguments.peers:
        result["peers"] = measure_peers()
    show(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
