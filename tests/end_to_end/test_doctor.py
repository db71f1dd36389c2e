"""`python -m learner doctor` on this machine and on a real cluster with a node that has other software."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from common.resolution import resolve
from learner.cluster import connection
from learner.cluster.target import ClusterTarget
from tests.conftest import HEAD

PROJECT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 600 << 20}
OPEN = "--allow-unauthenticated"  # a cluster of `ray.cluster_utils` requires no token


def doctor(*args, **environment):
    command = [sys.executable, "-m", "learner", "doctor", *map(str, args)]
    return subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **HEAD})
    cluster.add_node(**NODE)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def node_with_other_zstandard(two_nodes, tmp_path):
    """A third node whose zstandard claims to be version 9.9.9."""
    metadata = tmp_path / "zstandard-9.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: zstandard\nVersion: 9.9.9\n")
    node = two_nodes.add_node(**NODE, env_vars={"PYTHONPATH": str(tmp_path)})
    yield node
    two_nodes.remove_node(node)


def test_doctor_passes_a_machine_that_can_train(tmp_path):
    result = doctor("--run-dir", tmp_path / "run")
    assert result.returncode == 0, result.stdout + result.stderr
    for what in (
        "Python",
        "libraries",
        "torch",
        "Procgen",
        "memory",
        "shared memory",
        "run directory",
        "token",
        "open files",
        "processes",
        "sizes",
        "CPUs",
        "home",
        "file system",
        "TMPDIR",
        "Ray's directory",
        "environment",
        "output",
    ):
        assert any(line.startswith(what) for line in result.stdout.splitlines()), what
    assert "fatal: 0" in result.stdout and not (tmp_path / "run").exists()


def test_doctor_names_fatal_problems_and_exits_with_1(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    result = doctor("--run-dir", tmp_path, "--address", "127.0.0.1")
    assert result.returncode == 1
    assert (
        "config.json cannot be read" in result.stdout
        and "--address 127.0.0.1 is neither auto nor HOST:PORT" in result.stdout
    )
    assert "fatal: 2" in result.stdout and result.stderr == ""


def test_doctor_names_ray_address_where_that_gave_the_address():
    result = doctor(RAY_ADDRESS="somewhere")
    assert result.returncode == 1 and "RAY_ADDRESS=somewhere is neither auto nor HOST:PORT" in result.stdout
    assert "--address somewhere" not in result.stdout


def test_wrong_usage_of_doctor_is_one_line():
    result = doctor("--adress", "auto")
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1


def test_doctor_checks_each_node_of_a_cluster(two_nodes):
    result = doctor("--address", two_nodes.address, OPEN)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 nodes, 2 CPUs" in result.stdout and "room for 2 (--num-actors 2)" in result.stdout
    assert result.stdout.count("same software, Procgen runs") == 2
    assert "priority" not in result.stdout  # the workers of this cluster have normal priority


def test_nodes_get_our_code_from_the_learner(two_nodes):
    """Even if a node has the learner's directory and the installed packages."""
    target = ClusterTarget(two_nodes.address, allow_unauthenticated=True)
    connection.connect(target, resolve("lab", {"num_actors": 1, "envs_per_actor": 4}))
    try:

        @ray.remote(num_cpus=1)
        def where() -> list[str]:
            import actors
            import common
            import evaluator
            import learner

            return [package.__path__[0] for package in (actors, common, evaluator, learner)]

        for path in ray.get(where.remote(), timeout=120):
            assert "working_dir_files" in path
    finally:
        connection.disconnect()


def test_node_with_other_software_is_named_by_doctor_and_learner(
    two_nodes, node_with_other_zstandard, run_learner, tiny, tmp_path
):
    result = doctor("--address", two_nodes.address, OPEN)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "zstandard 9.9.9 (the learner has 0.25.0)" in result.stdout
    assert result.stdout.count("same software, Procgen runs") == 2

    result = run_learner(*tiny, "--run-dir", tmp_path / "run", "--address", two_nodes.address, OPEN)
    assert result.returncode == 2, result.stdout + result.stderr
    error = result.stderr.splitlines()[-1]
    assert error.startswith("learner: nodes that cannot be used: node ")
    assert error.endswith("zstandard 9.9.9 (the learner has 0.25.0)") and error.count("node ") == 1
    assert not (tmp_path / "run").exists()


def test_doctor_names_what_is_wrong_with_the_inherited_environment(tmp_path):
    result = doctor(
        HOME="/dev/null", TMPDIR="/proc/missing", RAY_TMPDIR="/" + "x" * 60, RAY_ROTATION_MAX_BYTES="x", MPLBACKEND="Tk"
    )
    assert result.returncode == 1 and result.stderr == ""
    for what in ("none can be created", "/proc/missing is not", "RAY_TMPDIR=/xxx", "Ray reads RAY_ROTATION_MAX_BYTES"):
        assert what in result.stdout, result.stdout
    assert "fatal: 1" in result.stdout


def test_allowing_an_open_cluster_without_an_address_is_wrong_usage_of_doctor():
    result = doctor(OPEN)
    assert result.returncode == 2 and "has no effect without --address" in result.stderr
