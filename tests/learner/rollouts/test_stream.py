"""What the stream does with rollouts that it cannot use. A stand-in for Ray and the fleet; the rest is real."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch

from common.frame_compression import DamagedFrames, compress_frames
from common.messages import ActorState, FinishedEpisodes, Rollout, weights_sha256
from learner.rollouts import stream as stream_module
from learner.rollouts.counters import RunCounters
from learner.rollouts.failures import WrongWeights
from learner.rollouts.stream import RolloutStream
from tests.conftest import tiny_config

T, B = 2, 1  # of the only actor
config = tiny_config(num_actors=1, envs_per_actor=B, unroll_length=T, num_minibatches=1)


def weights_of(version):
    return {"layer.weight": np.full(3, version, np.float32)}


def rollout_of(version):
    return Rollout(
        policy_version=version,
        actor_id=0,
        observations=np.zeros((T, B, 64, 64, 3), np.uint8),
        actions=np.zeros((T, B), np.int32),
        rewards=np.zeros((T, B), np.float32),
        dones=np.zeros((T, B), np.bool_),
        behavior_log_probs=np.zeros((T, B), np.float32),
        values=np.zeros((T, B), np.float32),
        bootstrap_value=np.zeros(B, np.float32),
        bootstrap_observation=np.zeros((1, B, 64, 64, 3), np.uint8),
        episodes=FinishedEpisodes(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32)),
        next_state=ActorState(
            env_states=np.zeros(B, np.uint8),
            env_state_sizes=np.ones(B, np.int64),
            running_return=np.zeros(B),
            running_length=np.zeros(B, np.int32),
            generator=np.zeros(1, np.uint8),
        ),
        weights_sha256=weights_sha256(weights_of(version)),
        seconds=0.0,
    )


class OneActor:
    """A fleet whose actor answers immediately: its first rollout is what `spoil` makes of it, the others are right."""

    last_error = None

    def __init__(self, spoil):
        self.spoil = spoil
        self.is_ready = threading.Event()
        self.answers = {}
        self.delivered_by = []
        self.replaced = []

    def ready(self):
        return [0] if self.is_ready.is_set() else []

    def collect(self, actor_id, weights, policy_version):
        number = len(self.answers)
        answer = rollout_of(policy_version)
        self.answers[number] = answer if number else self.spoil(answer)
        return number

    def get(self, number, timeout):
        if isinstance(self.answers[number], Exception):
            raise self.answers[number]
        return self.answers[number]

    def delivered(self, actor_id):
        self.delivered_by.append(actor_id)

    def replace(self, actor_id, error):
        self.replaced.append(error)

    def on_draining_nodes(self):
        return []


@pytest.fixture
def first_batch(monkeypatch):
    """A function: the first batch of a run that is resumed at version `lag`, its fleet and its counters."""

    def collect(spoil, lag=0):
        fleet, counters = OneActor(spoil), RunCounters()
        stand_in = {"put": lambda weights: weights, "get": fleet.get, "wait": lambda keys, **_: (keys[:1], keys[1:])}
        monkeypatch.setattr(stream_module, "ray", SimpleNamespace(**vars(ray) | stand_in))
        stream = RolloutStream(config, fleet, lag, lag, 10, torch.device("cpu"), counters)
        try:
            for version in range(lag + 1):
                stream.publish(weights_of(version), version)
            fleet.is_ready.set()  # only now: it collects with version 0 when `lag` newer ones have been published
            batch = stream.next_batch(lambda: None)
        finally:
            stream.close()
        return batch, fleet, counters

    return collect


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_rollout_that_is_too_old_is_dropped_counted_and_collected_again(first_batch, lag):
    batch, fleet, counters = first_batch(lambda rollout: rollout_of(-1), lag)
    assert batch.sources[0].policy_version == 0
    assert counters == RunCounters(dropped_for_lag=1, actors_ready=1)
    assert fleet.replaced == []  # it did nothing wrong


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_rollout_with_other_weights_of_its_version_is_lost_and_its_actor_replaced(first_batch, lag):
    batch, fleet, counters = first_batch(lambda rollout: replace(rollout, weights_sha256="other"), lag)
    assert [type(error) for error in fleet.replaced] == [WrongWeights]
    assert "those of policy_version 0" in str(fleet.replaced[0])
    assert counters == RunCounters(lost_rollouts=1, actors_ready=1)
    assert batch.sources[0].policy_version == 0


def damaged(rollout):
    compressed = compress_frames(rollout.observations)
    return replace(rollout, rewards=rollout.rewards + 7, observations=replace(compressed, data=compressed.data[:-4]))


def test_rollout_with_damaged_frames_is_lost_whole_and_its_actor_replaced(first_batch):
    batch, fleet, counters = first_batch(damaged)
    assert [type(error) for error in fleet.replaced] == [DamagedFrames]
    assert counters == RunCounters(lost_rollouts=1, actors_ready=1)
    assert not batch.rewards.any() and not batch.observations.any()  # those of the second rollout


def test_actor_whose_rollout_was_lost_with_its_node_is_not_replaced(first_batch):
    _, fleet, counters = first_batch(lambda rollout: ray.exceptions.ObjectLostError("ab", "", ""))
    assert fleet.replaced == []
    assert counters == RunCounters(lost_rollouts=1, actors_ready=1)


def test_actor_that_died_is_replaced(first_batch):
    died = ray.exceptions.ActorDiedError()
    _, fleet, counters = first_batch(lambda rollout: died)
    assert fleet.replaced == [died]
    assert counters == RunCounters(lost_rollouts=1, actors_ready=1)


def test_fleet_hears_of_rollouts_that_arrived_intact_only(first_batch):
    _, fleet, _ = first_batch(damaged)
    assert fleet.delivered_by == [0]
