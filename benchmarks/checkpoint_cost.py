"""`python -m benchmarks.checkpoint_cost`: what being able to resume exactly costs, with preset `lab`'s sizes.

(a) an actor's saving of its environments after each rollout, (b) training's pause for a checkpoint, which is a copy in
memory, (c) what the writing thread does meanwhile, and (d) one real update, as what (a) and (b) are shares of.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from actors.rollout_actor import RolloutActor
from benchmarks.processes import machine
from common.config import resolve
from common.messages import ActorIdentity
from common.process import prepare_process
from common.storage.checkpoints import save_checkpoint
from learner.ppo.learner import PPOLearner
from learner.reporting.checkpoint_writer import on_host
from learner.rollouts.staging import StagedBatch
from learner.run_state import RunState


def main() -> None:
    """Prints JSON."""
    parser = argparse.ArgumentParser(prog="checkpoint_cost", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=20, help="of all but the rollout and the update (20)")
    options = parser.parse_args()
    prepare_process(num_threads=1, sees_gpu=False)
    config = resolve("lab", {"num_actors": 1})
    actor = RolloutActor(config, ActorIdentity(0))
    learner = PPOLearner(config, torch.device("cpu"), len(os.sched_getaffinity(0)))
    rollout = actor.collect(learner.weights(), 0)
    staged, state = StagedBatch(config, torch.device("cpu")), RunState()
    staged.stage(0, rollout)
    state.take_in(staged)
    started = time.perf_counter()
    learner.update(staged, lambda: None)
    update = time.perf_counter() - started

    def copy() -> dict:
        return {"learner": on_host(learner.state_dict()), "run": state.state_dict(), "weights": learner.weights()}

    seconds = {
        "collect": rollout.seconds,
        "save environments": _median(actor.state, options.repeats),
        "update": update,
        "pause": _median(copy, options.repeats),
    }
    with tempfile.TemporaryDirectory(prefix="checkpoint-cost-") as directory:
        snapshot = copy()
        weights = snapshot.pop("weights")
        versions = iter(range(options.repeats))
        path = Path(directory)
        seconds["write"] = _median(
            lambda: save_checkpoint(path, config, next(versions), 0, weights, snapshot), options.repeats
        )
        size = sum(file.stat().st_size for file in (path / "00000000").iterdir())
    result = {
        **machine(len(os.sched_getaffinity(0))),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "checkpoint_bytes": size,
        "save_environments_share_of_collect": round(seconds["save environments"] / seconds["collect"], 5),
        "pause_share_of_update": round(seconds["pause"] / update, 5),
    }
    print(json.dumps(result, indent=1))


def _median(action: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
