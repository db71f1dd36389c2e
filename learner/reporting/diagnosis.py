"""What is kept of an update that went wrong: the batch and the state it met, to be loaded and looked at."""

import json
from pathlib import Path

import safetensors.numpy

from common.config import Config
from common.storage.checkpoints import list_checkpoints, save_checkpoint
from learner.ppo.learner import PPOLearner
from learner.rollouts.staging import StagedBatch

# A batch of preset `lab` has 200 MB.
MOST_KEPT = 3


def save_diagnosis(
    directory: Path, config: Config, learner: PPOLearner, staged: StagedBatch, statistics: dict[str, float]
) -> Path | None:
    """Writes DIRECTORY/VERSION: a checkpoint of `learner` before the update, batch.safetensors `[T, B, ...]` and
    statistics.json. None, and nothing is written, where three are there already.

    Raises:
        OSError: it could not be written.
    """
    if len(list_checkpoints(directory)) >= MOST_KEPT:
        return None
    arrays = {
        name: getattr(staged, name).numpy()
        for name in ("observations", "actions", "rewards", "dones", "behavior_log_probs", "values", "bootstrap_value")
    }
    more_files = {
        "batch.safetensors": safetensors.numpy.save(arrays),
        "statistics.json": (json.dumps({name: str(value) for name, value in statistics.items()}) + "\n").encode(),
    }
    return save_checkpoint(
        directory,
        config,
        learner.policy_version,
        learner.frames,
        learner.weights(),
        {"learner": learner.state_dict()},
        more_files,
    )
