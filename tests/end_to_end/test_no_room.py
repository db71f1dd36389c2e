"""A cluster without a single free CPU."""

import pytest
from ray.cluster_utils import Cluster


@pytest.fixture
def no_cpus():
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": 200 << 20, "include_dashboard": False},
    )
    yield cluster
    cluster.shutdown()


def test_no_actor_placed_stops_the_run_with_one_line(no_cpus, run_learner, tiny, tmp_path):
    result = run_learner(*tiny, "--run-dir", tmp_path / "run", "--address", no_cpus.address, "--cluster-timeout", "3")
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.splitlines() == [
        "learner: no actor could be placed within 3 s: each of --num-actors 2 needs one CPU, "
        "the cluster has 0 and 0 of them are free"
    ]
    assert not (tmp_path / "run").exists()
