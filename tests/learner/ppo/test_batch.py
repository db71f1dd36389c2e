"""Rollouts are staged side by side and flattened; every number ends up in its place."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch

from common.frame_compression import compress_frames
from common.messages import ActorState, FinishedEpisodes, Rollout
from common.resolution import resolve
from learner.ppo.batch import ProximalOutputs, TrainingBatch, normalize
from learner.ppo.gae import generalized_advantages
from learner.ppo.reward_transform import RewardTransform
from learner.rollouts.staging import RolloutSource, StagedBatch
from tests import conftest

CPU = torch.device("cpu")
T, ENVS, ACTORS = 3, 2, 3
ARRAYS = ("observations", "actions", "rewards", "dones", "behavior_log_probs", "values")


tiny_config = partial(
    conftest.tiny_config, num_actors=ACTORS, envs_per_actor=ENVS, unroll_length=T, reward_transform="raw"
)


def random_rollout(seed):
    rng = np.random.default_rng(seed)
    return Rollout(
        policy_version=seed,
        actor_id=seed,
        observations=rng.integers(0, 256, (T, ENVS, 64, 64, 3), dtype=np.uint8),
        actions=rng.integers(0, 15, (T, ENVS), dtype=np.int32),
        rewards=rng.normal(size=(T, ENVS)).astype(np.float32),
        dones=rng.random((T, ENVS)) < 0.4,
        behavior_log_probs=rng.normal(size=(T, ENVS)).astype(np.float32),
        values=rng.normal(size=(T, ENVS)).astype(np.float32),
        bootstrap_value=rng.normal(size=ENVS).astype(np.float32),
        bootstrap_observation=rng.integers(0, 256, (1, ENVS, 64, 64, 3), dtype=np.uint8),
        episodes=FinishedEpisodes(
            returns=rng.normal(size=2).astype(np.float32),
            lengths=rng.integers(1, 9, 2, dtype=np.int32),
            levels=np.arange(2, dtype=np.int32),
        ),
        next_state=ActorState(
            env_states=rng.integers(0, 256, 7 * ENVS, dtype=np.uint8),
            env_state_sizes=np.full(ENVS, 7),
            running_return=rng.normal(size=ENVS),
            running_length=rng.integers(0, 9, ENVS, dtype=np.int32),
            generator=rng.integers(0, 256, 11, dtype=np.uint8),
        ),
        weights_sha256=f"weights {seed}",
        seconds=0.5,
    )


def test_rollout_fills_its_own_columns_in_any_order_of_arrival():
    staged = StagedBatch(tiny_config(), CPU)
    rollouts = [random_rollout(seed) for seed in range(ACTORS)]
    for slot in (2, 0, 1):
        staged.stage(slot, rollouts[slot])
    for name in ARRAYS:
        side_by_side = np.concatenate([getattr(rollout, name) for rollout in rollouts], axis=1)
        np.testing.assert_array_equal(getattr(staged, name).numpy(), side_by_side, err_msg=name)
    bootstrap_values = np.concatenate([rollout.bootstrap_value for rollout in rollouts])
    np.testing.assert_array_equal(staged.bootstrap_value.numpy(), bootstrap_values)
    bootstrap_observations = np.concatenate([rollout.bootstrap_observation[0] for rollout in rollouts])
    np.testing.assert_array_equal(staged.bootstrap_observation.numpy(), bootstrap_observations)


def test_source_of_each_slot_is_recorded():
    staged = StagedBatch(tiny_config(), CPU)
    rollout = random_rollout(7)
    staged.stage(1, rollout)
    source = staged.sources[1]
    assert (source.actor_id, source.policy_version, source.collect_seconds) == (7, 7, 0.5)
    # Episodes are in order of steps, then environments: where the dones are.
    ended_in = [env for t in range(T) for env in range(ENVS) if rollout.dones[t, env]]
    assert len(set(ended_in)) > 1 and source.episode_envs.tolist() == ended_in
    np.testing.assert_array_equal(source.episode_returns, rollout.episodes.returns)
    np.testing.assert_array_equal(source.episode_lengths, rollout.episodes.lengths)


def test_staged_batch_shares_no_memory_with_its_rollouts():
    staged = StagedBatch(tiny_config(), CPU)
    rollout, same = random_rollout(4), random_rollout(4)
    staged.stage(1, rollout)
    for array in [getattr(rollout, name) for name in ARRAYS] + [
        rollout.bootstrap_value,
        rollout.bootstrap_observation,
        rollout.episodes.returns,
        rollout.episodes.lengths,
    ]:
        array[...] = 0
    columns = slice(ENVS, 2 * ENVS)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(staged, name).numpy()[:, columns], getattr(same, name), err_msg=name)
    np.testing.assert_array_equal(staged.bootstrap_value.numpy()[columns], same.bootstrap_value)
    np.testing.assert_array_equal(staged.sources[1].episode_returns, same.episodes.returns)
    np.testing.assert_array_equal(staged.sources[1].episode_lengths, same.episodes.lengths)


def test_cleared_batch_remembers_neither_the_sources_nor_their_order():
    staged = StagedBatch(tiny_config(), CPU)
    for slots in ((0, 1, 2), (2, 1, 0)):
        staged.clear()
        assert staged.sources == {} and staged.oldest_version() == -1
        for slot in slots:
            staged.stage(slot, random_rollout(seed=3))  # all from the same actor
        arrived = [one.columns.tolist() for one in staged.rounds()]
        assert arrived == [[slot * ENVS, slot * ENVS + 1] for slot in slots]


def test_oldest_version_of_a_batch_is_the_lowest_in_it():
    staged = StagedBatch(tiny_config(), CPU)
    for slot, version in enumerate((7, 5, 6)):
        staged.stage(slot, dataclasses.replace(random_rollout(slot), policy_version=version))
    assert staged.oldest_version() == 5


def test_unwritten_slots_hold_absurd_values():
    staged = StagedBatch(tiny_config(), CPU)
    staged.stage(1, random_rollout(0))
    untouched = [0, 1, 4, 5]
    for name in ("rewards", "behavior_log_probs", "values"):
        tensor = getattr(staged, name)
        assert tensor[:, untouched].isnan().all() and not tensor[:, 2:4].isnan().any()
    assert staged.bootstrap_value[untouched].isnan().all() and not staged.bootstrap_value[2:4].isnan().any()
    assert (staged.actions[:, untouched] == -1).all()  # indexing the log-probabilities with it raises
    assert (staged.observations[:, untouched] == 255).all()


def test_rollout_of_another_length_is_refused():
    staged = StagedBatch(tiny_config(unroll_length=4), CPU)
    with pytest.raises(ValueError, match="broadcast"):
        staged.stage(0, random_rollout(0))


def prepared(config):
    staged = StagedBatch(config, CPU)
    for slot in range(ACTORS):
        staged.stage(slot, random_rollout(slot))
    transform = RewardTransform(config.reward_transform, config.num_envs, config.gamma)
    return staged, TrainingBatch.prepare(staged, transform, config)


def test_sample_n_is_step_t_of_environment_b_for_n_equal_to_t_times_b_plus_b():
    config = tiny_config(advantage_normalization="minibatch")
    staged, batch = prepared(config)
    B = ACTORS * ENVS
    assert len(batch) == T * B
    advantages, targets = generalized_advantages(
        staged.rewards, staged.dones, staged.values, staged.bootstrap_value, config.gamma, config.gae_lambda
    )
    for t in range(T):
        for b in range(B):
            n = t * B + b
            assert torch.equal(batch.observations[n], staged.observations[t, b])
            assert batch.actions[n] == staged.actions[t, b]
            assert batch.proximal_log_probs[n] == staged.behavior_log_probs[t, b]
            assert batch.importance_weights[n] == 1
            assert batch.values[n] == staged.values[t, b]
            assert batch.advantages[n] == advantages[t, b]
            assert batch.target_values[n] == targets[t, b]
    assert batch.observations.dtype == torch.uint8 and batch.actions.dtype == torch.int64


def test_values_and_weights_of_a_lagged_batch_are_those_of_the_proximal_policy():
    config = tiny_config(advantage_normalization="minibatch", importance_weight_cap=1.5, mode="overlap")
    staged, _ = prepared(config)
    generator = torch.Generator().manual_seed(1)
    log_probs, values = torch.randn(2, T, ACTORS * ENVS, generator=generator)
    bootstrap_value = torch.randn(ACTORS * ENVS, generator=generator)
    transform = RewardTransform("raw", config.num_envs, config.gamma)
    batch = TrainingBatch.prepare(staged, transform, config, ProximalOutputs(log_probs, values, bootstrap_value))
    advantages, targets = generalized_advantages(
        staged.rewards, staged.dones, values, bootstrap_value, config.gamma, config.gae_lambda
    )
    assert torch.equal(batch.advantages, advantages.flatten()) and torch.equal(batch.target_values, targets.flatten())
    assert torch.equal(batch.values, values.flatten()) and torch.equal(batch.proximal_log_probs, log_probs.flatten())
    ratios = np.exp(log_probs.numpy().ravel().astype(float) - staged.behavior_log_probs.numpy().ravel())
    np.testing.assert_allclose(batch.importance_weights.numpy(), np.minimum(ratios, 1.5), rtol=1e-5)


def test_observations_are_not_copied_on_the_host():
    staged, batch = prepared(tiny_config())
    assert batch.observations.data_ptr() == staged.observations.data_ptr()


def test_advantages_use_transformed_rewards():
    _, raw = prepared(tiny_config(advantage_normalization="minibatch"))
    _, sign = prepared(tiny_config(advantage_normalization="minibatch", reward_transform="sign"))
    assert not torch.equal(raw.target_values, sign.target_values)
    staged, _ = prepared(tiny_config())
    config = tiny_config()
    _, targets = generalized_advantages(
        staged.rewards.sign(), staged.dones, staged.values, staged.bootstrap_value, config.gamma, config.gae_lambda
    )
    assert torch.equal(sign.target_values, targets.flatten())


def test_advantages_are_normalized_over_the_batch_only_with_that_setting():
    _, whole = prepared(tiny_config(advantage_normalization="batch"))
    _, later = prepared(tiny_config(advantage_normalization="minibatch"))
    assert whole.advantages.mean().item() == pytest.approx(0, abs=1e-6)
    assert np.std(whole.advantages.numpy(), ddof=1) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(normalize(later.advantages), whole.advantages)
    assert abs(later.advantages.std().item() - 1) > 0.01
    assert torch.equal(whole.target_values, later.target_values)  # targets use advantages that are not normalized


def test_normalize_divides_by_the_unbiased_deviation():
    # 0, 2, 4: mean 2, unbiased variance (4 + 0 + 4) / 2 = 4.
    torch.testing.assert_close(normalize(torch.tensor([0.0, 2.0, 4.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_compressed_frames_are_staged_like_raw_frames_and_their_bytes_counted():
    raw, compressed = StagedBatch(tiny_config(), CPU), StagedBatch(tiny_config(), CPU)
    for slot in range(ACTORS):
        rollout = random_rollout(slot)
        frames = {name: compress_frames(getattr(rollout, name)) for name in ("observations", "bootstrap_observation")}
        sent = dataclasses.replace(rollout, **frames)
        raw.stage(slot, rollout)
        compressed.stage(slot, sent)
        assert compressed.sources[slot].frame_bytes == sent.observations.nbytes
        assert raw.sources[slot].frame_bytes == T * ENVS * 12288
    assert torch.equal(raw.observations, compressed.observations)
    assert torch.equal(raw.bootstrap_observation, compressed.bootstrap_observation)


def test_rounds_order_the_rollouts_of_each_actor_in_a_batch():
    config = resolve("lab", {"num_actors": 3, "envs_per_actor": 2, "unroll_length": 4, "num_minibatches": 2})
    staged = StagedBatch(config, CPU)
    # In order of arrival: actor 1 came twice, actor 2 never. Actor 0 is new, and the second rollout is of a successor.
    for slot, actor_id, steps in ((1, 1, 12), (2, 0, 4), (0, 1, 4)):
        state = dataclasses.replace(random_rollout(0).next_state, steps=np.array(steps))
        staged.sources[slot] = RolloutSource(
            actor_id, 0, np.zeros(0, int), np.zeros(0), np.zeros(0), 0.0, 0.0, 0, state
        )
    first, second = staged.rounds()
    assert first.columns.tolist() == [2, 3, 4, 5] and first.environments.tolist() == [2, 3, 0, 1]
    assert second.columns.tolist() == [0, 1] and second.environments.tolist() == [2, 3]
    assert first.new.tolist() == [0, 1] and second.new.tolist() == [2, 3]
