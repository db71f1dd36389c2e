"""Joining a Ray cluster or starting an embedded one, and checking that it can carry the run."""

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from common.config import Config
from common.messages import rollout_bytes
from common.process import prepare_ray_environment, set_ray_authentication
from common.versions import package_directories
from learner.cluster import authentication
from learner.cluster.authentication import AccessError
from learner.cluster.machine_checks import SHARED_MEMORY

# Weights, Ray's own objects and the slack its allocator needs.
OBJECT_STORE_SLACK = 128 << 20
# Beyond this share of the object store Ray begins to move objects to the disk.
SPILLING_BEGINS = 0.8


class ClusterError(RuntimeError):
    """Ray cannot be used as asked; the message is one line for the user."""


def object_store_bytes_needed(config: Config) -> int:
    """Every actor may hold one finished rollout, and the one before it may not be freed yet."""
    per_rollout = rollout_bytes(config.unroll_length, config.envs_per_actor)
    return int((per_rollout * (config.num_actors + 1) + OBJECT_STORE_SLACK) / SPILLING_BEGINS)


def connect(config: Config, address: str | None, allow_unauthenticated: bool = False) -> str:
    """Joins the cluster at `address` (or RAY_ADDRESS), or starts a local one; returns a line that says which.

    Raises:
        ClusterError: nothing answers within `cluster_timeout`, the cluster is open to anyone and that is not allowed,
            it does not let us in, this host is no node of it, or shared memory is too small for the rollouts in flight.
    """
    prepare_ray_environment()
    needed = object_store_bytes_needed(config)
    address = address_to_join(address)
    if address is None:
        _check_shared_memory(needed)
        _start_embedded(needed)
        return f"embedded local Ray, {ray.cluster_resources().get('CPU', 0):.0f} CPUs"
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: Ray Client is too slow for rollouts; run on a cluster node with --address auto"
        )
    if address != "auto":
        _wait_for_port(address, config.cluster_timeout)
    access = _access_to(address, allow_unauthenticated)
    _join(address)
    store = _object_store_here()
    if store < needed:
        disconnect()
        raise ClusterError(
            f"the object store of the learner's node has {_mib(store)} MiB, the rollouts in flight need "
            f"{_mib(needed)} MiB: start Ray here with --object-store-memory {needed}"
        )
    resources = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    return f"Ray cluster at {address}, {alive} nodes, {resources.get('CPU', 0):.0f} CPUs, {access}"


def _object_store_here() -> float:
    """Bytes of the object store of this process's node, to which every rollout comes."""
    here = ray.get_runtime_context().get_node_id()
    return next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == here)


def _access_to(address: str, allow_unauthenticated: bool) -> str:
    """Makes this process speak as the cluster does, with a token or without; returns which of them."""
    try:
        access = authentication.access_to(address, allow_unauthenticated)
    except AccessError as error:
        raise ClusterError(str(error)) from error
    set_ray_authentication(access.mode)
    authentication.reload_mode()
    if access.warning is not None:
        print(f"learner: warning: {access.warning}", file=sys.stderr)
    return "token authentication" if access.mode == "token" else "no authentication"


def address_to_join(address: str | None) -> str | None:
    """`address`, else RAY_ADDRESS; None where that means an embedded local Ray."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


@contextlib.contextmanager
def our_code() -> Iterator[dict[str, Any]]:
    """A runtime environment that brings our four packages, as they are here, to every node that is joined.

    As its `working_dir`: Ray then does not look for code in the learner's current directory, whose namesake on another
    host may hold an older copy.
    """
    with tempfile.TemporaryDirectory(prefix="heldout-code-") as directory:
        for package in package_directories():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package, Path(directory) / package.name, ignore=ignored)
        yield {"working_dir": directory}


def disconnect() -> None:
    """Leaves the cluster; ends it if it is the embedded one."""
    ray.shutdown()


def _start_embedded(object_store_memory: int) -> None:
    """A Ray of our own, reached from this host and by this user only."""
    with _one_line_errors("local"), authentication.only_loopback(), _silent_stderr():
        ray.init(
            address="local",
            object_store_memory=object_store_memory,
            include_dashboard=False,
            # Nobody would read them, and their port answers without a token.
            _system_config={"enable_metrics_collection": False},
            _temp_dir=None if "RAY_TMPDIR" in os.environ else str(authentication.private_directory() / "ray"),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def _join(address: str) -> None:
    with _one_line_errors(address), our_code() as runtime_env, _silent_stderr():
        ray.init(address=address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)


@contextlib.contextmanager
def _one_line_errors(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError, AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(f"no Ray cluster could be used at --address {address}: {reason}") from error


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Ray's C++ repeats a refused connection on file descriptor 2 every second; the exception says it once."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_shared_memory(needed: int) -> None:
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise ClusterError(f"{SHARED_MEMORY} cannot be used: {error.strerror}") from error
    if free < needed:
        raise ClusterError(
            f"{SHARED_MEMORY} has {_mib(free)} MiB free, the rollouts in flight need {_mib(needed)} MiB: "
            f"enlarge it (docker: --shm-size {_mib(needed)}m) or lower --unroll-length or --envs-per-actor"
        )


def _wait_for_port(address: str, timeout: float) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"--address {address!r} is neither auto nor HOST:PORT")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=min(5.0, timeout)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or str(error)
                raise ClusterError(
                    f"no Ray cluster answers at --address {address} within {timeout:.0f} s: {reason}"
                ) from error
            time.sleep(0.5)


def _mib(count: float) -> int:
    """Rounded up: as much memory is enough."""
    return -(-int(count) // 2**20)
