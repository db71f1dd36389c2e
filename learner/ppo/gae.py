"""Generalized advantage estimation (Schulman et al. 2016, equations 11 to 16)."""

import torch
from torch import Tensor


def generalized_advantages(
    rewards: Tensor, dones: Tensor, values: Tensor, bootstrap_value: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Advantages and value targets, from the last step backwards.

    With m_t = 1 - dones_t:  delta_t = r_t + gamma V_{t+1} m_t - V_t,  A_t = delta_t + gamma lambda m_t A_{t+1},
    target_t = A_t + V_t.  V_T is `bootstrap_value`.

    Args:
        rewards, values: float32 `[T, B]`.
        dones: bool `[T, B]`, the action at t ended the episode.
        bootstrap_value: float32 `[B]`, the value of the observation after the last action.

    Returns:
        (advantages, target_values), float32 `[T, B]` each.
    """
    assert rewards.shape == dones.shape == values.shape and bootstrap_value.shape == rewards.shape[1:]
    next_values = torch.cat([values[1:], bootstrap_value.unsqueeze(0)])
    discounts = gamma * (~dones).to(rewards.dtype)
    deltas = rewards + discounts * next_values - values
    advantages = torch.empty_like(rewards)
    following = torch.zeros_like(bootstrap_value)
    for t in range(len(rewards) - 1, -1, -1):
        following = torch.addcmul(deltas[t], discounts[t], following, value=gae_lambda)
        advantages[t] = following
    return advantages, advantages + values
