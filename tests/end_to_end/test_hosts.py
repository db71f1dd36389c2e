"""Training across three hosts: the learner on host-1, actors on host-2 and host-3, joined by a real network."""

import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest

from benchmarks import network_hosts
from benchmarks.network_hosts import HostsError, Network, cluster_address, join, send_signal, start_head, why_no_hosts
from tests.conftest import LOW_PRIORITY, WORKER_SETTINGS, wait_until

ACTOR, RAYLET = "ray::RemoteRolloutActor", "raylet"


@pytest.fixture(scope="module", autouse=True)
def _skip_where_hosts_cannot_be_built():
    if (reason := why_no_hosts()) is not None:
        pytest.skip(f"hosts with separate networks cannot be built on this machine: {reason}")


@pytest.fixture(scope="module")
def network():
    with Network(3) as network:
        head, *others = network.hosts
        # A node counts as dead after about 8 s without an answer instead of 65 s, with the same consequences.
        start_head(
            *(head, 0),
            **{"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000},
            **{"health_check_timeout_ms": 1000, "health_check_failure_threshold": 4},
            **WORKER_SETTINGS,
        )
        for host in others:
            join(host, head, 1)
        yield network


@pytest.fixture
def start(network, tiny_pair, tmp_path):
    """Starts the learner on host-1; ends it after the test, if it is still running."""
    started = []

    def start(*flags: object) -> subprocess.Popen:
        learner = (*LOW_PRIORITY, sys.executable, "-m", "learner", *tiny_pair, "--no-evaluator")
        run = ("--run-dir", tmp_path / "run")
        with open(tmp_path / "learner.log", "w") as log:
            process = network.hosts[0].start(
                *(*learner, *run, "--address", cluster_address(network.hosts[0]), *flags),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        network_hosts.end(process)


@pytest.fixture
def wait_for(tmp_path):
    """Waits for a condition of the running learner."""
    return partial(wait_until, output=tmp_path / "learner.log")


def reaches(host, other) -> bool:
    """Whether Ray's port on `other`, the head, accepts a connection from `host`."""
    connect = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)"
    try:
        host.run(sys.executable, "-S", "-c", connect, other.address, network_hosts.RAY_PORT)
    except HostsError:
        return False
    return True


def test_host_that_is_cut_off_costs_its_rollout_and_works_again_after_rejoining(
    network, start, wait_for, tmp_path, rows
):
    head, _, far = network.hosts
    metrics = tmp_path / "run" / "metrics.jsonl"

    def newest() -> dict:
        return rows(metrics)[-1]

    def updates() -> int:
        return len(rows(metrics)) if metrics.exists() else 0

    def goes_on(actors: int, since: int) -> bool:
        return updates() > since + 3 and newest()["actors_ready"] == actors

    process = start("--total-frames", 10**9, "--actor-timeout", 60)
    wait_for(lambda: updates() > 2, process)
    assert "3 nodes, 2 CPUs, token authentication" in (tmp_path / "learner.log").read_text()
    assert [len(host.processes(ACTOR)) for host in network.hosts] == [0, 1, 1]

    # Cut off for less than the time after which a node counts as dead: TCP resends what was lost, nothing else happens.
    assert reaches(far, head)
    network.cut_off(far)
    assert not reaches(far, head)
    network.reconnect(far)
    before = updates()
    wait_for(lambda: goes_on(2, before), process)
    assert newest()["actor_restarts"] == newest()["lost_rollouts"] == 0

    network.cut_off(far)
    wait_for(lambda: newest()["actors_ready"] == 1, process)
    before = updates()
    wait_for(lambda: goes_on(1, before), process)
    assert newest()["actor_restarts"] == 1 and newest()["lost_rollouts"] <= 1
    assert far.processes(RAYLET)  # it does not know yet that the head considers it dead

    network.reconnect(far)
    wait_for(lambda: not far.processes(RAYLET), process)  # the head tells it that it is dead, and it exits
    before = updates()
    wait_for(lambda: goes_on(1, before), process)
    join(far, head, 1)
    before = updates()
    wait_for(lambda: goes_on(2, before), process)
    # The previous actor, whose rollouts are no longer used, exits after its raylet.
    wait_for(lambda: [len(host.processes(ACTOR)) for host in network.hosts] == [0, 1, 1], process)
    assert newest()["actor_restarts"] == 1 and newest()["lost_rollouts"] <= 1

    send_signal(process, signal.SIGTERM)
    assert process.wait(120) == 143, (tmp_path / "learner.log").read_text()
    frames = [row["frames"] for row in rows(metrics)]
    assert frames == [64 * (n + 1) for n in range(len(frames))]
    assert [row["policy_version"] for row in rows(metrics)] == list(range(1, len(frames) + 1))


def test_slow_link_limits_the_run_and_the_last_line_says_what_to_do(network, start, tmp_path, rows):
    learners_host = network.hosts[0]
    network.limit(learners_host, 400_000)
    try:
        process = start("--total-frames", 4 * 64, "--compression", "none")
        assert process.wait(240) == 0, (tmp_path / "learner.log").read_text()
    finally:
        network.limit(learners_host, None)
    metrics = rows(tmp_path / "run" / "metrics.jsonl")[1:]
    assert all(row["bytes_per_frame"] == 12288 for row in metrics)
    said = (tmp_path / "learner.log").read_text()
    assert "bound by transfer" in said and "send less with --compression zstd" in said


def test_processes_of_hosts_are_gone_after_their_builder_is_killed():
    build = (
        "import time; from benchmarks.network_hosts import *; network = Network(2); "
        "print(*(host.first_pid for host in [network.switch, *network.hosts]), flush=True); time.sleep(60)"
    )
    builder = subprocess.Popen(
        [sys.executable, "-c", build], cwd=network_hosts.PROJECT, stdout=subprocess.PIPE, text=True
    )
    pids = [int(word) for word in builder.stdout.readline().split()]
    builder.kill()
    builder.communicate(timeout=120)
    assert len(pids) == 3
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
