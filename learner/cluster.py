"""Joining a Ray cluster or starting an embedded one, and checking that it can carry the run."""

import contextlib
import logging
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator

import ray

from common.config import Config
from common.messages import rollout_bytes
from common.process import prepare_ray_environment

SHARED_MEMORY = "/dev/shm"
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


def connect(config: Config, address: str | None) -> str:
    """Joins the cluster at `address` (or RAY_ADDRESS), or starts a local one; returns a line that says which.

    Raises:
        ClusterError: nothing answers within `cluster_timeout`, this host is no node of the cluster, or shared memory
            is too small for the rollouts in flight.
    """
    prepare_ray_environment()
    needed = object_store_bytes_needed(config)
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        _check_shared_memory(needed)
        _init("local", object_store_memory=needed)
        return f"embedded local Ray, {ray.cluster_resources().get('CPU', 0):.0f} CPUs"
    assert address is not None
    if address.startswith("ray://"):
        raise ClusterError(
            f"--address {address}: Ray Client is too slow for rollouts; run on a cluster node with --address auto"
        )
    if address != "auto":
        _wait_for_port(address, config.cluster_timeout)
    _init(address)
    store = ray.cluster_resources().get("object_store_memory", 0)
    if store < needed:
        disconnect()
        raise ClusterError(
            f"the cluster's object store has {_mib(store)} MiB, the rollouts in flight need {_mib(needed)} MiB: "
            f"start Ray with --object-store-memory {needed}"
        )
    resources = ray.cluster_resources()
    return f"Ray cluster at {address}, {len(ray.nodes())} nodes, {resources.get('CPU', 0):.0f} CPUs"


def disconnect() -> None:
    """Leaves the cluster; ends it if it is the embedded one."""
    ray.shutdown()


def _init(address: str, object_store_memory: int | None = None) -> None:
    try:
        with _silent_stderr():
            ray.init(
                address=address,
                object_store_memory=object_store_memory,
                include_dashboard=False if address == "local" else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        # Ray shows its token to a local cluster and to `auto`, but to HOST:PORT only when told to.
        told = address in ("auto", "local") or "RAY_AUTH_MODE" in os.environ
        hint = "" if told else "; if it asks for a token, set RAY_AUTH_MODE=token"
        raise ClusterError(f"no Ray cluster could be used at --address {address}: {reason}{hint}") from error


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
