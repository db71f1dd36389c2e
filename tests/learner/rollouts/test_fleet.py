"""Actors that die, hang, lie or never work, on a real Ray with real signals: batches are whole, and all is counted."""

import dataclasses
import signal
import time

import numpy as np
import psutil
import pytest
import ray
import torch

import learner.rollouts.fleet
import learner.rollouts.stream as rollout_stream
from actors.rollout_actor import RolloutActor
from common.config import resolve
from common.messages import weights_sha256
from common.policy_network import PolicyNetwork
from common.process import prepare_ray_environment
from common.versions import software
from learner.rollouts.fleet import Fleet, FleetError
from learner.rollouts.stream import RolloutStream

# Ten actors are started one after the other in some of these; on a busy machine each takes many seconds.
pytestmark = pytest.mark.timeout(400)
ACTORS, ENVS, STEPS = 2, 2, 16
DEADLINE = 180.0


@pytest.fixture(scope="module", autouse=True)
def embedded_ray():
    prepare_ray_environment()
    ray.init(address="local", num_cpus=ACTORS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def tiny_config(**given):
    sizes = {"num_actors": ACTORS, "envs_per_actor": ENVS, "unroll_length": STEPS, "num_minibatches": 2}
    return resolve("lab", {"precision": "float32", "cluster_timeout": DEADLINE, **sizes, **given})


def never():
    """A stop check that lets everything go on."""


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return PolicyNetwork(tiny_config().network).weights()


@pytest.fixture
def new_fleet():
    """Fleets that are ended with the test."""
    fleets = []

    def new(config, **given):
        fleets.append(Fleet(config, given.pop("started_at", 0), **given))
        return fleets[-1]

    yield new
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def new_stream():
    """Streams that are ended with the test, before their fleets."""
    streams = []

    def new(config, fleet):
        cpu = torch.device("cpu")
        streams.append(RolloutStream(config, fleet, max_policy_lag=0, first_batch=0, num_batches=10**6, device=cpu))
        return streams[-1]

    yield new
    for stream in streams:
        stream.close()


@pytest.fixture
def running(new_fleet, new_stream, weights):
    """(fleet, stream) that has delivered its first batch."""
    config = tiny_config(actor_timeout=5.0)
    fleet = new_fleet(config)
    assert fleet.wait_until_placed(DEADLINE, never) == ACTORS
    stream = new_stream(config, fleet)
    stream.publish(weights, 0)
    stream.next_batch(limited())
    return fleet, stream


def limited():
    """A stop check that ends a test instead of letting it wait for ever."""
    deadline = time.monotonic() + DEADLINE

    def check():
        assert time.monotonic() < deadline, "no batch"

    return check


def batches(stream, weights, versions):
    """The sources of one whole batch for each version; none of its columns may be left unwritten."""
    for version in versions:
        stream.publish(weights, version)
        staged = stream.next_batch(limited())
        assert sorted(staged.sources) == list(range(ACTORS))
        assert not torch.isnan(staged.rewards).any() and not torch.isnan(staged.values).any()
        assert all(source.policy_version == version for source in staged.sources.values())
        yield dict(staged.sources)


def wait_for_all(fleet):
    deadline = time.monotonic() + DEADLINE
    while len(fleet.ready()) < len(fleet.members):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("how", ["SIGKILL", "ray.kill"])
def test_a_killed_actor_is_replaced_and_every_batch_is_whole(running, weights, how):
    fleet, stream = running
    place, handle = fleet.members[0].place, fleet.members[0].handle
    stream.publish(weights, 1)  # now it collects
    if how == "SIGKILL":
        psutil.Process(place.process_id).kill()
    else:
        ray.kill(handle)
    stream.next_batch(limited())
    for _ in batches(stream, weights, range(2, 5)):
        pass
    assert fleet.restarts == 1 and fleet.members[0].incarnation == 1
    assert stream.counters.lost_rollouts <= 1 and stream.counters.actors_hung == 0
    deadline = time.monotonic() + DEADLINE
    for sources in batches(stream, weights, range(5, 10**6)):
        if {source.actor_id for source in sources.values()} == {0, 1}:
            break
        assert time.monotonic() < deadline
    assert fleet.members[0].place.process_id != place.process_id


def test_a_stopped_actor_counts_as_hung_once_and_its_process_is_gone(running, weights):
    fleet, stream = running
    process = psutil.Process(fleet.members[1].place.process_id)
    process.send_signal(signal.SIGSTOP)
    for _ in batches(stream, weights, range(1, 4)):
        pass
    assert (fleet.restarts, stream.counters.actors_hung, stream.counters.lost_rollouts) == (1, 1, 1)
    psutil.wait_procs([process], timeout=30)
    assert not process.is_running()


def test_rollouts_of_other_weights_are_not_used(running, weights):
    fleet, stream = running
    other = {name: array + 1 for name, array in weights.items()}
    with stream._changed:
        stream.publish(weights, 1)
        stream._published.weights_sha256[1] = weights_sha256(other)
    deadline = time.monotonic() + DEADLINE
    while stream.counters.lost_rollouts < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert fleet.restarts == 2
    with stream._changed:
        stream._published.weights_sha256[1] = weights_sha256(weights)
    assert len(stream.next_batch(limited()).sources) == ACTORS


def test_an_actor_that_never_works_stops_the_run_with_its_traceback(new_fleet, new_stream, weights, monkeypatch):
    monkeypatch.setattr(learner.rollouts.fleet, "LONGEST_BACK_OFF", 0.1)
    config = tiny_config()
    fleet = new_fleet(config)
    fleet.wait_until_placed(DEADLINE, never)
    stream = new_stream(config, fleet)
    stream.publish({name: array for name, array in weights.items() if "value_head" not in name}, 0)
    with pytest.raises(FleetError, match=r"5 times in a row before its first rollout: .*Missing key") as error:
        stream.next_batch(limited())
    assert "Traceback" in error.value.details or "load_state_dict" in error.value.details
    assert "value_head" in error.value.details


def test_failures_after_a_rollout_never_stop_a_run(running, weights, monkeypatch):
    monkeypatch.setattr(learner.rollouts.fleet, "LONGEST_BACK_OFF", 0.1)
    fleet, stream = running
    for life in range(7):
        fleet.delivered(0)
        fleet.replace(0, "it broke")
        wait_for_all(fleet)
        assert fleet.members[0].incarnation == life + 1
    assert len(list(batches(stream, weights, [1]))) == 1


def test_a_node_with_other_code_is_refused_at_once_with_both_versions(new_fleet, monkeypatch):
    theirs = {**software(), "torch": "1.2.3"}
    monkeypatch.setattr(learner.rollouts.fleet, "software", lambda: theirs)
    fleet = new_fleet(tiny_config())
    with pytest.raises(FleetError, match=r"has torch \S+ \(the learner has 1\.2\.3\): install") as error:
        fleet.wait_until_placed(DEADLINE, never)
    assert software()["torch"] in str(error.value) and "\n" not in str(error.value)
    assert fleet.restarts == 0


def test_a_node_with_other_code_that_joins_later_does_not_end_the_run(running, weights, monkeypatch):
    monkeypatch.setattr(learner.rollouts.fleet, "LONGEST_BACK_OFF", 0.5)
    fleet, stream = running
    same, fleet.learner = fleet.learner, dataclasses.replace(fleet.learner, software={"heldout's code": "other"})
    fleet.replace(1, "its node was lost")
    deadline = time.monotonic() + DEADLINE
    while fleet.problem is None and time.monotonic() < deadline:
        fleet.ready()
        time.sleep(0.05)
    assert "the learner has other" in fleet.problem
    fleet.learner = same  # the next one is placed on a node that is right
    wait_for_all(fleet)
    assert fleet.problem is None
    assert len(list(batches(stream, weights, [1]))) == 1


def test_actors_of_a_resumed_run_go_on_where_they_stood(new_fleet, weights):
    config = tiny_config()
    states, expected = {}, {}
    for actor_id in range(ACTORS):
        actor = RolloutActor(config, actor_id)
        states[actor_id] = actor.collect(weights, 0).next_state
        expected[actor_id] = actor.collect(weights, 1).observations.copy()
        actor.close()
    fleet = new_fleet(config, started_at=1, states=states, restarts=3)
    fleet.wait_until_placed(DEADLINE, never)
    assert fleet.restarts == 3
    reference = ray.put(weights)
    for actor_id in range(ACTORS):
        rollout = ray.get(fleet.collect(actor_id, reference, 1))
        np.testing.assert_array_equal(rollout.observations, expected[actor_id])


def test_an_elastic_fleet_starts_with_what_fits_and_not_with_less_than_asked(new_fleet):
    config = tiny_config(num_actors=4, envs_per_actor=1, min_actors=1)
    fleet = new_fleet(config)
    assert fleet.is_elastic and fleet.wait_until_placed(DEADLINE, never) == ACTORS
    fleet.stop()
    fleet = new_fleet(tiny_config(num_actors=4, envs_per_actor=1, min_actors=3))
    with pytest.raises(
        FleetError, match=r"2 of at least 3 actors could be placed within 10 s: .* the cluster has 2 CPU"
    ):
        fleet.wait_until_placed(10, never)


def test_an_actor_is_hung_after_ten_times_the_slowest_recent_rollout_within_limits(new_fleet, new_stream):
    config = tiny_config(actor_timeout=600.0)
    stream = new_stream(config, new_fleet(config))
    assert stream._hung_after() == 600  # nothing is known yet
    stream._durations.extend([0.5, 2.0, 1.0])
    assert stream._hung_after() == 60
    stream._durations.append(9.0)
    assert stream._hung_after() == 90
    stream._durations.append(100.0)
    assert stream._hung_after() == 600
    stream._durations.extend([1.0] * rollout_stream._RECENT_ROLLOUTS)
    assert stream._hung_after() == 60
