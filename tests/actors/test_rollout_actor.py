"""One actor on real Procgen: its rollouts contain exactly what was played."""

import copy
import itertools
from dataclasses import fields
from functools import partial

import numpy as np
import pytest
import torch

from actors.rollout_actor import RolloutActor
from common.games import Game
from common.messages import ActorIdentity, FinishedEpisodes, weights_sha256
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs
from common.seeding import derive_seed
from tests import conftest

GAME = "starpilot"
T, B, ROLLOUTS = 64, 4, 4


pytestmark = pytest.mark.usefixtures("one_torch_thread")


# starpilot: a random policy scores and dies within about a hundred steps.
tiny_config = partial(conftest.tiny_config, env_name=GAME, envs_per_actor=B, unroll_length=T)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    network = PolicyNetwork(tiny_config().network)
    with torch.no_grad():  # an untrained policy hardly distinguishes frames or actions
        network.policy_head.weight.mul_(20)
        network.value_head.weight.mul_(20)
    return network


def collect(config, policy, rollouts, actor_id=0, **identity):
    actor = RolloutActor(config, ActorIdentity(actor_id, **identity))
    try:
        # The arrays are reused by the next call: copy.
        return [copy.deepcopy(actor.collect(policy.weights(), version)) for version in range(rollouts)]
    finally:
        actor.close()


@pytest.fixture(scope="module")
def rollouts(policy):
    return collect(tiny_config(), policy, ROLLOUTS)


def joined(rollouts, name):
    return np.concatenate([getattr(rollout, name) for rollout in rollouts])


def test_rollout_has_the_documented_shapes_and_types(rollouts):
    expected = {
        "observations": (np.uint8, (T, B, 64, 64, 3)),
        "actions": (np.int32, (T, B)),
        "rewards": (np.float32, (T, B)),
        "dones": (np.bool_, (T, B)),
        "behavior_log_probs": (np.float32, (T, B)),
        "values": (np.float32, (T, B)),
        "bootstrap_value": (np.float32, (B,)),
        "bootstrap_observation": (np.uint8, (1, B, 64, 64, 3)),
    }
    for version, rollout in enumerate(rollouts):
        assert {f.name for f in fields(rollout)} == {
            *expected,
            *("policy_version", "actor_id", "incarnation", "episodes", "seconds", "next_state", "weights_sha256"),
        }
        for name, (dtype, shape) in expected.items():
            array = getattr(rollout, name)
            assert (array.dtype, array.shape) == (dtype, shape), name
        assert (rollout.policy_version, rollout.actor_id) == (version, 0)
        assert rollout.seconds > 0
        assert [getattr(rollout.episodes, f.name).dtype for f in fields(FinishedEpisodes)] == [
            np.float32,
            np.int32,
            np.int32,
        ]
    actions = joined(rollouts, "actions")
    assert actions.min() >= 0 and actions.max() <= 14 and len(np.unique(actions)) > 3


def test_values_and_log_probs_are_the_policys_for_the_observations(rollouts, policy):
    for rollout in rollouts[:2]:
        with torch.no_grad():
            logits, values = policy(torch.from_numpy(rollout.observations).flatten(0, 1))
        log_probs = torch.log_softmax(logits, 1)[
            torch.arange(T * B), torch.from_numpy(rollout.actions).flatten().long()
        ]
        np.testing.assert_allclose(rollout.values.ravel(), values.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(rollout.behavior_log_probs.ravel(), log_probs.numpy(), rtol=1e-4, atol=1e-5)
        assert values.std() > 1e-3 and log_probs.std() > 0.1  # else any order would pass


def test_bootstrap_value_is_that_of_the_next_rollouts_first_observation(rollouts, policy):
    for rollout, following in itertools.pairwise(rollouts):
        np.testing.assert_allclose(rollout.bootstrap_value, following.values[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(rollout.bootstrap_observation[0], following.observations[0])
        with torch.no_grad():
            _, values = policy(torch.from_numpy(following.observations[0]))
        np.testing.assert_allclose(rollout.bootstrap_value, values.numpy(), rtol=1e-4, atol=1e-5)


def test_replaying_the_actions_reproduces_all_rollouts_without_a_reset(rollouts):
    config = tiny_config()
    envs = make_envs(B, Game(GAME, "easy"), 0, 20, rand_seed=derive_seed(config.seed, "levels", 0, 0, 0))
    observations, actions = joined(rollouts, "observations"), joined(rollouts, "actions")
    rewards, dones = joined(rollouts, "rewards"), joined(rollouts, "dones")
    _, frames, _ = envs.observe()
    for t in range(ROLLOUTS * T):
        np.testing.assert_array_equal(observations[t], frames)
        envs.act(actions[t])
        reward, frames, first = envs.observe()
        np.testing.assert_array_equal(rewards[t], reward)  # raw, and paid for the action at t
        np.testing.assert_array_equal(dones[t], first)
    envs.close()
    assert dones.sum() >= 4 and np.count_nonzero(rewards) >= 4


def test_episode_statistics_sum_rewards_between_dones_across_rollouts(rollouts):
    expected = []
    returns, lengths = [0.0] * B, [0] * B
    for rollout in rollouts:
        of_rollout = []
        for t in range(T):
            for b in range(B):
                returns[b] += float(rollout.rewards[t, b])
                lengths[b] += 1
                if rollout.dones[t, b]:
                    of_rollout.append((returns[b], lengths[b]))
                    returns[b], lengths[b] = 0.0, 0
        expected.append(of_rollout)
    for rollout, of_rollout in zip(rollouts, expected, strict=True):
        assert len(rollout.episodes.returns) == rollout.dones.sum() == len(of_rollout)
        np.testing.assert_allclose(rollout.episodes.returns, [r for r, _ in of_rollout], rtol=1e-5)
        np.testing.assert_array_equal(rollout.episodes.lengths, [length for _, length in of_rollout])
    assert any(length > T for of_rollout in expected for _, length in of_rollout)  # began in an earlier rollout
    assert any(episode_return != 0 for of_rollout in expected for episode_return, _ in of_rollout)


def test_finished_episode_names_the_level_that_was_played(policy):
    one_level = collect(tiny_config(start_level=7, num_levels=1), policy, 3)
    levels = np.concatenate([rollout.episodes.levels for rollout in one_level])
    assert len(levels) > 0 and (levels == 7).all()
    # With many levels the next one differs from the one that was played: replay and compare.
    config = tiny_config(start_level=500, num_levels=1000)
    played = collect(config, policy, 3)
    envs = make_envs(B, Game(GAME, "easy"), 500, 1000, rand_seed=derive_seed(config.seed, "levels", 0, 0, 0))
    expected, current = [], [info["level_seed"] for info in envs.infos()]
    for action in joined(played, "actions"):
        envs.act(action)
        first = envs.observe()[2].copy()
        expected += [current[b] for b in np.flatnonzero(first)]
        current = [info["level_seed"] for info in envs.infos()]
    envs.close()
    levels = np.concatenate([rollout.episodes.levels for rollout in played])
    assert len(set(expected)) > 1
    np.testing.assert_array_equal(levels, expected)


def test_bootstrap_value_after_an_episodes_end_is_of_the_next_episode(policy):
    # With one level every episode has the same first frame, whose value shows where an episode begins. In rollouts of
    # one step every episode ends at a rollout's end. GAE masks that value.
    config = tiny_config(start_level=3, num_levels=1, unroll_length=1)
    rollouts = collect(config, policy, 250)
    first_value = rollouts[0].values[0]
    dones = joined(rollouts, "dones")
    assert dones.sum() >= 3
    for rollout in rollouts:
        at_end = rollout.dones[0]
        np.testing.assert_allclose(rollout.bootstrap_value[at_end], first_value[at_end], rtol=1e-4, atol=1e-5)
    others = np.array([r.bootstrap_value for r in rollouts])[~dones]
    assert (np.abs(others - first_value[0]) < 1e-5).mean() < 0.2


def first_observations_and_levels(policy, actor_id, seed=0, **identity):
    config = tiny_config(num_levels=1000, seed=seed)
    rollouts = collect(config, policy, 1, actor_id, **identity)
    return rollouts[0].observations[0], rollouts[0].actions, rollouts[0].episodes.levels


def test_levels_and_actions_depend_on_seed_and_every_field_of_the_identity(policy):
    base = first_observations_and_levels(policy, 0)
    again = first_observations_and_levels(policy, 0)
    for one, other in zip(base, again, strict=True):
        np.testing.assert_array_equal(one, other)
    others = (
        first_observations_and_levels(policy, 1),
        first_observations_and_levels(policy, 0, incarnation=1),
        first_observations_and_levels(policy, 0, start_version=1),
        first_observations_and_levels(policy, 0, seed=1),
    )
    for frames, actions, _ in others:
        different = (frames != base[0]).any(axis=(1, 2, 3))
        assert different.sum() >= B - 1  # of 1,000 levels two slots may draw the same one
        assert not np.array_equal(actions, base[1])


def test_action_noise_differs_between_actors_on_the_same_level(policy):
    config = tiny_config(num_levels=1)
    one, other = (collect(config, policy, 1, actor_id)[0] for actor_id in (0, 1))
    np.testing.assert_array_equal(one.observations[0], other.observations[0])
    assert not np.array_equal(one.actions[0:4], other.actions[0:4])
    assert not np.array_equal(one.actions[0:8, 0], one.actions[0:8, 1])  # and between environments


def test_collect_acts_with_its_weights(policy):
    actor = RolloutActor(tiny_config(unroll_length=4), ActorIdentity(0))
    one_action = {name: array.copy() for name, array in policy.weights().items()}
    one_action["policy_head.weight"][:] = 0
    one_action["policy_head.bias"][:] = 0
    one_action["policy_head.bias"][9] = 50
    before = actor.collect(policy.weights(), 4).actions.copy()
    after = actor.collect(one_action, 5)
    actor.close()
    assert (after.actions == 9).all() and not (before == 9).all()
    assert after.policy_version == 5
    np.testing.assert_allclose(after.behavior_log_probs, 0, atol=1e-6)


def test_bfloat16_changes_values_slightly_and_keeps_types(policy):
    (rollout,) = collect(tiny_config(precision="bfloat16", unroll_length=8), policy, 1)
    assert rollout.values.dtype == rollout.behavior_log_probs.dtype == rollout.bootstrap_value.dtype == np.float32
    with torch.no_grad():
        _, values = policy(torch.from_numpy(rollout.observations).flatten(0, 1))
    difference = np.abs(rollout.values.ravel() - values.numpy())
    assert 0 < difference.max() < 0.1


@pytest.mark.parametrize("half_batches", [False, True])
def test_actor_built_from_a_saved_state_continues_exactly(policy, rollouts, half_batches):
    # As Ray delivers it: read-only arrays.
    state = copy.deepcopy(rollouts[1].next_state)
    for field in fields(state):
        getattr(state, field.name).flags.writeable = False
    other = RolloutActor(tiny_config(half_batches=half_batches), ActorIdentity(0, start_version=2), state)
    for expected in rollouts[2:]:
        continued = other.collect(policy.weights(), expected.policy_version)
        for name in ("observations", "actions", "rewards", "dones"):
            np.testing.assert_array_equal(getattr(continued, name), getattr(expected, name), err_msg=name)
        for name in ("returns", "lengths", "levels"):
            np.testing.assert_array_equal(getattr(continued.episodes, name), getattr(expected.episodes, name))
        assert continued.next_state.split_env_states() == expected.next_state.split_env_states()
        assert continued.next_state.steps == expected.next_state.steps
    other.close()
    assert sum(len(rollout.episodes.returns) for rollout in rollouts[2:]) > 0


def test_unfinished_episodes_of_a_saved_state_keep_their_returns_and_lengths(policy):
    config = tiny_config(env_name="fruitbot")  # rewards come before the end
    first, second = collect(config, policy, 2)
    begun = first.next_state.running_return != 0
    assert np.any(begun & ~second.dones.any(axis=0))  # a return that goes on through the second rollout
    other = RolloutActor(config, ActorIdentity(0, start_version=1), first.next_state)
    continued = other.collect(policy.weights(), 1)
    other.close()
    for name in ("running_return", "running_length"):
        np.testing.assert_array_equal(getattr(continued.next_state, name), getattr(second.next_state, name))
    np.testing.assert_array_equal(continued.episodes.returns, second.episodes.returns)


@pytest.mark.parametrize("incarnation", [0, 2])
def test_rollout_says_how_often_its_actor_was_replaced(policy, incarnation):
    (rollout,) = collect(tiny_config(unroll_length=2), policy, 1, incarnation=incarnation)
    assert rollout.incarnation == incarnation


def test_state_counts_the_steps_of_each_environment_since_it_began(rollouts):
    assert [int(rollout.next_state.steps) for rollout in rollouts] == [T * (n + 1) for n in range(ROLLOUTS)]


def test_rollout_holds_the_digest_of_its_weights(policy, rollouts):
    assert rollouts[0].weights_sha256 == weights_sha256(policy.weights())
    other = {name: array + 1 for name, array in policy.weights().items()}
    assert weights_sha256(other) != rollouts[0].weights_sha256


def test_digest_is_of_the_weights_that_acted_not_of_those_that_were_sent(policy, monkeypatch):
    actor = RolloutActor(tiny_config(unroll_length=2), ActorIdentity(0))
    weights = policy.weights()
    actor.collect(weights, 0)
    monkeypatch.setattr(actor, "_load", lambda weights: None)
    rollout = actor.collect({name: array + 1 for name, array in weights.items()}, 1)
    actor.close()
    assert rollout.weights_sha256 == weights_sha256(weights)


def test_half_batches_play_the_same_rollouts(policy, rollouts):
    for whole, halved in zip(rollouts, collect(tiny_config(half_batches=True), policy, ROLLOUTS), strict=True):
        for name in ("observations", "actions", "rewards", "dones", "bootstrap_observation"):
            np.testing.assert_array_equal(getattr(halved, name), getattr(whole, name), name)
        for name in ("behavior_log_probs", "values", "bootstrap_value"):
            np.testing.assert_allclose(getattr(halved, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
        for name in ("returns", "lengths", "levels"):
            np.testing.assert_array_equal(getattr(halved.episodes, name), getattr(whole.episodes, name), name)


def test_half_batches_include_the_last_of_an_odd_number_of_environments(policy):
    sizes = {"envs_per_actor": 5, "unroll_length": 8}
    actor = RolloutActor(tiny_config(**sizes, half_batches=True), ActorIdentity(0))
    assert [group.columns for group in actor.groups] == [slice(0, 2), slice(2, 5)]
    halved = copy.deepcopy(actor.collect(policy.weights(), 0))
    actor.close()
    (whole,) = collect(tiny_config(**sizes), policy, 1)
    np.testing.assert_array_equal(halved.actions, whole.actions)
    np.testing.assert_array_equal(halved.observations, whole.observations)


def test_policy_on_the_cpu_gets_one_batch_by_default():
    actor = RolloutActor(tiny_config(), ActorIdentity(0))
    assert len(actor.groups) == 1
    actor.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("captured", [False, True])
def test_gpu_values_and_log_probs_follow_new_weights(policy, captured):
    config = tiny_config(actor_gpus=0.1, cuda_graphs=captured, unroll_length=8)
    actor = RolloutActor(config, ActorIdentity(0))
    weights = policy.weights()
    for version in range(2):
        weights = {name: array * (1 + 0.5 * version) for name, array in weights.items()}
        rollout = actor.collect(weights, version)
        policy_on_cpu = PolicyNetwork(config.network)
        policy_on_cpu.load_weights(weights)
        with torch.no_grad():
            logits, values = policy_on_cpu(torch.from_numpy(rollout.observations).flatten(0, 1))
        log_probs = torch.log_softmax(logits, 1).gather(1, torch.from_numpy(rollout.actions).long().view(-1, 1))
        np.testing.assert_allclose(rollout.values.ravel(), values.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(rollout.behavior_log_probs.ravel(), log_probs.squeeze(1), rtol=1e-3, atol=1e-3)
    actor.close()
