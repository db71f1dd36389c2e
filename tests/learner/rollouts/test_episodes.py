"""The mean return of training episodes has no bias toward short episodes, whatever happens to the actors."""

from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from learner.rollouts.episodes import RECENT_EPISODES, TrainingEpisodes
from learner.rollouts.staging import RolloutSource

LIMIT = 100  # of the game, in steps


def source(actor_id, steps, episodes, incarnation=0):
    """A rollout of an actor whose environments have taken `steps`; episodes are (environment, return, length)."""
    envs, returns, lengths = zip(*episodes, strict=True) if episodes else ((), (), ())
    return RolloutSource(
        actor_id=actor_id,
        policy_version=0,
        episode_envs=np.array(envs, np.int64),
        episode_returns=np.array(returns, np.float32),
        episode_lengths=np.array(lengths, np.int32),
        collect_seconds=0.0,
        transfer_seconds=0.0,
        frame_bytes=0,
        next_state=SimpleNamespace(steps=np.array(steps)),
        incarnation=incarnation,
    )


class TwoKindsOfLevels:
    """One actor: levels won with 10 after 7 steps and levels lost at the time limit, equally likely."""

    def __init__(self, num_envs, seed):
        self.rng, self.steps, self.num_envs = np.random.default_rng(seed), 0, num_envs
        self.left = np.zeros(num_envs, int)
        self.won = np.zeros(num_envs, bool)
        self._begin(np.arange(num_envs))

    def _begin(self, envs):
        self.won[envs] = self.rng.random(len(envs)) < 0.5
        self.left[envs] = np.where(self.won[envs], 7, LIMIT)

    def rollout(self, unroll_length, actor_id=0):
        episodes = []
        for _ in range(unroll_length):
            self.left -= 1
            ended = np.flatnonzero(self.left == 0)
            episodes += [(env, 10.0 * self.won[env], 7 if self.won[env] else LIMIT) for env in ended]
            self._begin(ended)
        self.steps += unroll_length
        return source(actor_id, self.steps, episodes)


def mean_return(episodes):
    return episodes.averages()["episode_return"]


def test_mean_is_unbiased_from_its_first_value_and_the_order_of_ending_is_not():
    num_envs, unroll_length = 5000, 12
    envs, episodes = TwoKindsOfLevels(num_envs, seed=1), TrainingEpisodes(LIMIT, num_envs, num_envs)
    former = deque(maxlen=num_envs)
    means, former_means = [], []
    for _ in range(3 * LIMIT // unroll_length):
        rollout = envs.rollout(unroll_length)
        episodes.record([rollout])
        former.extend(rollout.episode_returns.tolist())
        means.append(mean_return(episodes))
        former_means.append(np.mean(former))
    first = -(-LIMIT // unroll_length)  # the first rollout that ends at or after the limit
    assert means[: first - 1] == [None] * (first - 1)
    # The true mean is 5; one of 5000 environments' means has a standard error of .07.
    assert np.abs(np.array(means[first - 1 :]) - 5).max() < 4 * 0.07
    assert former_means[0] == 10 and former_means[first - 2] > 9.9  # what Maze showed in its first rows
    assert max(abs(mean - 5) for mean in former_means[first - 1 :]) > 1  # and it is wrong for longer than that


def test_each_environment_gives_its_last_episodes_as_soon_as_it_has_had_the_time():
    num_envs = RECENT_EPISODES // 2
    episodes = TrainingEpisodes(LIMIT, num_envs, num_envs)
    everywhere = [(env, 1.0, 10) for env in range(num_envs)]
    episodes.record([source(0, LIMIT - 1, everywhere)])
    assert episodes.averages() == {"episode_return": None, "episode_length": None}
    episodes.record([source(0, LIMIT, [(0, 51.0, 20), (0, 101.0, 30)])])
    assert episodes.averages() == {"episode_return": 1 + 100 / num_envs, "episode_length": 10 + 20 / num_envs}
    # After twice the time limit each has had time for two. The first environment's oldest is forgotten.
    episodes.record([source(0, 2 * LIMIT, [(env, 3.0, 10) for env in range(1, num_envs)])])
    expected = [51, 101] + [1, 3] * (num_envs - 1)
    assert mean_return(episodes) == pytest.approx(np.mean(expected))


def test_mean_waits_for_every_environment_of_the_batch():
    episodes = TrainingEpisodes(LIMIT, 200, 1)
    episodes.record([source(0, LIMIT, [(0, 4.0, 1)]), source(1, LIMIT // 2, [(0, 10.0, 1)])])
    assert mean_return(episodes) is None
    episodes.record([source(1, LIMIT, []), source(0, 2 * LIMIT, [])])
    assert mean_return(episodes) == 7


def test_replaced_and_new_actors_are_left_out_until_they_had_time():
    episodes = TrainingEpisodes(LIMIT, 200, 1)
    episodes.record([source(0, LIMIT, [(0, 4.0, 1)]), source(1, LIMIT, [(0, 10.0, 1)])])
    assert mean_return(episodes) == 7
    # Actor 1 was replaced, and actor 2 joined: what ends soon counts only later.
    new = [source(1, 50, [(0, 1.0, 2)], incarnation=1), source(2, 50, [(0, 2.0, 2)])]
    episodes.record([source(0, LIMIT + 50, []), *new])
    assert mean_return(episodes) == 4
    episodes.record([source(1, LIMIT, [], incarnation=1), source(2, LIMIT, [])])
    assert mean_return(episodes) == 1.5  # the batch has no rollout of actor 0
    both = [source(1, 2 * LIMIT, [], incarnation=1), source(2, 2 * LIMIT, [])]
    episodes.record([source(0, 2 * LIMIT, []), *both])
    assert mean_return(episodes) == pytest.approx((4 + 1 + 2) / 3)
    # Every actor was replaced.
    episodes.record([source(0, 50, [(0, 9.0, 2)], incarnation=1)])
    assert mean_return(episodes) is None


@pytest.mark.parametrize(("num_envs", "each"), [(30, 4), (50, 2), (64, 2), (200, 1)])
def test_environments_contribute_at_least_a_hundred_episodes_in_all(num_envs, each):
    episodes = TrainingEpisodes(LIMIT, num_envs, num_envs)
    ended = [(env, float(number), 1) for number in range(6) for env in range(num_envs)]
    episodes.record([source(0, 10 * LIMIT, ended)])
    assert mean_return(episodes) == np.mean(range(6 - each, 6)) and num_envs * each >= 100


def test_rollouts_of_one_actor_in_one_batch_follow_each_other():
    episodes = TrainingEpisodes(LIMIT, 200, 1)
    episodes.record([source(0, LIMIT // 2, [(0, 4.0, 1)]), source(0, LIMIT, [(0, 6.0, 1)])])
    assert mean_return(episodes) == 6


def test_continues_exactly_from_its_state():
    def run(rollouts, episodes):
        means = []
        for rollout in rollouts:
            episodes.record([rollout])
            means.append(episodes.averages())
        return means

    envs = TwoKindsOfLevels(30, seed=3)
    rollouts = [envs.rollout(16) for _ in range(20)]
    straight = run(rollouts, TrainingEpisodes(LIMIT, 30, 30))
    for stop in (1, 5, 9):
        before, after = TrainingEpisodes(LIMIT, 30, 30), TrainingEpisodes(LIMIT, 30, 30)
        means = run(rollouts[:stop], before)
        stored = before.state_dict()
        after.load_state_dict(stored)
        assert after.averages() == before.averages()
        run(rollouts[stop:], before)  # changes nothing that was stored
        assert means + run(rollouts[stop:], after) == straight
