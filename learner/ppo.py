"""The learner's state and one PPO update of it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.config import Config
from common.messages import Weights
from common.policy_network import PolicyNetwork
from common.process import autocast, choose_precision
from common.seeding import derive_seed
from learner.batch import StagedBatch, TrainingBatch, normalize
from learner.gradients import MicroBatchGradients
from learner.losses import (
    clipped_value_loss,
    entropy,
    explained_variance,
    policy_objective,
    ratio_diagnostics,
)
from learner.reward_transform import RewardTransform

# On a CPU the activations of this many frames stay in the caches.
CPU_MICRO_BATCH = 128
STATISTICS = ("policy_objective", "value_loss", "entropy", "approx_kl", "clip_fraction", "ratio_error")


class PPOLearner:
    """Policy, optimizer, generators and counters: everything an update changes and a checkpoint holds."""

    def __init__(self, config: Config, device: torch.device, num_threads: int):
        self.config = config
        self.device = device
        self.precision = choose_precision(config.precision, device)
        torch.manual_seed(derive_seed(config.seed, "initial weights"))
        self.policy = PolicyNetwork(config.network).to(device)
        self.optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=config.learning_rate, eps=config.adam_eps, fused=True
        )
        self.permutations = torch.Generator().manual_seed(derive_seed(config.seed, "permutations"))
        self.reward_transform = RewardTransform(config.reward_transform, config.num_envs, config.gamma)
        self.policy_version = 0
        self.frames = 0
        on_cpu = device.type == "cpu"
        self.gradients = MicroBatchGradients(self.policy, num_threads if on_cpu else 1)
        self.micro_batch = config.micro_batch or (CPU_MICRO_BATCH if on_cpu else config.minibatch_size)

    def update(self, staged: StagedBatch, stop_check: Callable[[], None]) -> dict[str, float]:
        """GAE, then `update_epochs` passes over the batch in `num_minibatches` optimizer steps each.

        `stop_check` runs before each optimizer step; when it raises, the update is taken back as if it had never
        begun and the exception goes on. Returns the update's statistics, read from the device once.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            statistics = self._update(staged, stop_check)
        except BaseException:
            self.load_state_dict(before)
            raise
        self.policy_version += 1
        self.frames += self.config.batch_size
        return statistics

    def _update(self, staged: StagedBatch, stop_check: Callable[[], None]) -> dict[str, float]:
        config = self.config
        batch = TrainingBatch.prepare(staged, self.reward_transform, config, self.device)
        learning_rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        totals = torch.zeros(len(STATISTICS), device=self.device)
        first_minibatch: Tensor | None = None
        grad_norms: list[Tensor] = []
        for _ in range(config.update_epochs):
            permutation = torch.randperm(len(batch), generator=self.permutations).to(self.device)
            for indices in permutation.split(config.minibatch_size):
                stop_check()
                statistics, grad_norm = self._optimizer_step(batch, indices)
                totals += statistics
                grad_norms.append(grad_norm)
                first_minibatch = statistics if first_minibatch is None else first_minibatch
        assert first_minibatch is not None
        named = dict(zip(STATISTICS, (totals / len(grad_norms)).tolist(), strict=True))
        return {
            **named,
            # Before any step the ratio is 1 but for the difference between actors' and learner's arithmetic.
            "ratio_error": float(first_minibatch[STATISTICS.index("ratio_error")]),
            "grad_norm": float(torch.stack(grad_norms).mean()),
            "explained_variance": float(explained_variance(batch.values, batch.target_values)),
            "learning_rate": learning_rate,
        }

    def _optimizer_step(self, batch: TrainingBatch, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One minibatch. Returns its mean statistics `[6]` and the gradient's norm before clipping."""
        config = self.config
        advantages = batch.advantages[indices]
        if config.advantage_normalization == "minibatch":
            advantages = normalize(advantages)
        normalized_advantages = torch.zeros_like(batch.advantages).index_copy_(0, indices, advantages)

        def loss_and_statistics(policy: PolicyNetwork, part: Tensor) -> tuple[Tensor, Tensor]:
            share = len(part) / len(indices)
            with autocast(self.device, self.precision):
                logits, values = policy(batch.observations[part])
            log_probs = torch.log_softmax(logits, dim=1).gather(1, batch.actions[part].unsqueeze(1)).squeeze(1)
            behavior_log_probs = batch.behavior_log_probs[part]
            objective = policy_objective(log_probs, behavior_log_probs, normalized_advantages[part], config.clip_coef)
            value_loss = clipped_value_loss(values, batch.values[part], batch.target_values[part], config.clip_coef)
            mean_entropy = entropy(logits)
            loss = config.vf_coef * value_loss - objective - config.ent_coef * mean_entropy
            diagnostics = ratio_diagnostics(log_probs, behavior_log_probs, config.clip_coef)
            statistics = torch.cat([torch.stack([objective, value_loss, mean_entropy]).detach(), diagnostics])
            return share * loss, share * statistics

        statistics = self.gradients.accumulate(indices.split(self.micro_batch), loss_and_statistics)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
        self.optimizer.step()
        return statistics, grad_norm

    def learning_rate(self) -> float:
        """Of the next update: constant, or falling linearly to 0 after the run's last update."""
        config = self.config
        if config.learning_rate_schedule == "constant":
            return config.learning_rate
        return config.learning_rate * max(0.0, 1 - self.policy_version / config.num_updates)

    def weights(self) -> Weights:
        """The policy's parameters as numpy arrays."""
        return self.policy.weights()

    def close(self) -> None:
        """Ends the learner's threads."""
        self.gradients.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy's settings; only tensors and plain values, so that it loads without pickle."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "permutations": self.permutations.get_state(),
            "reward_transform": self.reward_transform.state_dict(),
            "policy_version": self.policy_version,
            "frames": self.frames,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.permutations.set_state(state["permutations"].cpu())
        self.reward_transform.load_state_dict(state["reward_transform"])
        self.policy_version = state["policy_version"]
        self.frames = state["frames"]
