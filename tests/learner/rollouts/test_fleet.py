"""Actors that die, hang, deliver wrong rollouts or never work, with real Ray and real signals."""

import contextlib
import copy
import ctypes
import itertools
import logging
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
import torch
from ray._private.worker import global_worker

import common.procgen_env
import learner.rollouts.fleet
import learner.rollouts.stream
from actors.remote import kill_actor_process
from actors.rollout_actor import RolloutActor
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from common.process import prepare_ray_environment
from common.versions import software
from learner.cluster.embedded import only_needed_processes
from learner.rollouts.counters import RunCounters
from learner.rollouts.failures import NoRollouts, WrongWeights
from learner.rollouts.fleet import Fleet, FleetError
from learner.rollouts.stream import RolloutStream
from tests import conftest
from tests.conftest import WORKER_SETTINGS, wait_until

# Some tests start ten actors one after another; on a busy machine each takes many seconds.
pytestmark = [pytest.mark.processes, pytest.mark.timeout(400)]
ACTORS, ENVS, STEPS = 2, 2, 16
DEADLINE = 180.0


@pytest.fixture(scope="module", autouse=True)
def embedded_ray():
    prepare_ray_environment()
    with only_needed_processes():
        ray.init(
            address="local", num_cpus=ACTORS, log_to_driver=False, logging_level="ERROR", _system_config=WORKER_SETTINGS
        )
    yield
    ray.shutdown()


tiny_config = partial(
    conftest.tiny_config,
    env_name="leaper",  # an actor of coinrun takes a second longer to start
    num_actors=ACTORS,
    envs_per_actor=ENVS,
    unroll_length=STEPS,
    cluster_timeout=DEADLINE,
)


def never():
    """A poll that does nothing."""


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return PolicyNetwork(tiny_config().network).weights()


def new_rollout_stream(config, fleet):
    """A stream without lag that starts with version 0."""
    cpu = torch.device("cpu")
    return RolloutStream(config, fleet, 0, 0, num_batches=10**6, device=cpu, counters=fleet.counters)


@pytest.fixture
def new_fleet():
    """Creates fleets and stops them after the test."""
    fleets = []

    def new(config, start_version=0, states=None):
        fleets.append(Fleet(config, start_version, RunCounters(), states))
        return fleets[-1]

    yield new
    for fleet in fleets:
        fleet.stop()


@pytest.fixture
def new_stream():
    """Creates streams and closes them after the test, before their fleets."""
    streams = []

    def new(config, fleet):
        streams.append(new_rollout_stream(config, fleet))
        return streams[-1]

    yield new
    for stream in streams:
        stream.close()


@dataclass(frozen=True)
class Running:
    """A fleet and its stream, which has delivered the batch of version 0."""

    fleet: Fleet
    stream: RolloutStream
    versions: Iterator[int]  # those that have not been published


@pytest.fixture(scope="class")
def running(weights):
    """One fleet for several tests: each actor takes three seconds of processor time to start."""
    config = tiny_config(actor_timeout=20.0)  # a replacement has to start within it, beside other tests
    with contextlib.ExitStack() as stack:
        fleet = Fleet(config, 0, RunCounters(), None)
        stack.callback(fleet.stop)
        assert fleet.wait_until_placed(DEADLINE, never) == ACTORS
        stream = new_rollout_stream(config, fleet)
        stack.callback(stream.close)
        stream.publish(weights, 0)
        stream.next_batch(limited())
        yield Running(fleet, stream, itertools.count(1))


def limited():
    """A poll that fails the test after DEADLINE seconds."""
    deadline = time.monotonic() + DEADLINE

    def check():
        assert time.monotonic() < deadline, "no batch"

    return check


def batches(stream, weights, versions):
    """The sources of one batch for each version, checked to be complete."""
    for version in versions:
        stream.publish(weights, version)
        staged = stream.next_batch(limited())
        assert sorted(staged.sources) == list(range(ACTORS))
        assert not torch.isnan(staged.rewards).any() and not torch.isnan(staged.values).any()
        assert all(source.policy_version == version for source in staged.sources.values())
        yield dict(staged.sources)


def wait_for_all(fleet):
    wait_until(lambda: len(fleet.ready()) == len(fleet.members))


def increases(counters, before):
    """What was counted since `before`, without zeros."""
    counted = {name: value - getattr(before, name) for name, value in asdict(counters).items()}
    return {name: value for name, value in counted.items() if value and name != "actors_ready"}


def warnings_of_the_fleet(caplog):
    """Ray may still log something about the actors of the test before."""
    name = learner.rollouts.fleet.logger.name
    return [record for record in caplog.records if record.name == name and record.levelno == logging.WARNING]


def train_until_all_collect(running, weights):
    deadline = time.monotonic() + DEADLINE
    for sources in batches(running.stream, weights, running.versions):
        if {source.actor_id for source in sources.values()} == set(range(ACTORS)):
            return
        assert time.monotonic() < deadline


class TestRunningFleet:
    def test_actors_load_the_images_of_their_game_only(self, running):
        for member in running.fleet.members:
            only_game = member.handle.__ray_call__.remote(lambda actor: common.procgen_env._only_game)
            assert ray.get(only_game, timeout=DEADLINE) == "leaper"

    @pytest.mark.parametrize("how", ["SIGKILL", "ray.kill"])
    def test_killed_actor_is_replaced_and_the_cause_logged(self, running, weights, how, caplog):
        fleet, stream, before = running.fleet, running.stream, copy.copy(running.fleet.counters)
        member = fleet.members[0]
        identity, location = member.identity, member.location
        stream.publish(weights, next(running.versions))  # now it collects
        if how == "SIGKILL":
            psutil.Process(location.process_id).kill()
        else:
            ray.kill(member.handle)
        stream.next_batch(limited())
        for _ in batches(stream, weights, itertools.islice(running.versions, 3)):
            pass
        counted = increases(fleet.counters, before)
        assert counted.pop("lost_rollouts", 0) <= 1 and counted == {"actor_restarts": 1}
        assert member.identity.incarnation == identity.incarnation + 1
        (record,) = warnings_of_the_fleet(caplog)
        line = record.getMessage()
        assert line.startswith(
            f"actor 0 (incarnation {identity.incarnation}) on {location} failed and is replaced: The"
        )
        assert f"process {location.process_id}" in line and "\n" not in line
        assert "log of the process: " in record.details
        train_until_all_collect(running, weights)
        assert member.location.process_id != location.process_id

    def test_stopped_actor_is_counted_as_hung_once_and_its_process_ends(self, running, weights, monkeypatch):
        # Ray does not end a process to which the raylet has tried to connect in vain.
        monkeypatch.setattr(learner.rollouts.fleet.ray, "kill", lambda handle, no_restart: None)
        train_until_all_collect(running, weights)
        before = copy.copy(running.fleet.counters)
        process = psutil.Process(running.fleet.members[1].location.process_id)
        process.send_signal(signal.SIGSTOP)
        for _ in batches(running.stream, weights, itertools.islice(running.versions, 3)):
            pass
        counted = increases(running.fleet.counters, before)
        assert counted == {"actor_restarts": 1, "actors_hung": 1, "lost_rollouts": 1}
        psutil.wait_procs([process], timeout=120)
        assert not process.is_running()
        train_until_all_collect(running, weights)

    def test_only_the_process_of_an_actor_is_killed(self, popen):
        process = popen(["sleep", "1000"])
        ray.get(kill_actor_process.remote(process.pid), timeout=DEADLINE)
        assert process.poll() is None
        process.kill()
        process.wait()
        ray.get(kill_actor_process.remote(process.pid), timeout=DEADLINE)  # it has ended

    def test_rollouts_of_other_weights_are_not_used(self, running, weights, monkeypatch):
        fleet, stream, replaced = running.fleet, running.stream, []
        train_until_all_collect(running, weights)
        before, version = copy.copy(fleet.counters), next(running.versions)
        monkeypatch.setattr(fleet, "replace", lambda actor_id, error: replaced.append((actor_id, error)))
        with monkeypatch.context() as other_weights:
            other_weights.setattr(learner.rollouts.stream, "weights_sha256", lambda weights: "other")
            stream.publish(weights, version)
        wait_until(lambda: len(replaced) >= ACTORS)
        stream.publish(weights, version)
        assert all(isinstance(error, WrongWeights) for _, error in replaced)
        assert len(stream.next_batch(limited()).sources) == ACTORS
        assert increases(fleet.counters, before) == {"lost_rollouts": len(replaced)}


@pytest.fixture(scope="class")
def idle_fleet():
    """A fleet whose actors are ready and, unlike a running one, that no stream's thread calls."""
    fleet = Fleet(tiny_config(), 0, RunCounters(), None)
    wait_for_all(fleet)
    yield fleet
    fleet.stop()


class TestIdleFleet:
    def test_failures_after_a_rollout_do_not_stop_the_run(self, idle_fleet, new_stream, weights, monkeypatch):
        monkeypatch.setattr(learner.rollouts.fleet, "MAX_BACK_OFF", 0.1)
        monkeypatch.setattr(learner.rollouts.fleet, "MAX_FAILURES_AT_START", 1)
        incarnation = idle_fleet.members[0].identity.incarnation
        for failures in range(1, 3):
            idle_fleet.delivered(0)
            idle_fleet.replace(0, WrongWeights("it broke"))
            wait_for_all(idle_fleet)
            assert idle_fleet.members[0].identity.incarnation == incarnation + failures
        assert len(list(batches(new_stream(tiny_config(), idle_fleet), weights, [0]))) == 1

    def test_node_with_other_software_that_joins_later_does_not_end_the_run(
        self, idle_fleet, new_stream, weights, monkeypatch
    ):
        monkeypatch.setattr(learner.rollouts.fleet, "MAX_BACK_OFF", 0.5)
        idle_fleet.delivered(0)  # the run has begun
        same, idle_fleet.software = idle_fleet.software, {"heldout's code": "other"}
        idle_fleet.replace(1, WrongWeights("its node was lost"))
        wait_until(lambda: [idle_fleet.ready(), idle_fleet.last_error][1] is not None)
        assert "the learner has other" in idle_fleet.last_error
        idle_fleet.software = same  # as if the next one were placed on another node
        wait_for_all(idle_fleet)
        assert idle_fleet.last_error is None
        assert len(list(batches(new_stream(tiny_config(), idle_fleet), weights, [0]))) == 1

    def test_deleted_files_of_ray_are_the_reason_and_without_an_actor_the_run_ends(self, idle_fleet):
        socket = Path(global_worker.node.raylet_socket_name)
        aside = socket.rename(socket.with_name("aside"))
        try:
            idle_fleet.replace(0, WrongWeights("it ended"))
            assert idle_fleet.ready() == [1]
            assert idle_fleet.last_error.startswith("actor 0 has been missing for 0 s: Ray's sockets in ")
            assert "no actor can be started on this host" in idle_fleet.last_error
            idle_fleet.replace(1, WrongWeights("it ended"))
            with pytest.raises(NoRollouts, match=r"no actor is left; Ray's sockets in .* are gone"):
                idle_fleet.ready()
        finally:
            aside.rename(socket)
        wait_for_all(idle_fleet)
        assert idle_fleet.last_error is None


def test_actor_that_never_works_stops_the_run_with_its_traceback(new_fleet, new_stream, weights, monkeypatch):
    monkeypatch.setattr(learner.rollouts.fleet, "MAX_BACK_OFF", 0.1)
    monkeypatch.setattr(learner.rollouts.fleet, "MAX_FAILURES_AT_START", 3)
    config = tiny_config(num_actors=1)
    fleet = new_fleet(config)
    fleet.wait_until_placed(DEADLINE, never)
    stream = new_stream(config, fleet)
    stream.publish({name: array for name, array in weights.items() if "value_head" not in name}, 0)
    with pytest.raises(FleetError, match=r"3 times in a row before its first rollout: .*Missing key") as error:
        stream.next_batch(limited())
    assert "Traceback" in error.value.details or "load_state_dict" in error.value.details
    assert "value_head" in error.value.details


def actor_without_torch(build):
    """A class of actors that only take a place, whose processes need a second instead of three to start.

    Made in a function: Ray would import this module, and with it torch, for a class that can be imported.
    """

    class PlacedActor:
        def describe(self):
            # No `Location`, whose module imports torch.
            return SimpleNamespace(host="host", node_id=ray.get_runtime_context().get_node_id()), software()

    PlacedActor.build = build
    return ray.remote(num_cpus=1)(PlacedActor)


@pytest.fixture
def placed_actors(monkeypatch):
    """Actors for what happens before the first rollout."""

    def build(self, *arguments):
        pass

    monkeypatch.setattr(learner.rollouts.fleet, "RemoteRolloutActor", actor_without_torch(build))


@pytest.fixture
def crashing_actors(monkeypatch):
    """Actors whose processes crash in native code while they build their environments."""

    def build(self, *arguments):
        ctypes.string_at(0)

    monkeypatch.setattr(learner.rollouts.fleet, "RemoteRolloutActor", actor_without_torch(build))


@pytest.mark.usefixtures("crashing_actors")
def test_native_crash_while_building_is_logged_with_its_stack(new_fleet, caplog):
    fleet = new_fleet(tiny_config())
    deadline = time.monotonic() + DEADLINE
    while fleet.counters.actor_restarts == 0:
        assert fleet.ready() == [] and time.monotonic() < deadline
        time.sleep(0.05)
    logged = warnings_of_the_fleet(caplog)[0].details
    assert "in build" in logged and "SIGSEGV" in logged and "log of the process: " in logged


def test_native_crash_before_an_actor_is_ready_is_logged_with_its_stack(new_fleet, monkeypatch, caplog):
    @ray.remote(num_cpus=1)
    class CrashingActor:
        def __init__(self):
            ctypes.string_at(0)

        def describe(self):
            pass

    monkeypatch.setattr(learner.rollouts.fleet, "RemoteRolloutActor", CrashingActor)
    fleet = new_fleet(tiny_config())
    wait_until(lambda: [fleet.ready(), fleet.counters.actor_restarts][1])
    logged = warnings_of_the_fleet(caplog)[0].details
    assert "SIGSEGV" in logged and "log of the process: " in logged


@pytest.mark.usefixtures("crashing_actors")
def test_actor_that_keeps_failing_is_reported_as_missing_with_the_reason(new_fleet, monkeypatch, caplog):
    monkeypatch.setattr(learner.rollouts.fleet, "MISSING_SECONDS", 0.0)
    fleet = new_fleet(tiny_config())
    deadline = time.monotonic() + DEADLINE
    while fleet.members[0].last_failure is None:  # `last_error` is about the first of those that are missing
        assert fleet.ready() == [] and time.monotonic() < deadline
        time.sleep(0.05)
    for member in fleet.members:  # as if none had been reported before the first failure
        member.is_reported, member.last_error = False, None
    fleet.ready()
    assert "missing for" in fleet.last_error and ": failed: The actor is dead" in fleet.last_error
    assert "\n" not in fleet.last_error and fleet.last_error in caplog.messages


@pytest.mark.usefixtures("placed_actors")
def test_actor_that_ray_cannot_start_is_reported_once_and_no_longer_when_it_works(new_fleet, monkeypatch, caplog):
    fleet = new_fleet(tiny_config(num_actors=ACTORS + 1))  # the machine has room for one fewer
    deadline = time.monotonic() + DEADLINE
    while len(fleet.ready()) < ACTORS:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    monkeypatch.setattr(learner.rollouts.fleet, "MISSING_SECONDS", 0.0)
    for _ in range(2):
        fleet.ready()
    (missing,) = [member for member in fleet.members if not member.is_ready]
    (warning,) = [text for text in caplog.messages if "missing for" in text]
    assert warning.startswith(f"actor {missing.actor_id} has been missing for ") and warning == missing.last_error
    assert warning.endswith(": not started; Ray has not placed or started the process")
    fleet.relocate(next(iter(fleet.ready())))  # makes room
    while not missing.is_ready:
        fleet.ready()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert missing.last_error is None


@pytest.mark.usefixtures("placed_actors")
def test_missing_actors_with_the_same_reason_are_reported_in_one_warning(new_fleet, monkeypatch, caplog):
    fleet = new_fleet(tiny_config(num_actors=8))  # more than the machine has room for
    wait_until(lambda: len(fleet.ready()) == ACTORS)
    monkeypatch.setattr(learner.rollouts.fleet, "MISSING_SECONDS", 0.0)
    fleet.ready()
    missing = [member for member in fleet.members if not member.is_ready]
    (warning,) = [text for text in caplog.messages if "missing for" in text]
    assert {member.last_error for member in missing} == {warning} == {fleet.last_error}
    assert re.match(r"actors \d[\d to,]* have been missing for \d+ s: not started; Ray has not placed", warning)
    fleet.ready()
    assert len([text for text in caplog.messages if "missing for" in text]) == 1


@pytest.mark.usefixtures("crashing_actors")  # which would crash if they were asked to build
def test_node_with_other_software_is_refused_with_both_versions(new_fleet, monkeypatch):
    theirs = {**software(), "torch": "1.2.3"}
    monkeypatch.setattr(learner.rollouts.fleet, "software", lambda: theirs)
    fleet = new_fleet(tiny_config())
    with pytest.raises(FleetError, match=r"has torch \S+ \(the learner has 1\.2\.3\): install") as error:
        fleet.wait_until_placed(DEADLINE, never)
    assert software()["torch"] in str(error.value) and "\n" not in str(error.value)
    assert fleet.counters.actor_restarts == 0


def test_actors_of_a_resumed_run_continue_exactly(new_fleet, weights):
    config = tiny_config()
    states, expected = {}, {}
    for actor_id in range(ACTORS):
        actor = RolloutActor(config, ActorIdentity(actor_id))
        states[actor_id] = actor.collect(weights, 0).next_state
        expected[actor_id] = actor.collect(weights, 1).observations.copy()
        actor.close()
    fleet = new_fleet(config, start_version=1, states=states)
    fleet.wait_until_placed(DEADLINE, never)
    reference = ray.put(weights)
    for actor_id in range(ACTORS):
        rollout = ray.get(fleet.collect(actor_id, reference, 1))
        np.testing.assert_array_equal(rollout.observations, expected[actor_id])


def kill_starting_actor(fleet, actor_id):
    """Kills the process of an actor that has not delivered yet."""
    member = fleet.members[actor_id]
    wait_until(lambda: fleet.ready() is not None and member.location is not None)
    psutil.Process(member.location.process_id).kill()
    restarts = fleet.counters.actor_restarts
    with contextlib.suppress(ray.exceptions.RayError):
        ray.get(member.handle.describe.remote(), timeout=DEADLINE)
    if member.starting is None:  # it had started, and only a rollout would show that it is dead
        fleet.replace(actor_id, RuntimeError("killed"))
    wait_until(lambda: fleet.ready() is not None and fleet.counters.actor_restarts > restarts)


def test_actor_of_a_resumed_run_that_dies_before_its_first_rollout_continues_its_environments(new_fleet, weights):
    config = tiny_config()
    actor = RolloutActor(config, ActorIdentity(0))
    states = {0: actor.collect(weights, 0).next_state}
    expected = actor.collect(weights, 1).observations.copy()
    actor.close()
    fleet = new_fleet(config, start_version=1, states=states)
    kill_starting_actor(fleet, 0)
    fleet.wait_until_placed(DEADLINE, never)
    rollout = ray.get(fleet.collect(0, ray.put(weights), 1))
    np.testing.assert_array_equal(rollout.observations, expected)
    fleet.delivered(0)
    fleet.replace(0, RuntimeError("after its first rollout"))
    fleet.wait_until_placed(DEADLINE, never)
    assert int(ray.get(fleet.collect(0, ray.put(weights), 1)).next_state.steps) == STEPS  # it began again


def wait_for_free_cpus():
    """Actors of the fleet before may still be ending."""
    wait_until(lambda: ray.available_resources().get("CPU", 0) >= ACTORS)


@pytest.mark.usefixtures("placed_actors")
def test_elastic_fleet_starts_with_what_fits_but_not_below_min_actors(new_fleet):
    config = tiny_config(num_actors=4, envs_per_actor=1, min_actors=1)
    fleet = new_fleet(config)
    assert fleet.is_elastic and fleet.wait_until_placed(DEADLINE, never) == ACTORS
    fleet.stop()
    wait_for_free_cpus()
    fleet = new_fleet(tiny_config(num_actors=4, envs_per_actor=1, min_actors=3))
    wait_until(lambda: len(fleet.ready()) == ACTORS)
    with pytest.raises(
        FleetError, match=r"2 of at least 3 actors could be placed within 1 s: .* the cluster has 2 CPU"
    ):
        fleet.wait_until_placed(1, never)


@pytest.mark.usefixtures("placed_actors")
def test_slow_start_is_reported_with_the_flag_of_its_deadline(new_fleet):
    wait_for_free_cpus()
    fleet = new_fleet(tiny_config())
    with pytest.raises(
        FleetError, match=r"no actor was ready within 0 s: .* still starting, .* raise --cluster-timeout"
    ):
        fleet.wait_until_placed(0.0, never)
    assert "--cluster-timeout" in fleet.why_missing()


@pytest.mark.usefixtures("placed_actors")
def test_missing_room_is_reported_as_such(new_fleet):
    fleet = new_fleet(tiny_config(num_actors=ACTORS + 1))
    assert fleet.why_missing() == "the cluster has too few CPUs"
