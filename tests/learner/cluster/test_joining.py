"""Sizes, code and errors of a connection, without a cluster: Ray's part is a stand-in."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from common.messages import rollout_bytes
from common.policy_network import PolicyNetwork
from common.process import restored_afterwards
from common.resolution import resolve
from learner.cluster import connection
from learner.cluster.connection import (
    OBJECT_STORE_SLACK,
    SPILLING_THRESHOLD,
    connect,
    object_store_bytes_needed,
    our_code,
)
from learner.cluster.target import ClusterError, ClusterTarget
from learner.stopping import StopRequested, StopSignals


def test_object_store_holds_rollouts_weights_and_slack_below_spilling() -> None:
    config = resolve("lab", {"num_actors": 3, "envs_per_actor": 2, "unroll_length": 16, "num_minibatches": 2})
    contents = 4 * rollout_bytes(16, 2) + 2 * 4 * 626_256 + OBJECT_STORE_SLACK
    assert object_store_bytes_needed(config) * SPILLING_THRESHOLD == pytest.approx(contents, abs=1)


@pytest.mark.parametrize("network", [{}, {"encoder": "impoola"}, {"width": 4}], ids=str)
def test_object_store_holds_the_weights_of_every_version_in_use(network: dict[str, Any]) -> None:
    one, five = (resolve("lab", {"mode": "overlap", "max_policy_lag": lag, **network}) for lag in (1, 5))
    weights = sum(array.nbytes for array in PolicyNetwork(one.network).weights().values())
    added = object_store_bytes_needed(five) - object_store_bytes_needed(one)
    assert added * SPILLING_THRESHOLD == pytest.approx(4 * weights, abs=1)


def test_node_gets_our_four_packages_without_compiled_files_while_joining() -> None:
    with our_code() as runtime_env:
        directory = Path(runtime_env["working_dir"])
        assert sorted(path.name for path in directory.iterdir()) == ["actors", "common", "evaluator", "learner"]
        assert (directory / "learner" / "cluster" / "connection.py").is_file()
        assert not list(directory.rglob("__pycache__"))
    assert not directory.exists()


@pytest.mark.parametrize("error", [RuntimeError("refused\nand more"), ValueError("refused"), OSError("refused")])
def test_error_of_ray_while_joining_becomes_one_line(error: Exception) -> None:
    refused = pytest.raises(ClusterError, match=r"^no Ray cluster could be joined: refused$")
    with refused, connection._ray_starting("no Ray cluster could be joined", embedded=False):
        raise error


@pytest.fixture
def answering_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cluster answers, without a token."""
    monkeypatch.setattr(connection, "_wait_for_port", lambda *_arguments: None)
    monkeypatch.setattr(connection.authentication, "requires_token", lambda *_arguments: False)
    monkeypatch.setattr(connection.authentication, "reload_mode", lambda: None)
    monkeypatch.setattr(connection, "set_ray_authentication", lambda mode: None)
    monkeypatch.setattr(connection.ray, "init", lambda *_args, **_options: None)


@pytest.mark.parametrize("target", [None, ClusterTarget("10.0.0.1:6379")], ids=["embedded", "cluster"])
@pytest.mark.usefixtures("answering_cluster")
def test_sigterm_while_ray_starts_is_handled_like_any_other_signal(
    monkeypatch: pytest.MonkeyPatch, target: ClusterTarget | None
) -> None:
    def init(*_args: object, **_options: object) -> None:
        # As `ray.init` begins.
        ray._private.utils.set_sigterm_handler(lambda signum, _frame: sys.exit(signum))
        os.kill(os.getpid(), signal.SIGTERM)
        raise StopHere

    class StopHere(BaseException):
        pass

    monkeypatch.setattr(connection.ray, "init", init)
    monkeypatch.setattr(connection, "_require_what_ray_needs", lambda *_arguments: [])
    with StopSignals() as stop, restored_afterwards():
        with pytest.raises(StopHere):
            connect(target, resolve("lab", {}), stop.check)
        with pytest.raises(StopRequested, match=r"^SIGTERM$"):
            stop.check()


@pytest.mark.usefixtures("answering_cluster")
def test_cluster_whose_object_store_is_too_small_is_left_again(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(connection, "_object_store_bytes", lambda: 200 << 20)
    monkeypatch.setattr(connection, "disconnect", lambda: left.append(True))
    config = resolve("lab", {})
    with pytest.raises(ClusterError) as refused:
        connect(ClusterTarget("10.0.0.1:6379"), config)
    assert left == [True]
    needed = object_store_bytes_needed(config)
    assert "the object store of the learner's node has 200 MiB" in str(refused.value)
    assert str(refused.value).endswith(f"start Ray on this node with --object-store-memory {needed}")
