"""The learner's state and its PPO update."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.config import Config
from common.messages import Weights
from common.policy_network import PolicyNetwork
from common.precision import autocast
from common.seeding import derive_seed
from learner.ppo.adam import Adam
from learner.ppo.batch import ProximalOutputs, TrainingBatch, normalize
from learner.ppo.captured_step import CapturedStep
from learner.ppo.gradients import MicroBatchGradients
from learner.ppo.losses import (
    clipped_value_loss,
    entropy,
    explained_variance,
    lag_diagnostics,
    policy_objective,
    ratio_diagnostics,
)
from learner.ppo.reward_transform import RewardTransform
from learner.rollouts.staging import StagedBatch

STATISTICS = ("policy_objective", "value_loss", "entropy", "approx_kl", "clip_fraction", "ratio_error", "grad_norm")
# Of the decoupled objective, once per update.
LAG_STATISTICS = ("behavior_kl", "mean_importance_weight", "max_importance_weight")


class NotFinite(ArithmeticError):
    """Loss, gradient or weights became infinite or NaN; the update was undone. `statistics` are those of the update."""

    def __init__(self, statistics: dict[str, float]):
        super().__init__("loss or gradient was not finite")
        self.statistics = statistics


class PPOLearner:
    """Policy, optimizer, generators and counters: everything that an update changes and a checkpoint holds.

    Called by the main thread; `MicroBatchGradients` adds threads on a CPU.
    """

    def __init__(self, config: Config):
        self.config = config
        self.device = torch.device(config.device)
        torch.manual_seed(derive_seed(config.seed, "initial weights"))
        self.policy = PolicyNetwork(config.network).to(self.device)
        on_gpu = self.device.type == "cuda"
        self.uses_graph = on_gpu and config.cuda_graphs
        self.optimizer = Adam(
            self.policy.parameters(),
            lr=config.learning_rate,
            eps=config.adam_eps,
            fused=True,
            capturable=self.uses_graph,
        )
        self.permutations = torch.Generator().manual_seed(derive_seed(config.seed, "permutations"))
        self.reward_transform = RewardTransform(config.reward_transform, config.num_envs, config.reward_norm_gamma)
        self.policy_version = 0
        self.frames = 0
        self.gradients = MicroBatchGradients(self.policy, 1 if on_gpu else config.learner_threads, config.compile)
        self.captured_step: CapturedStep | None = None
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # shapes never change
        if self.uses_graph:
            self._prepare_optimizer_for_capture()

    def update(self, staged: StagedBatch, poll: Callable[[], None]) -> dict[str, float]:
        """GAE, then `update_epochs` passes over the batch in `num_minibatches` optimizer steps each.

        With the decoupled objective, a batch that an older policy collected first gets new log-probs and values.

        `poll` runs before each optimizer step; if it raises, the update is undone completely and the exception
        propagates. Returns the update's statistics, read from the device once.

        Raises:
            NotFinite: a statistic or a weight is infinite or NaN; the update is undone.
        """
        before = copy.deepcopy(self.state_dict())
        try:
            statistics = self._update(staged, poll)
            must_be_finite = (name for name in (*STATISTICS, *LAG_STATISTICS) if name in statistics)
            if not (all(math.isfinite(statistics[name]) for name in must_be_finite) and self._weights_are_finite()):
                raise NotFinite(statistics)
        except BaseException:
            self.load_state_dict(before)
            raise
        self.policy_version += 1
        self.frames += self.config.batch_size
        return statistics

    def skip_update(self) -> None:
        """Counts a batch that could not be trained on; the next version has the same weights."""
        self.policy_version += 1
        self.frames += self.config.batch_size

    def _weights_are_finite(self) -> bool:
        return bool(torch.stack([parameter.isfinite().all() for parameter in self.policy.parameters()]).all())

    def _update(self, staged: StagedBatch, poll: Callable[[], None]) -> dict[str, float]:
        config = self.config
        proximal = self._proximal_outputs(staged)
        batch = TrainingBatch.prepare(staged, self.reward_transform, config, proximal)
        learning_rate = self.learning_rate()
        self._set_learning_rate(learning_rate)
        step = self._step_on(batch)
        totals = torch.zeros(len(STATISTICS), device=self.device)
        first: Tensor | None = None
        # No operation from here to the end of the loop waits for a GPU.
        for permutation in self._permutations(len(batch)):
            for indices in permutation.split(config.minibatch_size):
                poll()
                totals += step(indices)
                first = totals.clone() if first is None else first
        assert first is not None
        steps = config.update_epochs * config.num_minibatches
        return {
            **dict(zip(STATISTICS, (totals / steps).tolist(), strict=True)),
            # Before the first step the ratio differs from 1 only by the difference between actors' and learner's
            # arithmetic.
            "ratio_error": float(first[STATISTICS.index("ratio_error")]),
            "explained_variance": float(explained_variance(batch.values, batch.target_values)),
            "learning_rate": learning_rate,
            **self._lag_statistics(staged, batch),
        }

    def _proximal_outputs(self, staged: StagedBatch) -> ProximalOutputs | None:
        """One forward pass over a batch that an older policy collected; None: the standard objective applies.

        It does if nothing in the batch is older than the learner's weights, which then are behavior and proximal
        policy. Recomputing what the actors have computed would only add rounding.
        """
        if self.config.objective == "standard" or staged.oldest_version() == self.policy_version:
            return None
        observations, actions, *_, bootstrap_observation = staged.device_tensors()
        flat_observations, flat_actions = observations.flatten(0, 1), actions.flatten().long()

        def outputs(policy: PolicyNetwork, frames: Tensor) -> tuple[Tensor, Tensor]:
            with autocast(self.device, self.config.precision, cache=False):
                logits, values = policy(frames)
            return torch.log_softmax(logits, dim=1), values

        frames = [
            *flat_observations.split(self.config.micro_batch),
            *bootstrap_observation.split(self.config.micro_batch),
        ]
        log_probs, values = self.gradients.forward(frames, outputs)
        size = len(flat_actions)
        return ProximalOutputs(
            log_probs=log_probs[:size].gather(1, flat_actions.unsqueeze(1)).view(actions.shape),
            values=values[:size].view(actions.shape),
            bootstrap_value=values[size:],
        )

    def _lag_statistics(self, staged: StagedBatch, batch: TrainingBatch) -> dict[str, float]:
        """`LAG_STATISTICS` with the decoupled objective, else nothing."""
        if self.config.objective == "standard":
            return {}
        behavior_log_probs = staged.device_tensors()[2].flatten()
        cap = self.config.importance_weight_cap
        statistics = lag_diagnostics(batch.proximal_log_probs, behavior_log_probs, cap)
        return dict(zip(LAG_STATISTICS, statistics.tolist(), strict=True))

    def _permutations(self, size: int) -> Tensor:
        """int64 `[update_epochs, size]` on the device, drawn on the host: the same on every device."""
        permutations = [torch.randperm(size, generator=self.permutations) for _ in range(self.config.update_epochs)]
        return torch.stack(permutations).to(self.device)

    def _step_on(self, batch: TrainingBatch) -> Callable[[Tensor], Tensor]:
        """A function that makes one optimizer step on a minibatch of `batch`, given its indices; returns statistics."""
        if not self.uses_graph:

            def step(indices: Tensor) -> Tensor:
                statistics = self._gradient(batch, indices)
                self.optimizer.step()
                return statistics

            return step
        if self.captured_step is None:
            self.captured_step = CapturedStep(self._gradient, self.optimizer.step, batch, self.config.minibatch_size)
        else:
            self.captured_step.load(batch)
        return self.captured_step

    def _gradient(self, batch: TrainingBatch, indices: Tensor) -> Tensor:
        """The clipped gradient of one minibatch, in the parameters' `.grad`. Returns `STATISTICS` `[7]`."""
        config = self.config
        advantages = batch.advantages[indices]
        if config.advantage_normalization == "minibatch":
            advantages = normalize(advantages)
        normalized_advantages = torch.zeros_like(batch.advantages).index_copy_(0, indices, advantages)

        def loss_and_statistics(policy: PolicyNetwork, part: Tensor) -> tuple[Tensor, Tensor]:
            share = len(part) / len(indices)
            # Each parameter is used once, so there is nothing to cache, and a graph must not cache anything.
            with autocast(self.device, config.precision, cache=False):
                logits, values = policy(batch.observations[part])
            log_probs = torch.log_softmax(logits, dim=1).gather(1, batch.actions[part].unsqueeze(1)).squeeze(1)
            proximal_log_probs = batch.proximal_log_probs[part]
            objective = policy_objective(
                log_probs,
                proximal_log_probs,
                batch.importance_weights[part],
                normalized_advantages[part],
                config.clip_coef,
            )
            value_loss = clipped_value_loss(values, batch.values[part], batch.target_values[part], config.clip_coef)
            mean_entropy = entropy(logits)
            loss = config.vf_coef * value_loss - objective - config.ent_coef * mean_entropy
            diagnostics = ratio_diagnostics(log_probs, proximal_log_probs, config.clip_coef)
            statistics = torch.cat([torch.stack([objective, value_loss, mean_entropy]).detach(), diagnostics])
            return share * loss, share * statistics

        statistics = self.gradients.accumulate(indices.split(config.micro_batch), loss_and_statistics)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
        return torch.cat([statistics, grad_norm.reshape(1)])

    def _set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            if self.uses_graph:  # a graph reads it from the device
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def _prepare_optimizer_for_capture(self) -> None:
        """Creates on the device everything that Adam reads, which must exist before a graph is captured."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(float(group["lr"]), device=self.device)
        if not self.optimizer.state:
            # A step along a zero gradient creates the moments and moves no weight; the step counter is reset.
            for parameter in self.policy.parameters():
                parameter.grad = torch.zeros_like(parameter)
            self.optimizer.step()
            for state in self.optimizer.state.values():
                state["step"].zero_()

    def learning_rate(self) -> float:
        """The learning rate of the next update: constant, or falling linearly to 0 after the run's last update."""
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
        """Everything but the settings, as tensors and plain values, so that it loads with weights_only."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": _portable(self.optimizer.state_dict()),
            "permutations": self.permutations.get_state(),
            "reward_transform": self.reward_transform.state_dict(),
            "policy_version": self.policy_version,
            "frames": self.frames,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores exactly the state in which `state_dict` was called."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.uses_graph:
            self.captured_step = None  # the optimizer's state is at other addresses now
            self._prepare_optimizer_for_capture()
        self.permutations.set_state(state["permutations"].cpu())
        self.reward_transform.load_state_dict(state["reward_transform"])
        self.policy_version = state["policy_version"]
        self.frames = state["frames"]


def _portable(optimizer_state: dict[str, Any]) -> dict[str, Any]:
    """The same on every device: turns what only a captured optimizer keeps as a tensor back into a number."""
    groups = [{**group, "lr": float(group["lr"]), "capturable": False} for group in optimizer_state["param_groups"]]
    return {**optimizer_state, "param_groups": groups}
