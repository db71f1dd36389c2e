"""PPO's losses and diagnostics against loops written from the formulas and against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from learner.ppo.losses import (
    clipped_value_loss,
    entropy,
    explained_variance,
    importance_weights,
    lag_diagnostics,
    policy_objective,
    ratio_diagnostics,
)


def normal(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def slow_decoupled_objective(new, proximal, behavior, advantages, eps, cap):
    """Hilton et al. 2022, section 3, with numpy in float64: the mean of
    pi_prox / pi_behav min(pi / pi_prox A, clip(pi / pi_prox, 1 - eps, 1 + eps) A), its first factor capped.
    """
    pi, pi_prox, pi_behav = (np.exp(x.numpy().astype(np.float64)) for x in (new, proximal, behavior))
    a = advantages.numpy().astype(np.float64)
    total = 0.0
    for i in range(len(a)):
        ratio = pi[i] / pi_prox[i]
        total += min(pi_prox[i] / pi_behav[i], cap) * min(ratio * a[i], np.clip(ratio, 1 - eps, 1 + eps) * a[i])
    return total / len(a)


def standard_objective(new, behavior, advantages, eps):
    return policy_objective(new, behavior, torch.ones_like(behavior), advantages, eps)


def slow_value_loss(values, old_values, targets, eps):
    total = 0.0
    for v, v_old, target in zip(values.tolist(), old_values.tolist(), targets.tolist(), strict=True):
        clipped = v_old + min(max(v - v_old, -eps), eps)
        total += max((v - target) ** 2, (clipped - target) ** 2)
    return total / len(values)


def slow_entropy(logits):
    total = 0.0
    for row in logits.tolist():
        z = sum(math.exp(x) for x in row)
        total -= sum(math.exp(x) / z * math.log(math.exp(x) / z) for x in row)
    return total / len(logits)


@pytest.mark.parametrize(("eps", "cap"), [(0.1, 100.0), (0.2, 1.2), (0.5, 1.0)])
def test_policy_objective_equals_the_formula(eps, cap):
    new, proximal, behavior = (normal(seed, 200, scale=0.4) for seed in (1, 2, 16))
    advantages = normal(3, 200)
    expected = slow_decoupled_objective(new, proximal, behavior, advantages, eps, cap)
    weights = importance_weights(proximal, behavior, cap)
    objective = policy_objective(new, proximal, weights, advantages, eps)
    assert objective.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    standard = slow_decoupled_objective(new, behavior, behavior, advantages, eps, cap)
    assert standard_objective(new, behavior, advantages, eps).item() == pytest.approx(standard, rel=1e-5, abs=1e-6)


def test_decoupled_objective_equals_numbers_worked_by_hand():
    # pi / pi_prox = 2, 1/2, 2 with A = 3, 3, -3 and eps = 1/4: 15/4, 3/2, -6 as below; pi_prox / pi_behav = 2, 1/2, 8,
    # capped at 4: w = 2, 1/2, 4. Mean of 30/4, 3/4, -24: (33/4 - 96/4) / 3 = -21/4.
    behavior = torch.zeros(3)
    proximal = torch.tensor([2.0, 0.5, 8.0]).log()
    new = proximal + torch.tensor([2.0, 0.5, 2.0]).log()
    weights = importance_weights(proximal, behavior, cap=4.0)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.5, 4.0]))
    advantages = torch.tensor([3.0, 3.0, -3.0])
    assert policy_objective(new, proximal, weights, advantages, 0.25).item() == pytest.approx(-5.25, abs=1e-5)


def test_decoupled_objective_without_lag_is_the_standard_one_bit_for_bit():
    new, behavior, advantages = normal(1, 500, scale=0.4), normal(2, 500, scale=0.4), normal(3, 500)
    weights = importance_weights(behavior, behavior.clone(), cap=1.0)
    assert torch.equal(weights, torch.ones(500))
    ratio = (new - behavior).exp()
    schulman = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
    assert torch.equal(policy_objective(new, behavior, weights, advantages, 0.2), schulman)


def test_lag_diagnostics_equal_numbers_worked_by_hand():
    # pi_prox / pi_behav = 2, 1/2, 8: k3 = 1 - ln 2, -1/2 + ln 2, 7 - 3 ln 2, so the mean is (15/2 - 3 ln 2) / 3;
    # weights capped at 4: 2, 1/2, 4; the largest before the cap is 8.
    diagnostics = lag_diagnostics(torch.tensor([2.0, 0.5, 8.0]).log(), torch.zeros(3), 4.0).numpy()
    np.testing.assert_allclose(diagnostics, [2.5 - math.log(2), 6.5 / 3, 8.0], rtol=1e-6)


def test_policy_objective_equals_numbers_worked_by_hand():
    # ratios 2, 1/2, 2, 1/2, 1 with advantages 3, 3, -3, -3, 7 and eps = 1/4:
    #   min(6, 5/4 * 3) = 15/4;  min(3/2, 3/4 * 3) = 3/2;  min(-6, -15/4) = -6;  min(-3/2, -9/4) = -9/4;  7
    #   mean = (15/4 + 6/4 - 24/4 - 9/4 + 28/4) / 5 = (16/4) / 5 = 4/5
    new = torch.tensor([2.0, 0.5, 2.0, 0.5, 1.0]).log()
    advantages = torch.tensor([3.0, 3.0, -3.0, -3.0, 7.0])
    assert standard_objective(new, torch.zeros(5), advantages, 0.25).item() == pytest.approx(0.8, abs=1e-6)


def test_policy_gradient_is_zero_exactly_where_clipping_binds():
    # The clip binds where it makes the objective smaller: ratio up with A > 0, ratio down with A < 0.
    ratios = torch.tensor([2.0, 0.5, 2.0, 0.5, 1.1, 0.9])
    advantages = torch.tensor([3.0, 3.0, -3.0, -3.0, 3.0, -3.0])
    new = ratios.log().requires_grad_()
    standard_objective(new, torch.zeros(6), advantages, 0.25).backward()
    # Elsewhere d(ratio A)/d(log-prob) = ratio A, and the mean divides by 6.
    expected = ratios * advantages / 6 * torch.tensor([0.0, 1, 1, 0, 1, 1])
    torch.testing.assert_close(new.grad, expected)


def test_value_loss_equals_the_formula():
    values, old_values, targets = normal(4, 300, scale=0.5), normal(5, 300, scale=0.5), normal(6, 300)
    for eps in (0.1, 0.2, 1.0):
        expected = slow_value_loss(values, old_values, targets, eps)
        assert clipped_value_loss(values, old_values, targets, eps).item() == pytest.approx(expected, rel=1e-5)


def test_value_loss_equals_numbers_worked_by_hand_without_a_factor_of_half():
    # eps = 1, V_old = 0 everywhere.
    #   V = 3, target 4: clipped 1; max(1, 9) = 9        V = 3, target 0: clipped 1; max(9, 1) = 9
    #   V = -1/2, target 1/2: inside the range; 1        V = -2, target -2: clipped -1; max(0, 1) = 1
    values = torch.tensor([3.0, 3.0, -0.5, -2.0])
    targets = torch.tensor([4.0, 0.0, 0.5, -2.0])
    assert clipped_value_loss(values, torch.zeros(4), targets, 1.0).item() == (9 + 9 + 1 + 1) / 4


def test_value_gradient_is_zero_exactly_where_clipping_binds():
    # V_old = 0, eps = 1: the value has moved past the range TOWARD its target in 0 and 3, away from it in 1.
    values = torch.tensor([3.0, 3.0, -0.5, -2.0], requires_grad=True)
    targets = torch.tensor([4.0, 0.0, 0.5, -2.5])
    clipped_value_loss(values, torch.zeros(4), targets, 1.0).backward()
    # Elsewhere d(V - target)^2/dV = 2 (V - target), and the mean divides by 4.
    torch.testing.assert_close(values.grad, torch.tensor([0.0, 2 * 3 / 4, 2 * -1 / 4, 0.0]))


def test_entropy_equals_the_definition():
    logits = normal(7, 20, 15, scale=2.0)
    assert entropy(logits).item() == pytest.approx(slow_entropy(logits), rel=1e-5)


def test_entropy_of_known_distributions():
    assert entropy(torch.zeros(4, 15)).item() == pytest.approx(math.log(15), rel=1e-6)
    assert entropy(torch.tensor([[1000.0, 0, 0]])).item() == 0.0
    # Rows (1/2, 1/4, 1/4): 1/2 ln 2 + 2/4 ln 4 = 3/2 ln 2; uniform over 3: ln 3. Their mean.
    logits = torch.tensor([[0.5, 0.25, 0.25], [1.0, 1.0, 1.0]]).log()
    assert entropy(logits).item() == pytest.approx((1.5 * math.log(2) + math.log(3)) / 2, rel=1e-6)


def test_gradients_agree_with_finite_differences():
    new, old, advantages = (normal(seed, 12).double() for seed in (8, 9, 10))
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: standard_objective(x, old, advantages, 0.2), new)
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, old, advantages, 0.2), new)
    logits = normal(11, 3, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(entropy, logits)


def test_diagnostics_equal_their_definitions():
    new, old = normal(12, 100, scale=0.3), normal(13, 100, scale=0.3)
    log_ratios = [n - o for n, o in zip(new.tolist(), old.tolist(), strict=True)]
    ratios = [math.exp(x) for x in log_ratios]
    expected = [
        np.mean([(ratio - 1) - x for ratio, x in zip(ratios, log_ratios, strict=True)]),
        np.mean([ratio < 0.8 or ratio > 1.2 for ratio in ratios]),
        np.mean([abs(ratio - 1) for ratio in ratios]),
    ]
    np.testing.assert_allclose(ratio_diagnostics(new, old, 0.2).numpy(), expected, rtol=1e-4)


def test_diagnostics_equal_numbers_worked_by_hand():
    # Ratios 2, 1, 1/2, 1: k3 = (1 - ln 2), 0, (-1/2 + ln 2), 0, so the mean is 1/8; two of four leave [.8, 1.2];
    # mean |ratio - 1| = (1 + 1/2) / 4.
    new = torch.tensor([2.0, 1.0, 0.5, 1.0]).log()
    np.testing.assert_allclose(ratio_diagnostics(new, torch.zeros(4), 0.2).numpy(), [0.125, 0.5, 0.375], rtol=1e-6)


def test_diagnostics_carry_no_gradient():
    new = torch.zeros(3, requires_grad=True)
    assert not ratio_diagnostics(new, torch.zeros(3), 0.2).requires_grad


def test_explained_variance_of_known_critics():
    targets = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(targets, targets).item() == 1.0
    assert explained_variance(targets + 5, targets).item() == pytest.approx(1.0)  # a constant bias is ignored
    assert explained_variance(torch.full((4,), 2.5), targets).item() == pytest.approx(0.0, abs=1e-6)
    assert explained_variance(-targets, targets).item() == pytest.approx(-3.0)  # 1 - Var(2 target) / Var(target)
    assert explained_variance(targets / 2, targets).item() == pytest.approx(0.75)


def test_explained_variance_equals_numpys():
    values, targets = normal(14, 500), normal(15, 500, scale=3)
    expected = 1 - np.var((targets - values).numpy()) / np.var(targets.numpy())
    assert explained_variance(values, targets).item() == pytest.approx(expected, rel=1e-4)


def test_explained_variance_of_constant_targets_is_nan():
    assert math.isnan(explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0])).item())
