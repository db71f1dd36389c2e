"""`python -m benchmarks.checkpoint_cost`: the cost of being able to resume exactly, with the sizes of preset `lab`.

Measured are (a) how long an actor takes to save its environments after a rollout, (b) how long training pauses for a
checkpoint, which is a copy in memory, (c) how long the writing thread works on it, and, to compare them with, the
rollout and one real update.
"""

import json
import tempfile
from pathlib import Path

import torch

from actors.rollout_actor import RolloutActor
from benchmarks.report import machine, make_parser, median_seconds
from common.messages import ActorIdentity
from common.process import prepare_process
from common.resolution import resolve
from common.storage.checkpoints import save_checkpoint
from learner.ppo.learner import PPOLearner
from learner.reporting.checkpoint_writer import on_host
from learner.rollouts.staging import StagedBatch
from learner.run_state import RunState


def main() -> None:
    """Prints JSON."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=20, help="repeats of everything but the rollout and the update")
    options = parser.parse_args()
    prepare_process(num_threads=1, sees_gpu=False)
    config = resolve("lab", {"num_actors": 1, "device": "cpu"})
    actor = RolloutActor(config, ActorIdentity(0))
    learner = PPOLearner(config)
    rollout = actor.collect(learner.weights(), 0)
    staged, state = StagedBatch(config, torch.device("cpu")), RunState.new(config)
    staged.stage(0, rollout)
    state.record(staged)
    update = median_seconds(lambda: learner.update(staged, lambda: None), repeats=1)

    def copy() -> dict:
        return {"learner": on_host(learner.state_dict()), "run": state.state_dict(), "weights": learner.weights()}

    seconds = {
        "collect": rollout.seconds,
        "save environments": median_seconds(actor.state, options.repeats),
        "update": update,
        "pause": median_seconds(copy, options.repeats),
    }
    with tempfile.TemporaryDirectory(prefix="checkpoint-cost-") as directory:
        snapshot = copy()
        weights = snapshot.pop("weights")
        versions = iter(range(options.repeats))
        path = Path(directory)
        seconds["write"] = median_seconds(
            lambda: save_checkpoint(path, config, next(versions), 0, weights, snapshot), options.repeats
        )
        size = sum(file.stat().st_size for file in (path / "00000000").iterdir())
    result = {
        **machine(),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "checkpoint_bytes": size,
        "save_environments_share_of_collect": round(seconds["save environments"] / seconds["collect"], 5),
        "pause_share_of_update": round(seconds["pause"] / update, 5),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
