"""PPO's losses and diagnostics against loops written from the formulas and against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch

from learner.ppo.losses import (
    clipped_value_loss,
    entropy,
    explained_variance,
    policy_objective,
    ratio_diagnostics,
)


def normal(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def slow_policy_objective(new, old, advantages, eps):
    total = 0.0
    for n, o, a in zip(new.tolist(), old.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(n - o)
        total += min(ratio * a, min(max(ratio, 1 - eps), 1 + eps) * a)
    return total / len(new)


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


@pytest.mark.parametrize("eps", [0.1, 0.2, 0.5])
def test_policy_objective_equals_the_formula(eps):
    new, old, advantages = normal(1, 200, scale=0.4), normal(2, 200, scale=0.4), normal(3, 200)
    expected = slow_policy_objective(new, old, advantages, eps)
    assert policy_objective(new, old, advantages, eps).item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_policy_objective_equals_numbers_worked_by_hand():
    # ratios 2, 1/2, 2, 1/2, 1 with advantages 3, 3, -3, -3, 7 and eps = 1/4:
    #   min(6, 5/4 * 3) = 15/4;  min(3/2, 3/4 * 3) = 3/2;  min(-6, -15/4) = -6;  min(-3/2, -9/4) = -9/4;  7
    #   mean = (15/4 + 6/4 - 24/4 - 9/4 + 28/4) / 5 = (16/4) / 5 = 4/5
    new = torch.tensor([2.0, 0.5, 2.0, 0.5, 1.0]).log()
    advantages = torch.tensor([3.0, 3.0, -3.0, -3.0, 7.0])
    assert policy_objective(new, torch.zeros(5), advantages, 0.25).item() == pytest.approx(0.8, abs=1e-6)


def test_policy_gradient_is_zero_exactly_where_clipping_binds():
    # The clip binds where it makes the objective smaller: ratio up with A > 0, ratio down with A < 0.
    ratios = torch.tensor([2.0, 0.5, 2.0, 0.5, 1.1, 0.9])
    advantages = torch.tensor([3.0, 3.0, -3.0, -3.0, 3.0, -3.0])
    new = ratios.log().requires_grad_()
    policy_objective(new, torch.zeros(6), advantages, 0.25).backward()
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
    assert torch.autograd.gradcheck(lambda x: policy_objective(x, old, advantages, 0.2), new)
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
