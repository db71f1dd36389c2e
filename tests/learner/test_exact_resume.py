"""Actors, batches and learner without Ray, in one thread: what a run gives depends neither on the speed of its actors
nor on where it was resumed. `tests/end_to_end/test_resume.py` checks the same of whole processes.
"""

import copy
import io
import random

import pytest
import torch

from actors.rollout_actor import RolloutActor
from common.messages import ActorIdentity
from learner.ppo.learner import PPOLearner
from learner.rollouts.batch_assembly import BatchAssembly
from learner.rollouts.staging import StagedBatch
from learner.run_state import RunState
from tests.conftest import assert_bit_equal, tiny_config

UPDATES = 4
SMALL = {"unroll_length": 8, "update_epochs": 1, "learner_threads": 1}
CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def train(config, seed, resumed=None):
    """Trains to the end; actors take turns at random. Returns what a checkpoint of each version would hold."""
    rng, lag = random.Random(seed), config.max_policy_lag
    learner, state = PPOLearner(config), RunState.new(config)
    if resumed is not None:
        learner.load_state_dict(resumed["learner"])
        state = RunState.from_state_dict(resumed["run"], config)
    buffers = [StagedBatch(config, CPU) for _ in range(lag + 1)]
    first = learner.policy_version
    batches = BatchAssembly(buffers, config.num_actors, lag, first, UPDATES, config.repeatable)
    actor_ids = range(config.num_actors)
    actors = [RolloutActor(config, ActorIdentity(i, 0, first), state.actors.get(i)) for i in actor_ids]
    published, snapshots = dict(state.weights), {}

    def publish():
        version = learner.policy_version
        published[version] = learner.weights()
        batches.publish(version)
        state.published(version, published[version], lag)
        snapshots[version] = copy.deepcopy({"learner": learner.state_dict(), "run": state.state_dict()})

    for version in state.weights:
        batches.publish(version)
    publish()
    while learner.policy_version < UPDATES:
        actor_id = rng.choice(actor_ids)
        if (slot := batches.assign(actor_id, actor_ids)) is not None:
            version = batches.version_for(slot)
            slot.batch.buffer.stage(slot.index, actors[actor_id].collect(published[version], version))
            batches.fill(slot)
        if rng.random() < 0.5 and (batch := batches.next_full()) is not None:
            learner.update(batch, lambda: None)
            state.record(batch)
            publish()
    learner.close()
    for actor in actors:
        actor.close()
    return snapshots


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("max_policy_lag", [0, 2])
def test_run_gives_the_same_bits_at_any_actor_speed_and_when_resumed(max_policy_lag):
    mode = "overlap" if max_policy_lag else "sync"
    config = tiny_config(mode=mode, max_policy_lag=max_policy_lag, reward_transform="running_return", **SMALL)
    whole = train(config, seed=1)
    assert_bit_equal(train(config, seed=2), whole)
    for version in (1, 3):
        snapshot = through_a_file(whole[version])
        assert sorted(snapshot["run"]["weights"]) == list(range(max(0, version - max_policy_lag), version))
        resumed = train(config, seed=3, resumed=snapshot)
        assert_bit_equal(resumed, {later: whole[later] for later in range(version, UPDATES + 1)})


def test_newest_weights_give_other_bits_at_another_speed():
    config = tiny_config(mode="overlap", repeatable=False, **SMALL)
    one, other = (train(config, seed)[UPDATES]["learner"]["policy"] for seed in (1, 2))
    assert any(not torch.equal(one[name], other[name]) for name in one)
