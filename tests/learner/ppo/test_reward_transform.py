"""Rewards for PPO: the sign, or the raw reward over the running standard deviation of the discounted return."""

import numpy as np
import pytest

from learner.ppo.reward_transform import RewardTransform
from learner.rollouts.staging import Round


class SlowVecNormalize:
    """baselines' VecNormalize with ob=False: every environment's return so far is a sample, the prior a 1e-4th one."""

    def __init__(self, num_envs, gamma):
        self.gamma, self.returns, self.samples = gamma, [0.0] * num_envs, []

    def __call__(self, rewards, dones):
        transformed = np.zeros(rewards.shape)
        for t in range(len(rewards)):
            for b, reward in enumerate(rewards[t].tolist()):
                self.returns[b] = self.returns[b] * self.gamma + reward
                self.samples.append(self.returns[b])
            deviation = np.sqrt(self.running_variance() + 1e-8)
            for b, reward in enumerate(rewards[t].tolist()):
                transformed[t, b] = min(max(reward / deviation, -10), 10)
                if dones[t, b]:
                    self.returns[b] = 0.0
        return transformed

    def running_variance(self):
        """Of all samples so far together with 1e-4 of a sample of mean 0 and variance 1."""
        samples = np.array(self.samples)
        weight = len(samples) + 1e-4
        mean = samples.sum() / weight
        return (((samples - mean) ** 2).sum() + 1e-4 * (1 + mean**2)) / weight


def random_steps(T, B, seed):
    rng = np.random.default_rng(seed)
    rewards = (rng.normal(size=(T, B)) * 3 + 1).astype(np.float32)
    return rewards, rng.random((T, B)) < 0.1


def test_sign_keeps_only_the_direction():
    rewards = np.float32([[10.0, -0.04, 0.0], [0.5, 4.0, -1.0]])
    transformed = RewardTransform("sign", 3, 0.99)(rewards, np.zeros((2, 3), bool))
    np.testing.assert_array_equal(transformed, [[1, -1, 0], [1, 1, -1]])
    assert transformed.dtype == np.float32


def test_raw_changes_nothing():
    rewards, dones = random_steps(5, 3, seed=0)
    np.testing.assert_array_equal(RewardTransform("raw", 3, 0.99)(rewards, dones), rewards)


def test_running_return_equals_a_plain_vec_normalize():
    transform, slow = RewardTransform("running_return", 4, 0.9), SlowVecNormalize(4, 0.9)
    for call in range(3):
        rewards, dones = random_steps(20, 4, seed=call)
        transformed = transform(rewards, dones)
        assert transformed.dtype == np.float32
        np.testing.assert_allclose(transformed, slow(rewards, dones), rtol=1e-5, atol=1e-6)


def test_running_variance_equals_the_variance_of_all_samples():
    transform, slow = RewardTransform("running_return", 8, 0.99), SlowVecNormalize(8, 0.99)
    slow.running_variance = lambda: 1.0  # only its samples are needed
    for call in range(5):
        rewards, dones = random_steps(200, 8, seed=call)
        transform(rewards, dones)
        slow(rewards, dones)
    assert len(slow.samples) == 8000
    assert transform.variance == pytest.approx(np.var(slow.samples), rel=1e-6)
    assert transform.mean == pytest.approx(np.mean(slow.samples), rel=1e-6)


def test_running_return_equals_numbers_worked_by_hand():
    # gamma = 1/2, two environments. Step 0 pays 4 and 0: samples 4, 0 of variance 4, deviation 2 (the prior's
    # ten-thousandth of a sample moves it by less than 1e-3). So 4 becomes 2. Both episodes end.
    # Step 1 pays 0 and 4 into fresh returns: samples 4, 0, 0, 4, deviation 2 again. Without the reset the first
    # return would be 2, the samples 4, 0, 2, 4 and the deviation 1.66.
    rewards = np.float32([[4, 0], [0, 4]])
    transformed = RewardTransform("running_return", 2, 0.5)(rewards, np.ones((2, 2), bool))
    np.testing.assert_allclose(transformed, [[2, 0], [0, 2]], atol=1e-3)


def test_done_resets_only_the_return_of_its_environment():
    rewards = np.ones((3, 2), np.float32)
    transform = RewardTransform("running_return", 2, 1.0)
    transform(rewards, np.array([[False, False], [False, True], [False, False]]))
    np.testing.assert_array_equal(transform.discounted_return, [3, 1])


def test_transformed_rewards_are_clipped_to_ten():
    rewards = np.zeros((500, 4), np.float32)
    rewards[-1] = [1000, -1000, 0, 0]
    rewards[0, 0] = 0.01
    transformed = RewardTransform("running_return", 4, 0.0)(rewards, np.zeros((500, 4), bool))
    np.testing.assert_array_equal(transformed[-1], [10, -10, 0, 0])


def test_reward_transform_continues_exactly_from_its_state():
    transform = RewardTransform("running_return", 4, 0.99)
    transform(*random_steps(30, 4, seed=1))
    twin = RewardTransform("running_return", 4, 0.99)
    twin.load_state_dict(transform.state_dict())
    steps = random_steps(30, 4, seed=2)
    continued = transform(*steps)
    np.testing.assert_array_equal(twin(*steps), continued)
    assert twin.state_dict() == transform.state_dict()
    assert not np.array_equal(RewardTransform("running_return", 4, 0.99)(*steps), continued)


def test_state_dict_does_not_change_afterwards():
    transform = RewardTransform("running_return", 2, 0.99)
    transform(*random_steps(5, 2, seed=1))
    state = transform.state_dict()
    copied = {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
    transform(*random_steps(5, 2, seed=2))
    assert state == copied != transform.state_dict()


def test_environments_are_tracked_whatever_their_columns_in_the_batch():
    generator = np.random.default_rng(5)
    rewards = generator.normal(size=(6, 2)).astype(np.float32)
    dones = generator.random((6, 2)) < 0.2
    straight = RewardTransform("running_return", 2, 0.99)
    expected = [straight(rewards[:3], dones[:3]), straight(rewards[3:], dones[3:])]

    # One actor of two environments collected both rollouts of a batch: two rounds, in chronological order.
    folded = RewardTransform("running_return", 4, 0.99)
    none = np.array([], int)
    rounds = [Round(np.array([2, 3]), np.array([0, 1]), none), Round(np.array([0, 1]), np.array([0, 1]), none)]
    together = folded(
        np.concatenate([rewards[3:], rewards[:3]], axis=1), np.concatenate([dones[3:], dones[:3]], axis=1), rounds
    )
    np.testing.assert_array_equal(together[:, 2:], expected[0])
    np.testing.assert_array_equal(together[:, :2], expected[1])


def test_new_environments_begin_without_the_return_of_those_before_them():
    transform = RewardTransform("running_return", 4, 0.99)
    transform(np.ones((8, 4), np.float32), np.zeros((8, 4), bool))
    columns = np.arange(4)
    kept = transform.discounted_return[:2].copy()
    transform(np.zeros((1, 4), np.float32), np.zeros((1, 4), bool), [Round(columns, columns, np.array([2, 3]))])
    np.testing.assert_allclose(transform.discounted_return, [*kept * 0.99, 0.0, 0.0])
