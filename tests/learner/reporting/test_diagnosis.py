"""The batch and the state of an update that was not finite can be loaded and are unchanged."""

import numpy as np
import safetensors.numpy
import torch

from common.resolution import resolve
from common.storage.checkpoints import list_checkpoints, load_checkpoint
from learner.ppo.learner import PPOLearner
from learner.reporting.diagnosis import MAX_SAVED, save_diagnosis
from learner.rollouts.staging import StagedBatch

CPU = torch.device("cpu")


def test_batch_and_state_are_saved_for_at_most_three_updates(tmp_path):
    sizes = {"num_actors": 1, "envs_per_actor": 2, "unroll_length": 4, "num_minibatches": 2}
    config = resolve("lab", {**sizes, "device": "cpu"})
    learner, staged = PPOLearner(config), StagedBatch(config, CPU)
    staged.rewards[1, 1] = 7.0
    for version in range(MAX_SAVED + 1):
        learner.policy_version = version
        said = save_diagnosis(tmp_path / "diagnosis", config, learner, staged, {"value_loss": float("nan")})
        assert ("already holds" if version == MAX_SAVED else f"are in {tmp_path}") in said
    kept = list_checkpoints(tmp_path / "diagnosis")
    assert [int(path.name) for path in kept] == list(range(MAX_SAVED))
    checkpoint = load_checkpoint(kept[1])
    assert checkpoint.policy_version == 1
    again = PPOLearner(config)
    again.load_state_dict(checkpoint.learner_state["learner"])
    for name, array in again.weights().items():
        np.testing.assert_array_equal(array, learner.weights()[name])
    batch = safetensors.numpy.load_file(kept[1] / "batch.safetensors")
    assert batch.keys() == {
        *("observations", "actions", "rewards", "dones", "behavior_log_probs", "values"),
        *("bootstrap_value", "bootstrap_observation"),
    }
    for name in batch:
        np.testing.assert_array_equal(batch[name], getattr(staged, name).numpy())
    assert (kept[1] / "statistics.json").read_text() == '{"value_loss": "nan"}\n'
