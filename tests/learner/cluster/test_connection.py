"""What a connection is called, and what is refused before Ray is started."""

import pytest

from common.config import resolve
from learner.cluster.connection import Connection, connect
from learner.cluster.target import ClusterError, ClusterTarget


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        (Connection(None, 1, 8, False), "embedded local Ray, 8 CPUs"),
        (Connection("auto", 1, 1, False), "Ray cluster at auto, 1 node, 1 CPU, no authentication"),
        (Connection("h:1", 2, 16, True), "Ray cluster at h:1, 2 nodes, 16 CPUs, token authentication"),
    ],
)
def test_connection_describes_itself(connection: Connection, expected: str) -> None:
    assert connection.describe() == expected


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("somewhere", "RAY_ADDRESS=somewhere is neither auto nor HOST:PORT"),
        ("host:0", "RAY_ADDRESS=host:0 is neither auto nor HOST:PORT"),
        ("ray://host:10001", "RAY_ADDRESS=ray://host:10001 is for Ray Client, which is too slow"),
        ("http://127.0.0.1:8265", "RAY_ADDRESS=http://127.0.0.1:8265 is an address of Ray's dashboard and job API"),
        ("host name:6379", "RAY_ADDRESS=host name:6379 is neither auto nor HOST:PORT"),
        ("host:6379/", "RAY_ADDRESS=host:6379/ is neither auto nor HOST:PORT"),
        ("127.0.0.1:1", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 within 0 s: Connection refused"),
    ],
)
def test_unusable_address_is_refused_with_the_name_of_its_source(address: str, message: str) -> None:
    config = resolve("lab", {"cluster_timeout": 0.01})
    with pytest.raises(ClusterError) as refused:
        connect(ClusterTarget(address, "RAY_ADDRESS"), config)
    assert str(refused.value).startswith(message)
