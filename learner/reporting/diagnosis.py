"""Saves the batch and the learner's state of an update that was not finite, for a person to inspect."""

import json
from pathlib import Path

import safetensors.numpy

from common.config import Config
from common.storage.checkpoints import list_checkpoints, save_checkpoint
from learner.ppo.learner import PPOLearner
from learner.rollouts.staging import StagedBatch

# A batch of preset `lab` has 200 MB.
MAX_SAVED = 3


def save_diagnosis(
    directory: Path, config: Config, learner: PPOLearner, batch: StagedBatch, statistics: dict[str, float]
) -> str:
    """Writes DIRECTORY/VERSION: a checkpoint of `learner` before the update, batch.safetensors `[T, B, ...]` and
    statistics.json. Writes nothing if three updates are saved already. Returns a line that says where the data is.
    """
    if len(list_checkpoints(directory)) >= MAX_SAVED:
        return f"{directory} already holds {MAX_SAVED} such updates"
    arrays = {
        name: getattr(batch, name).numpy()
        for name in (
            *("observations", "actions", "rewards", "dones", "behavior_log_probs", "values"),
            *("bootstrap_value", "bootstrap_observation"),
        )
    }
    files = {
        "batch.safetensors": safetensors.numpy.save(arrays),
        "statistics.json": (json.dumps({name: str(value) for name, value in statistics.items()}) + "\n").encode(),
    }
    state = {"learner": learner.state_dict()}
    version, frames = learner.policy_version, learner.frames
    try:
        path = save_checkpoint(directory, config, version, frames, learner.weights(), state, files)
    except OSError as error:
        return f"its batch could not be saved: {error.strerror or error}"
    return f"its batch and state are in {path}"
