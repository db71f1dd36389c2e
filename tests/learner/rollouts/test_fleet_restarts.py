"""When a lost actor is started again and with what. Stand-ins for Ray and the clock; test_fleet.py has real actors."""

import time
from types import SimpleNamespace

import pytest
import ray

from common.versions import software
from learner.rollouts import fleet as fleet_module
from learner.rollouts.counters import RunCounters
from learner.rollouts.failures import ActorHung, WrongWeights
from learner.rollouts.fleet import Fleet
from tests.conftest import tiny_config

config = tiny_config(num_actors=1)


class Actors:
    """Stands for Ray's class of actors: each answers every call immediately."""

    def __init__(self):
        self.num_started = 0
        self.built_with = []

    def options(self, **_):
        return self

    def remote(self):
        self.num_started += 1
        location = SimpleNamespace(host="host", node_id="node"), software()
        build = lambda *arguments: self.built_with.append(arguments)  # noqa: E731
        return SimpleNamespace(
            describe=SimpleNamespace(remote=lambda: ("answer", location)),
            build=SimpleNamespace(remote=lambda *arguments: ("answer", build(*arguments))),
        )


@pytest.fixture
def actors(monkeypatch):
    actors = Actors()
    stand_in = {
        "get_runtime_context": lambda: SimpleNamespace(get_node_id=lambda: "node"),
        "wait": lambda references, **_: (references, []),
        "get": lambda reference, **_: reference[1],
        "kill": lambda *_, **__: None,
    }
    monkeypatch.setattr(fleet_module, "ray", SimpleNamespace(**vars(ray) | stand_in))
    monkeypatch.setattr(fleet_module, "room", lambda _: 1)
    monkeypatch.setattr(fleet_module, "RemoteRolloutActor", actors)
    return actors


@pytest.fixture
def clock(monkeypatch):
    """The fleet's clock, which only a test advances."""
    clock = SimpleNamespace(now=round(time.monotonic()))  # sums of whole and quarter seconds are exact
    monkeypatch.setattr(fleet_module, "time", SimpleNamespace(**vars(time) | {"monotonic": lambda: clock.now}))
    return clock


def wait_until_ready(fleet):
    for _ in range(5):  # `ready` takes a start one step further
        if fleet.ready() == [0]:
            return
    pytest.fail("the actor is not ready")


def seconds_until_started(fleet, actors, clock):
    failed_at, before = clock.now, actors.num_started
    while actors.num_started == before:
        assert clock.now < failed_at + 120
        fleet.ready()
        clock.now += 0.25
    return clock.now - 0.25 - failed_at


def test_actor_that_keeps_failing_is_started_after_1_2_4_up_to_30_seconds(actors, clock):
    fleet = Fleet(config, 0, RunCounters())
    delays = []
    for error in [WrongWeights("other"), ActorHung("no rollout")] * 3 + [WrongWeights("other")]:  # equal ones end a run
        wait_until_ready(fleet)
        fleet.replace(0, error)
        delays.append(seconds_until_started(fleet, actors, clock))
    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_delivered_rollout_ends_a_series_of_failures(actors, clock):
    fleet = Fleet(config, 0, RunCounters())
    for _ in range(4):
        wait_until_ready(fleet)
        fleet.replace(0, WrongWeights("other"))
        seconds_until_started(fleet, actors, clock)
    wait_until_ready(fleet)
    fleet.delivered(0)
    fleet.replace(0, WrongWeights("other"))
    assert seconds_until_started(fleet, actors, clock) == 1


def test_actor_lost_after_a_resume_does_not_continue_from_the_saved_state_again(actors, clock):
    state = object()
    fleet = Fleet(config, 7, RunCounters(), {0: state})
    wait_until_ready(fleet)
    fleet.replace(0, ActorHung("its node was lost"))
    seconds_until_started(fleet, actors, clock)
    wait_until_ready(fleet)
    first, second = actors.built_with
    assert state in first and state not in second
