"""When a fleet starts actors, with what, and what it says of those that fail. Stand-ins for Ray and the clock.

`test_fleet.py` has real actors.
"""

import logging
from types import SimpleNamespace

import pytest
import ray

import learner.rollouts.fleet as fleet_module
from common.versions import software
from learner.rollouts.counters import RunCounters
from learner.rollouts.failures import ActorHung, WrongWeights
from learner.rollouts.fleet import Fleet, FleetError
from tests.conftest import tiny_config

NEVER = object()


class Clock:
    """Time that only passes when somebody sleeps."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Cluster:
    """Stands in for Ray on a cluster that has room for every actor. `describe` returns immediately.

    `answer_to_build()` decides about `build`: it returns the result, an exception that `build` raises, or NEVER.
    """

    exceptions = ray.exceptions

    def __init__(self, clock):
        self.clock = clock
        self.num_started = 0
        self.built_with = []
        self.killed = []  # process ids
        self.answer_to_build = lambda: "built"

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "node")

    def options(self, **_options):
        return SimpleNamespace(remote=self._start)

    def _start(self):
        self.num_started += 1
        describe, build = (SimpleNamespace(remote=answer) for answer in (self._describe, self._build))
        return SimpleNamespace(describe=describe, build=build)

    def _describe(self):
        return (SimpleNamespace(host="host", process_id=7, node_id="0" * 56), software())

    def _build(self, *arguments):
        self.built_with.append(arguments)
        return self.answer_to_build()

    def wait(self, references, num_returns=1, timeout=None):
        answered = [reference for reference in references if reference is not NEVER]
        if not answered:
            self.clock.sleep(timeout)
        return answered[:num_returns], []

    def get(self, reference, timeout=None):
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, _handle, no_restart):
        assert no_restart


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(fleet_module, "time", clock)
    awake_clock = fleet_module.AwakeClock
    monkeypatch.setattr(fleet_module, "AwakeClock", lambda longest_step: awake_clock(longest_step, clock.monotonic))
    return clock


@pytest.fixture
def cluster(monkeypatch, clock):
    cluster = Cluster(clock)
    monkeypatch.setattr(fleet_module, "ray", cluster)
    monkeypatch.setattr(fleet_module, "RemoteRolloutActor", cluster)
    kill = SimpleNamespace(options=lambda **_options: SimpleNamespace(remote=cluster.killed.append))
    monkeypatch.setattr(fleet_module, "kill_actor_process", kill)
    monkeypatch.setattr(fleet_module, "room", lambda gpus_each: 99)
    monkeypatch.setattr(fleet_module, "capacity", lambda gpus_each: 99)
    monkeypatch.setattr(fleet_module, "damage_of_this_node", lambda: None)
    monkeypatch.setattr(fleet_module, "log_of_an_ended_process", lambda since: "")
    return cluster


def new_fleet(start_version=0, states=None, **settings):
    return Fleet(tiny_config(**{"num_actors": 1, **settings}), start_version, RunCounters(), states)


def failure(number=0):
    """An exception raised in the actor; its message depends on `number`."""
    message = f"out of memory in process {number}"
    return ray.exceptions.RayTaskError("build", f"Traceback: {message}", RuntimeError(message))


def never():
    """A poll that does nothing."""


def wait_until_ready(fleet):
    for _ in range(5):  # `ready` takes a start one step further
        if fleet.ready() == [0]:
            return
    pytest.fail("the actor is not ready")


def seconds_until_started(fleet, cluster):
    failed_at, before = cluster.clock.now, cluster.num_started
    while cluster.num_started == before:
        assert cluster.clock.now < failed_at + 120
        fleet.ready()
        cluster.clock.sleep(0.25)
    return cluster.clock.now - 0.25 - failed_at


def test_actors_that_failed_are_the_reason_why_none_was_ready(clock, cluster):
    failures = iter(map(failure, range(99)))
    cluster.answer_to_build = lambda: next(failures)
    with pytest.raises(
        FleetError, match=r"^no actor was ready within 10 s: actor 0 failed: RuntimeError: out"
    ) as error:
        new_fleet().wait_until_placed(10.0, never)
    assert "Traceback: out of memory" in error.value.details
    assert "--cluster-timeout" not in str(error.value)


def test_actor_that_failed_is_the_reason_why_fewer_are_ready(clock, cluster):
    answers = iter(["built", failure()])
    cluster.answer_to_build = lambda: next(answers, NEVER)
    fleet = new_fleet(num_actors=2)
    assert fleet.wait_until_placed(10.0, never) == 1
    assert fleet.why_missing() == "actor 1 failed: RuntimeError: out of memory in process 0"


def test_actor_that_only_starts_slowly_has_not_failed(clock, cluster):
    cluster.answer_to_build = lambda: NEVER
    with pytest.raises(FleetError, match=r"probably still starting, .* raise --cluster-timeout$"):
        new_fleet().wait_until_placed(10.0, never)


def test_actor_that_hangs_while_it_builds_environments_is_replaced(clock, cluster, caplog):
    answers = iter(["built", NEVER])
    cluster.answer_to_build = lambda: next(answers, "built")
    fleet = new_fleet(num_actors=2, actor_timeout=100.0)
    started = clock.now
    while len(fleet.ready()) < 2:
        clock.sleep(1.0)
        assert clock.now < started + 1000
    assert 100 < clock.now - started < 110
    assert fleet.counters.actor_restarts == 1
    assert "actor 1 (incarnation 0)" in caplog.text and "not ready within 100 s (--actor-timeout)" in caplog.text


@pytest.mark.parametrize(("error", "killed"), [(ActorHung("no rollout"), [7]), (WrongWeights("other"), [])])
def test_process_of_an_actor_that_hangs_is_killed_beside_ray(cluster, error, killed):
    fleet = new_fleet()
    wait_until_ready(fleet)
    fleet.replace(0, error)
    assert cluster.killed == killed


def test_time_in_which_the_learner_was_suspended_does_not_count_as_a_hang(clock, cluster):
    cluster.answer_to_build = lambda: NEVER
    fleet = new_fleet(actor_timeout=100.0)
    fleet.ready()
    clock.sleep(3600.0)
    fleet.ready()
    assert fleet.counters.actor_restarts == 0


def test_actor_that_fails_for_days_does_not_end_the_run(clock, cluster, caplog):
    caplog.set_level(logging.CRITICAL)
    failures = iter(map(failure, range(10**6)))
    cluster.answer_to_build = lambda: next(failures)
    fleet = new_fleet()
    while fleet.counters.actor_restarts < 1100:
        fleet.ready()
        clock.sleep(1.0)
    assert clock.now > 1000 * fleet_module.MAX_BACK_OFF


def test_actor_that_keeps_failing_is_started_after_1_2_4_up_to_30_seconds(cluster):
    fleet = new_fleet()
    delays = []
    for error in [WrongWeights("other"), ActorHung("no rollout")] * 3 + [WrongWeights("other")]:  # equal ones end a run
        wait_until_ready(fleet)
        fleet.replace(0, error)
        delays.append(seconds_until_started(fleet, cluster))
    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_delivered_rollout_ends_a_series_of_failures(cluster):
    fleet = new_fleet()
    for _ in range(4):
        wait_until_ready(fleet)
        fleet.replace(0, WrongWeights("other"))
        seconds_until_started(fleet, cluster)
    wait_until_ready(fleet)
    fleet.delivered(0)
    fleet.replace(0, WrongWeights("other"))
    assert seconds_until_started(fleet, cluster) == 1


def test_actor_lost_after_a_resume_does_not_continue_from_the_saved_state_again(cluster):
    state = object()
    fleet = new_fleet(start_version=7, states={0: state})
    wait_until_ready(fleet)
    fleet.delivered(0)
    fleet.replace(0, ActorHung("its node was lost"))
    seconds_until_started(fleet, cluster)
    wait_until_ready(fleet)
    first, second = cluster.built_with
    assert state in first and state not in second


def test_actor_lost_before_its_first_rollout_continues_from_the_saved_state_once_more(cluster):
    """Nothing was trained on. A second failure may be due to the state."""
    state = object()
    fleet = new_fleet(start_version=7, states={0: state})
    for _ in range(3):
        wait_until_ready(fleet)
        fleet.replace(0, ActorHung("its node was lost"))
        seconds_until_started(fleet, cluster)
    assert [state in arguments for arguments in cluster.built_with] == [True, True, False]
