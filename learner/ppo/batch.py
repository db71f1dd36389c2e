"""One update's data as a flat batch of samples on the learner's device, with advantages."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.config import Config
from learner.ppo.gae import generalized_advantages
from learner.ppo.reward_transform import RewardTransform
from learner.rollouts.staging import StagedBatch


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """N = T x B samples on the learner's device. Observations stay uint8 until the network's first operation."""

    observations: Tensor  # uint8 [N, 64, 64, 3]
    actions: Tensor  # int64 [N]
    behavior_log_probs: Tensor  # float32 [N]
    values: Tensor  # float32 [N]
    advantages: Tensor  # float32 [N]
    target_values: Tensor  # float32 [N]

    def __len__(self) -> int:
        return len(self.actions)

    def columns(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def prepare(staged: StagedBatch, reward_transform: RewardTransform, config: Config) -> "TrainingBatch":
        """Turns a full staged batch into samples on the learner's device and computes advantages there."""
        raw_rewards, dones = staged.rewards.numpy(), staged.dones.numpy()
        rewards = torch.from_numpy(reward_transform(raw_rewards, dones, staged.rounds() or None))
        observations, actions, log_probs, values, device_dones, bootstrap_value = staged.device_tensors()
        rewards = rewards.to(values.device)
        advantages, target_values = generalized_advantages(
            rewards, device_dones, values, bootstrap_value, config.gamma, config.gae_lambda
        )
        if config.advantage_normalization == "batch":
            advantages = normalize(advantages)
        return TrainingBatch(
            observations=observations.flatten(0, 1),
            actions=actions.flatten().long(),
            behavior_log_probs=log_probs.flatten(),
            values=values.flatten(),
            advantages=advantages.flatten(),
            target_values=target_values.flatten(),
        )


def normalize(advantages: Tensor) -> Tensor:
    """Shifts and scales to mean 0 and standard deviation 1 (unbiased) over all elements."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
