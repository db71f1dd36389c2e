"""The run's state is restored from a checkpoint exactly."""

import io
from dataclasses import fields, replace

import numpy as np
import torch

from common.messages import ActorState
from common.resolution import resolve
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import RolloutSource, StagedBatch
from learner.run_state import RunState

CONFIG = resolve("lab", {"num_actors": 2, "envs_per_actor": 2, "unroll_length": 8, "num_minibatches": 2})


def actor_state(seed):
    rng = np.random.default_rng(seed)
    return ActorState(
        env_states=rng.integers(0, 256, 10, dtype=np.uint8),
        env_state_sizes=np.array([4, 6]),
        running_return=rng.normal(size=2),
        running_length=rng.integers(0, 1000, 2, dtype=np.int32),
        generator=torch.Generator().manual_seed(seed).get_state().numpy(),
        steps=np.array(1000 + seed, np.int64),
    )


def staged(*sources, incarnation=0):
    """A batch with nothing but sources: (slot, actor, seed of its state, returns). The higher the seed, the later."""
    batch = StagedBatch.__new__(StagedBatch)
    batch.sources = {
        slot: RolloutSource(
            actor_id=actor,
            policy_version=0,
            episode_envs=np.arange(len(returns)) % 2,
            episode_returns=np.array(returns, np.float32),
            episode_lengths=np.arange(len(returns), dtype=np.int32),
            collect_seconds=0.0,
            transfer_seconds=0.0,
            frame_bytes=0,
            next_state=actor_state(seed),
            incarnation=incarnation,
        )
        for slot, actor, seed, returns in sources
    }
    return batch


def assert_same_actor(one, other):
    for field in fields(ActorState):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert mine.dtype == theirs.dtype, field.name
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    return RunState.from_state_dict(torch.load(buffer, weights_only=True), CONFIG)


def test_state_is_restored_exactly_from_a_weights_only_file():
    state = RunState.new(CONFIG)
    state.record(staged((1, 1, 11, [0.1, 10.0]), (0, 0, 12, [1 / 3])))
    state.counters.lost_rollouts, state.counters.actors_ready = 3, 2
    back = through_a_file(state)
    assert back.episodes.state_dict() == state.episodes.state_dict()
    third, tenth = float(np.float32(1 / 3)), float(np.float32(0.1))
    expected = {"episode_return": np.mean([third, tenth, 10.0]), "episode_length": np.mean([0, 0, 1])}
    assert back.episodes.averages() == state.episodes.averages() == expected
    assert back.counters == RunCounters(lost_rollouts=3)  # actors_ready is not a total
    assert back.actors.keys() == {0, 1}
    assert_same_actor(back.actors[0], actor_state(12))
    assert_same_actor(back.actors[1], actor_state(11))


def test_weights_that_rollouts_in_flight_may_use_are_restored_exactly():
    state = RunState.new(CONFIG)
    for version in range(5):
        state.published(version, {"w": np.full((2, 3), version + 1 / 3, np.float32)}, max_policy_lag=2)
    assert list(state.weights) == [2, 3, 4]
    back = through_a_file(state)
    assert list(back.weights) == [2, 3]  # the newest is the checkpoint's policy
    for version, weights in back.weights.items():
        np.testing.assert_array_equal(weights["w"], state.weights[version]["w"])
    in_sync_mode = RunState.new(CONFIG)
    for version in range(3):
        in_sync_mode.published(version, {"w": np.zeros(1, np.float32)}, max_policy_lag=0)
    assert through_a_file(in_sync_mode).weights == {}


def test_last_rollout_of_an_actor_counts_and_that_of_an_absent_one_is_kept():
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 1, []), (1, 1, 2, [])))
    state.record(staged((1, 0, 3, []), (0, 0, 4, [])))
    assert_same_actor(state.actors[0], actor_state(4))
    assert_same_actor(state.actors[1], actor_state(2))  # its next rollout is in flight and will be collected again


def test_rollout_that_is_trained_on_after_a_later_one_changes_no_state():
    """An actor that was ahead has filled the slot of a lost actor in an earlier batch."""
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 1, []), (1, 0, 3, [])))
    state.record(staged((0, 0, 2, [])))
    assert_same_actor(state.actors[0], actor_state(3))
    assert state.state_dict()["episodes"]["actors"][0]["steps"] == 1003
    state.record(staged((0, 0, 0, []), incarnation=1))  # its successor began again
    assert_same_actor(state.actors[0], actor_state(0))
    assert state.state_dict()["episodes"]["actors"][0]["steps"] == 1000
    state.record(staged((0, 0, 4, [])))
    assert_same_actor(state.actors[0], actor_state(0))


def test_first_rollout_after_a_resume_counts():
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 5, []), incarnation=3))
    back = through_a_file(state)
    back.record(staged((0, 0, 6, [])))
    assert_same_actor(back.actors[0], actor_state(6))
    assert back.state_dict()["episodes"]["actors"][0]["steps"] == 1006


def test_checkpoint_without_episodes_by_environment_starts_to_count_again():
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 1, [5.0])))
    stored = state.state_dict()
    del stored["episodes"], stored["actors"][0]["steps"]
    older = {**stored, "episode_returns": [5.0], "episode_lengths": [1]}
    back = RunState.from_state_dict(older, CONFIG)
    assert back.actors[0].steps == 0
    assert back.episodes.averages() == {"episode_return": None, "episode_length": None}


def test_environments_that_start_again_are_forgotten():
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 1, [5.0])))
    state.forget_environments()
    assert state.actors == {} and state.episodes.averages()["episode_return"] is None
    assert state.state_dict()["episodes"]["actors"] == {}


def test_state_dict_does_not_change_afterwards():
    state = RunState.new(CONFIG)
    state.record(staged((0, 0, 1, [5.0])))
    stored = state.state_dict()
    state.actors[0].env_states[:] = 0
    state.counters.actor_restarts = 9
    state.record(staged((0, 0, 2, [7.0])))
    back = RunState.from_state_dict(stored, CONFIG)
    assert back.episodes.averages()["episode_return"] == 5.0 and back.counters.actor_restarts == 0
    assert_same_actor(back.actors[0], actor_state(1))


def test_saved_environments_are_split_at_their_sizes():
    state = actor_state(3)
    first, second = state.split_env_states()
    assert (len(first), len(second)) == (4, 6) and first + second == state.env_states.tobytes()
    empty = replace(state, env_state_sizes=np.array([0, 10]))
    assert empty.split_env_states() == [b"", state.env_states.tobytes()]
