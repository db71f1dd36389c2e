"""`python -m benchmarks.evaluator_speed`: frames/s of scoring against an actor's collecting, on one core each.

Plays preset `easy`'s 200 training and 200 validation levels, one episode each, as the evaluator does, and collects
rollouts as an actor does, in turns, in one process on one thread; both with the same untrained policy. The actor is
measured in float32, in which the evaluator plays, and in the precision it would use here.
"""

import argparse
import json
import os
import statistics
import sys
import time

from actors.rollout_actor import RolloutActor
from benchmarks.processes import machine
from common.config import Config, resolve
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from common.precision import choose_precision
from common.process import prepare_process
from evaluator.levels.level_sets import draw_level_sets
from evaluator.scores.play import play


def main() -> None:
    """Prints a table on stderr and JSON on stdout."""
    parser = argparse.ArgumentParser(prog="evaluator_speed", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="of scoring and collecting in turns (3)")
    parser.add_argument("--levels", type=int, default=200, help="training levels, and held-out levels (200)")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prepare_process(num_threads=1, sees_gpu=False)
    print(json.dumps(measure(options.rounds, options.levels), indent=2))


def measure(rounds: int, num_levels: int) -> dict[str, object]:
    """Medians over `rounds` and their ratios."""
    given = {"num_levels": num_levels, "held_out_levels": num_levels, "num_actors": 1, "envs_per_actor": 64}
    config = resolve("easy", given, available_cores=1)
    policy = PolicyNetwork(config.network).eval()
    import torch

    own = choose_precision("auto", torch.device("cpu"))
    actors = {
        name: RolloutActor(_with_precision(given, name), ActorIdentity(0)) for name in dict.fromkeys(("float32", own))
    }
    slots = draw_level_sets(config)[0].slots(("train", "validation"))
    figures: dict[str, list[float]] = {"evaluator": [], **{f"actor {name}": [] for name in actors}}
    for _ in range(rounds):
        started = time.perf_counter()
        episodes = play(policy, config.env_name, config.distribution_mode, slots, 1, seed=0)
        figures["evaluator"].append(sum(episode.length for episode in episodes) / (time.perf_counter() - started))
        for name, actor in actors.items():
            started = time.perf_counter()
            actor.collect(policy.weights(), 0)
            frames = config.envs_per_actor * config.unroll_length
            figures[f"actor {name}"].append(frames / (time.perf_counter() - started))
        print({name: round(values[-1]) for name, values in figures.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "machine": machine(1),
        "levels": len(slots),
        "frames_per_second": medians,
        "ratios": {f"evaluator / {name}": medians["evaluator"] / medians[name] for name in medians if "actor" in name},
    }


def _with_precision(given: dict[str, int], precision: str) -> Config:
    return resolve("easy", {**given, "precision": precision}, available_cores=1)


if __name__ == "__main__":
    main()
