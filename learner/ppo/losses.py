"""PPO's two clipped objectives (Schulman et al. 2017) as means over a minibatch, and their diagnostics."""

import torch
from torch import Tensor
from torch.nn import functional as F


def policy_objective(
    new_log_probs: Tensor,
    proximal_log_probs: Tensor,
    importance_weights: Tensor,
    advantages: Tensor,
    clip_coef: float,
) -> Tensor:
    """Decoupled objective, to be maximized: mean of w min(ratio A, clip(ratio, 1 - eps, 1 + eps) A).

    All arguments float32 `[N]`; ratio = exp(new log-prob - proximal log-prob), w as in `importance_weights`.
    Hilton, Cobbe and Schulman 2022, "Batch size-invariance for policy optimization", section 3. If the proximal policy
    is the one that acted, w is 1 and this is equation 7 of Schulman et al. 2017.
    """
    ratio = torch.exp(new_log_probs - proximal_log_probs)
    clipped = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    return (importance_weights * torch.minimum(ratio * advantages, clipped * advantages)).mean()


def importance_weights(proximal_log_probs: Tensor, behavior_log_probs: Tensor, cap: float) -> Tensor:
    """w = min(pi_proximal / pi_behavior, cap) of float32 log-probs `[N]`: exactly 1 where they are equal; cap >= 1.

    The cap is `imp_samp_max` of OpenAI's code (openai/ppo-ewma), 100 there.
    """
    return torch.exp(proximal_log_probs - behavior_log_probs).clamp(max=cap)


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
def ratio_diagnostics(new_log_probs: Tensor, proximal_log_probs: Tensor, clip_coef: float) -> Tensor:
    """float32 `[3]`: approx_kl (Schulman's k3 estimator), clip_fraction, mean |ratio - 1|."""
    log_ratio = new_log_probs - proximal_log_probs
    ratio_minus_1 = torch.expm1(log_ratio)
    return torch.stack(
        [
            (ratio_minus_1 - log_ratio).mean(),
            (ratio_minus_1.abs() > clip_coef).float().mean(),
            ratio_minus_1.abs().mean(),
        ]
    )


@torch.no_grad()
def lag_diagnostics(proximal_log_probs: Tensor, behavior_log_probs: Tensor, cap: float) -> Tensor:
    """float32 `[3]`: behavior_kl, the KL divergence of the proximal from the behavior policy (k3), then the mean
    importance weight, capped as in the objective, and the largest one before the cap.
    """
    log_ratio = proximal_log_probs - behavior_log_probs
    weights = importance_weights(proximal_log_probs, behavior_log_probs, cap)
    return torch.stack([(torch.expm1(log_ratio) - log_ratio).mean(), weights.mean(), log_ratio.max().exp()])


def explained_variance(values: Tensor, target_values: Tensor) -> Tensor:
    """1 - Var(target - value) / Var(target): 1 is a perfect critic, 0 a constant one; NaN for constant targets."""
    variance = target_values.var()
    return torch.where(variance > 0, 1 - (target_values - values).var() / variance, torch.nan)
