"""A cluster without a single free CPU."""

import pytest
from ray.cluster_utils import Cluster

from tests.conftest import HEAD


@pytest.fixture
def no_cpus():
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, **HEAD},
    )
    yield cluster
    cluster.shutdown()


def test_run_without_a_placed_actor_stops_with_one_line(no_cpus, run_learner, tiny_pair, tmp_path):
    where = ["--address", no_cpus.address, "--allow-unauthenticated", "--cluster-timeout", "3"]
    result = run_learner(*tiny_pair, "--run-dir", tmp_path / "run", *where)
    assert result.returncode == 2, result.stdout + result.stderr
    warning, error = result.stderr.splitlines()
    assert warning.startswith("learner: warning: ") and "runs without authentication" in warning
    assert error == (
        "learner: no actor could be placed within 3 s: each of --num-actors 2 needs one CPU; "
        "the cluster has 0 CPUs, 0 of them free"
    )
    assert not (tmp_path / "run").exists()


def test_actors_that_need_gpus_of_a_cluster_without_them_are_refused(run_learner, tiny_pair, tmp_path):
    result = run_learner(*tiny_pair, "--run-dir", tmp_path / "run", "--actor-gpus", "0.25", "--cluster-timeout", "3")
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("learner: no actor could be placed within 3 s: each of --num-actors 2 needs one CPU and")
    assert "0.25 of a GPU" in line and "0 GPUs, 0 of them free" in line
