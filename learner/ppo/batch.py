"""One update's data as a flat batch of samples on the learner's device, with advantages."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from common.config import Config
from learner.ppo.gae import generalized_advantages
from learner.ppo.losses import importance_weights
from learner.ppo.reward_transform import RewardTransform
from learner.rollouts.staging import StagedBatch


@dataclass(frozen=True, slots=True)
class ProximalOutputs:
    """What the proximal policy, the learner's at the start of an update, gives for a batch that an older one collected.

    On the learner's device, float32 `[T, B]`; `bootstrap_value` `[B]`.
    """

    log_probs: Tensor
    values: Tensor
    bootstrap_value: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """N = T x B samples on the learner's device. Observations stay uint8 until the network's first operation."""

    observations: Tensor  # uint8 [N, 64, 64, 3]
    actions: Tensor  # int64 [N]
    proximal_log_probs: Tensor  # float32 [N]
    importance_weights: Tensor  # float32 [N]
    values: Tensor  # float32 [N]
    advantages: Tensor  # float32 [N]
    target_values: Tensor  # float32 [N]

    def __len__(self) -> int:
        return len(self.actions)

    def columns(self) -> dict[str, Tensor]:
        """All tensors, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def prepare(
        staged: StagedBatch, reward_transform: RewardTransform, config: Config, proximal: ProximalOutputs | None = None
    ) -> "TrainingBatch":
        """Turns a full staged batch into samples on the learner's device and computes advantages there.

        Without `proximal` the policy that acted is the proximal one: the standard objective.
        """
        raw_rewards, dones = staged.rewards.numpy(), staged.dones.numpy()
        rewards = torch.from_numpy(reward_transform(raw_rewards, dones, staged.rounds() or None))
        observations, actions, behavior_log_probs, values, device_dones, bootstrap_value, _ = staged.device_tensors()
        proximal_log_probs = behavior_log_probs
        if proximal is not None:
            proximal_log_probs, values, bootstrap_value = proximal.log_probs, proximal.values, proximal.bootstrap_value
        rewards = rewards.to(values.device)
        advantages, target_values = generalized_advantages(
            rewards, device_dones, values, bootstrap_value, config.gamma, config.gae_lambda
        )
        if config.advantage_normalization == "batch":
            advantages = normalize(advantages)
        return TrainingBatch(
            observations=observations.flatten(0, 1),
            actions=actions.flatten().long(),
            proximal_log_probs=proximal_log_probs.flatten(),
            importance_weights=importance_weights(
                proximal_log_probs, behavior_log_probs, config.importance_weight_cap
            ).flatten(),
            values=values.flatten(),
            advantages=advantages.flatten(),
            target_values=target_values.flatten(),
        )


def normalize(advantages: Tensor) -> Tensor:
    """Shifts and scales to mean 0 and standard deviation 1 (unbiased) over all elements."""
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)
