"""`python -m benchmarks.evaluator_speed`: frames/s of scoring compared with an actor's collecting, on one core.

One process with one thread alternates between both with the same untrained policy: it plays the 200 training and 200
validation levels of preset `easy`, one episode each, as the evaluator does, and collects rollouts as an actor does. The
actor is measured in float32, the evaluator's precision, and in the precision it would choose on this machine.
"""

import json
import os
import statistics
import sys
import time

from actors.rollout_actor import RolloutActor
from benchmarks.report import machine, make_parser
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from common.process import prepare_process
from common.resolution import resolve
from evaluator.levels.level_sets import draw_level_sets
from evaluator.scores.play import play


def main() -> None:
    """Prints each round on stderr and JSON on stdout."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of scoring and collecting")
    parser.add_argument("--levels", type=int, default=200, help="number of training levels and of held-out levels")
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    prepare_process(num_threads=1, sees_gpu=False)
    print(json.dumps(measure(options.rounds, options.levels), indent=2))


def measure(rounds: int, num_levels: int) -> dict[str, object]:
    """Medians over the rounds, and their ratios."""
    overrides = {"num_levels": num_levels, "held_out_levels": num_levels, "num_actors": 1, "envs_per_actor": 64}
    config = resolve("easy", overrides)
    policy = PolicyNetwork(config.network).eval()
    actors = {
        name: RolloutActor(resolve("easy", {**overrides, "precision": name}), ActorIdentity(0))
        for name in dict.fromkeys(("float32", config.actor_precision))
    }
    slots = draw_level_sets(config)[0].slots(("train", "validation"))
    figures: dict[str, list[float]] = {"evaluator": [], **{f"actor {name}": [] for name in actors}}
    for _ in range(rounds):
        started = time.perf_counter()
        episodes = play(policy, config.game, slots, 1, seed=0)
        figures["evaluator"].append(sum(episode.length for episode in episodes) / (time.perf_counter() - started))
        for name, actor in actors.items():
            started = time.perf_counter()
            actor.collect(policy.weights(), 0)
            frames = config.envs_per_actor * config.unroll_length
            figures[f"actor {name}"].append(frames / (time.perf_counter() - started))
        print({name: round(values[-1]) for name, values in figures.items()}, file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in figures.items()}
    return {
        "machine": machine(),
        "levels": len(slots),
        "frames_per_second": medians,
        "ratios": {f"evaluator / {name}": medians["evaluator"] / medians[name] for name in medians if "actor" in name},
    }


if __name__ == "__main__":
    main()
