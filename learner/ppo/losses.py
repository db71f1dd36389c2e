"""PPO's two clipped objectives (Schulman et al. 2017) as means over a minibatch, and their diagnostics."""

import torch
from torch import Tensor
from torch.nn import functional as F


def policy_objective(new_log_probs: Tensor, behavior_log_probs: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """Equation 7, to be maximized: mean of min(ratio A, clip(ratio, 1 - eps, 1 + eps) A).

    All arguments float32 `[N]`; ratio = exp(new log-prob - behavior log-prob).
    """
    ratio = torch.exp(new_log_probs - behavior_log_probs)
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped * advantages).mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, target_values: Tensor, clip_coef: float) -> Tensor:
    """Mean of max((V - target)^2, (V_old + clip(V - V_old, -eps, eps) - target)^2), no factor 1/2.

    All arguments float32 `[N]`. As in baselines' ppo2 and the notebook.
    """
    clipped = old_values + (values - old_values).clamp(-clip_coef, clip_coef)
    return torch.maximum((values - target_values) ** 2, (clipped - target_values) ** 2).mean()


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy in nats of the softmax distributions of `[N, actions]` logits."""
    log_probs = F.log_softmax(logits, dim=1)
    return -(log_probs.exp() * log_probs).sum(dim=1).mean()


@torch.no_grad()
def ratio_diagnostics(new_log_probs: Tensor, behavior_log_probs: Tensor, clip_coef: float) -> Tensor:
    """float32 `[3]`: approx_kl (Schulman's k3 estimator), clip_fraction, mean |ratio - 1|."""
    log_ratio = new_log_probs - behavior_log_probs
    ratio_minus_1 = torch.expm1(log_ratio)
    return torch.stack(
        [
            (ratio_minus_1 - log_ratio).mean(),
            (ratio_minus_1.abs() > clip_coef).float().mean(),
            ratio_minus_1.abs().mean(),
        ]
    )


def explained_variance(values: Tensor, target_values: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 a constant one; NaN for constant targets."""
    variance = target_values.var()
    return torch.where(variance > 0, 1 - (target_values - values).var() / variance, torch.nan)
