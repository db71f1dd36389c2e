"""A cluster of two raylets on this host, started outside the learner, with one CPU each."""

import ctypes
import signal

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from learner.cluster.remote_errors import cause_in_one_line, full_cause
from tests.conftest import HEAD, LOW_PRIORITY, wait_until

NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
# A cluster of `ray.cluster_utils` requires no token; it lives as long as the test.
OPEN = "--allow-unauthenticated"


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster(
        initialize_head=True,
        connect=True,
        head_node_args={**NODE, **HEAD},
    )
    cluster.add_node(**NODE)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def free_cpus_per_node() -> list[float]:
    from ray._private.state import available_resources_per_node

    return sorted(resources.get("CPU", 0.0) for resources in available_resources_per_node().values())


def actor_processes() -> list[psutil.Process]:
    """Only this cluster's actors: its processes descend from this one."""
    return [p for p in psutil.Process().children(recursive=True) if "RemoteRolloutActor" in command(p)]


def command(process: psutil.Process) -> str:
    """Empty for a process that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_full_cause_of_a_native_crash_has_its_stack_trace_and_the_path_of_the_log(two_nodes):
    @ray.remote(max_restarts=0)
    class Crashing:
        def crash(self) -> None:
            ctypes.string_at(0)

    own_id = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        actor = Crashing.options(scheduling_strategy=on_node).remote()  # without a handle Ray would end it first
        with pytest.raises(ray.exceptions.ActorDiedError) as died:
            ray.get(actor.crash.remote(), timeout=120)
        assert cause_in_one_line(died.value).startswith("The actor is dead because its worker process has died.")
        text = full_cause(died.value)
        assert "/logs/worker-" in text
        # The log of a process on another node cannot be read from here.
        assert ("Segmentation fault" in text) == ("string_at" in text) == (node["NodeID"] == own_id)


def test_actors_on_both_nodes_are_replaced_when_they_die_or_hang(two_nodes, start_learner, tiny_pair, tmp_path, rows):
    metrics = tmp_path / "run" / "metrics.jsonl"
    process = start_learner(
        *(*tiny_pair, "--run-dir", tmp_path / "run", "--address", two_nodes.address, OPEN, "--no-evaluator"),
        *("--total-frames", 10**9, "--actor-timeout", 20),
        prefix=LOW_PRIORITY,
    )
    wait_until(lambda: metrics.exists() and len(rows(metrics)) > 2, process)
    assert free_cpus_per_node() == [0.0, 0.0]

    before = rows(metrics)[-1]
    for actor, signum in zip(actor_processes(), (signal.SIGKILL, signal.SIGSTOP), strict=True):
        actor.send_signal(signum)

    def goes_on_with_both() -> bool:
        """There may be more than two restarts: a replacement that starts too slowly on busy cores is replaced too."""
        newest = rows(metrics)[-1]
        replaced = newest["actor_restarts"] >= before["actor_restarts"] + 2
        return replaced and newest["actors_ready"] == 2 and newest["policy_version"] > before["policy_version"] + 3

    wait_until(goes_on_with_both, process)
    assert len(actor_processes()) == 2

    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, out + err
    frames = [row["frames"] for row in rows(metrics)]
    assert frames == [64 * (n + 1) for n in range(len(frames))]
    assert rows(metrics)[-1]["lost_rollouts"] >= 2
    # the learner leaves a cluster that it did not start running
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2


def test_cluster_too_small_for_all_actors_trains_with_those_placed(two_nodes, run_learner, tmp_path, rows):
    result = run_learner(
        *("--run-dir", tmp_path / "run", "--address", two_nodes.address, OPEN, "--no-evaluator"),
        *("--env-name", "leaper", "--num-actors", 4, "--envs-per-actor", 1, "--unroll-length", 16),
        *("--num-minibatches", 2, "--update-epochs", 1, "--total-frames", 128, "--cluster-timeout", 180),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 of 4 actors placed, 2 missing" in result.stdout
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["frames"] for row in metrics] == [64, 128]
    assert all(row["actors_ready"] == 2 and row["policy_lag"] == 0 for row in metrics)


def test_too_small_object_store_is_refused_with_the_size_needed(two_nodes, run_learner, tmp_path):
    result = run_learner("--run-dir", tmp_path / "run", "--address", two_nodes.address, OPEN, "--unroll-length", 1024)
    assert result.returncode == 2
    warning, error = result.stderr.splitlines()
    assert warning.startswith("learner: warning: ")
    assert "the object store of the learner's node has 200 MiB, but the rollouts in flight need" in error
    assert not (tmp_path / "run").exists()
