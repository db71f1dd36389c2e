"""Turns raw rewards into the rewards that PPO trains on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from learner.rollouts.staging import Round

CLIP = 10.0
EPSILON = 1e-8


class RewardTransform:
    """`sign`, `raw`, or `running_return`: divided by the running standard deviation of the discounted return and
    clipped to [-10, 10].

    `running_return` is baselines' VecNormalize without centering. The learner applies it to the raw rewards of all
    environments, so that the rewards of all actors have the same scale.
    """

    def __init__(self, kind: str, num_envs: int, gamma: float):
        self.kind = kind
        self.gamma = gamma
        self.discounted_return = np.zeros(num_envs, np.float64)
        # As in baselines: the prior weighs as much as a ten-thousandth of a sample, with variance 1.
        self.mean, self.variance, self.count = 0.0, 1.0, 1e-4

    def __call__(self, rewards: np.ndarray, dones: np.ndarray, rounds: Sequence[Round] | None = None) -> np.ndarray:
        """Raw float32 rewards and bool dones `[T, B]` to float32 rewards `[T, B]`.

        `rounds` say which environment each column belongs to, and which environments are new; None: column i is
        environment i, and none is new.
        """
        if self.kind == "sign":
            return np.sign(rewards)
        if self.kind == "raw":
            return rewards
        transformed = np.empty_like(rewards)
        columns_are_environments = Round(*(np.arange(rewards.shape[1]),) * 2, np.array([], np.int64))
        for columns, environments, new in rounds or [columns_are_environments]:
            self.discounted_return[new] = 0.0
            running = self.discounted_return[environments]
            for t in range(len(rewards)):
                running = running * self.gamma + rewards[t, columns]
                self._observe(running)
                transformed[t, columns] = np.clip(rewards[t, columns] / np.sqrt(self.variance + EPSILON), -CLIP, CLIP)
                running[dones[t, columns]] = 0.0
            self.discounted_return[environments] = running
        return transformed

    def _observe(self, sample: np.ndarray) -> None:
        """Merges the mean and variance of a sample into the running ones (Chan et al. 1979)."""
        n = len(sample)
        delta, total = sample.mean() - self.mean, self.count + n
        squares = self.variance * self.count + sample.var() * n + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.variance, self.count = squares / total, total

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {
            "discounted_return": self.discounted_return.tolist(),
            "mean": float(self.mean),
            "variance": float(self.variance),
            "count": float(self.count),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores exactly the state in which `state_dict` was called."""
        self.discounted_return = np.array(state["discounted_return"], np.float64)
        self.mean, self.variance, self.count = state["mean"], state["variance"], state["count"]
