"""Generalized advantage estimation against the formulas, a hand-worked case and the boundary of an episode."""

import numpy as np
import pytest
import torch

from learner.ppo.gae import generalized_advantages


def slow_advantages(rewards, dones, values, bootstrap_value, gamma, gae_lambda):
    """The recursion, element by element, in float64."""
    T, B = rewards.shape
    V = np.concatenate([values, bootstrap_value[None]]).astype(np.float64)
    A = np.zeros((T + 1, B))
    for b in range(B):
        for t in reversed(range(T)):
            m = 1.0 - float(dones[t, b])
            delta = float(rewards[t, b]) + gamma * V[t + 1, b] * m - V[t, b]
            A[t, b] = delta + gamma * gae_lambda * m * A[t + 1, b]
    return A[:T], A[:T] + V[:T]


def random_batch(T, B, seed):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(T, B)).astype(np.float32)
    dones = rng.random((T, B)) < 0.15
    values = rng.normal(size=(T, B)).astype(np.float32)
    bootstrap_value = rng.normal(size=B).astype(np.float32)
    return rewards, dones, values, bootstrap_value


def advantages_of(rewards, dones, values, bootstrap_value, gamma, gae_lambda):
    tensors = [torch.from_numpy(np.array(array)) for array in (rewards, dones, values, bootstrap_value)]
    return [result.numpy() for result in generalized_advantages(*tensors, gamma, gae_lambda)]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.999, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize(("T", "B"), [(1, 1), (7, 3), (64, 5)])
def test_advantages_and_targets_equal_the_recursion(gamma, gae_lambda, T, B):
    batch = random_batch(T, B, seed=T)
    expected_advantages, expected_targets = slow_advantages(*batch, gamma, gae_lambda)
    advantages, targets = advantages_of(*batch, gamma, gae_lambda)
    assert advantages.dtype == targets.dtype == np.float32
    np.testing.assert_allclose(advantages, expected_advantages, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(targets, expected_targets, rtol=1e-4, atol=2e-5)


def test_advantages_equal_numbers_worked_by_hand():
    # gamma = 1/2, lambda = 1/2, so gamma lambda = 1/4. Column 0 ends an episode at t=1, column 1 at the last step.
    #
    # column 0:  r = 1, 2, 3   done = 0, 1, 0   V = 4, 8, 2   V_3 = 6
    #   delta_2 = 3 + 6/2 - 2 = 4         A_2 = 4
    #   delta_1 = 2 + 0   - 8 = -6        A_1 = -6 (done: nothing of A_2)
    #   delta_0 = 1 + 8/2 - 4 = 1         A_0 = 1 + (-6)/4 = -1/2
    #   targets: -1/2 + 4 = 7/2, -6 + 8 = 2, 4 + 2 = 6
    # column 1:  r = 0, 0, 10  done = 0, 0, 1   V = 1, 2, 4   V_3 = 100, masked by the done
    #   delta_2 = 10 + 0  - 4 = 6         A_2 = 6
    #   delta_1 = 0 + 4/2 - 2 = 0         A_1 = 0 + 6/4 = 3/2
    #   delta_0 = 0 + 2/2 - 1 = 0         A_0 = 0 + (3/2)/4 = 3/8
    #   targets: 3/8 + 1 = 11/8, 3/2 + 2 = 7/2, 6 + 4 = 10
    advantages, targets = advantages_of(
        rewards=np.float32([[1, 0], [2, 0], [3, 10]]),
        dones=np.array([[False, False], [True, False], [False, True]]),
        values=np.float32([[4, 1], [8, 2], [2, 4]]),
        bootstrap_value=np.float32([6, 100]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_array_equal(advantages, [[-0.5, 0.375], [-6, 1.5], [4, 6]])
    np.testing.assert_array_equal(targets, [[3.5, 1.375], [2, 3.5], [6, 10]])


def test_episode_boundary_stops_credit():
    rewards, dones, values, bootstrap_value = random_batch(10, 2, seed=3)
    dones[:] = False
    dones[4, 0] = True
    before, _ = advantages_of(rewards, dones, values, bootstrap_value, 0.99, 0.95)
    rewards[5:] += 100
    values[5:] -= 50
    bootstrap_value += 1000
    after, _ = advantages_of(rewards, dones, values, bootstrap_value, 0.99, 0.95)
    np.testing.assert_array_equal(after[:5, 0], before[:5, 0])
    assert (np.abs(after[:5, 1] - before[:5, 1]) > 1).all()  # the other environment's episode continues
    assert (np.abs(after[5:] - before[5:]) > 1).all()


def test_bootstrap_value_counts_unless_the_last_action_ended_the_episode():
    rewards = values = np.zeros((2, 2), np.float32)
    dones = np.array([[False, False], [False, True]])
    advantages, _ = advantages_of(rewards, dones, values, np.float32([8, 8]), 0.5, 1.0)
    np.testing.assert_array_equal(advantages, [[2, 0], [4, 0]])


def test_bootstrap_value_of_another_shape_is_refused():
    rewards, dones, values, bootstrap_value = map(torch.from_numpy, random_batch(3, 2, seed=0))
    with pytest.raises(AssertionError):
        generalized_advantages(rewards, dones, values, bootstrap_value[:1], 0.99, 0.95)
