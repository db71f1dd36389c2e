"""What the cluster has room for and which of its nodes are leaving, asked of Ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray


def capacity(gpus_each: float) -> int:
    """How many actors the whole cluster can hold, with one CPU and `gpus_each` of a GPU each."""
    return _fitting(ray.cluster_resources(), gpus_each)


def room(gpus_each: float) -> int:
    """How many actors the cluster can hold beside what runs on it now."""
    return _fitting(ray.available_resources(), gpus_each)


def _fitting(resources: Mapping[str, float], gpus_each: float) -> int:
    by_cpus = int(resources.get("CPU", 0))
    return by_cpus if not gpus_each else min(by_cpus, int(resources.get("GPU", 0) / gpus_each + 1e-6))


def shortage(num_actors: int, gpus_each: float) -> str:
    """What `num_actors` need and what the cluster has, for an error message."""
    needs = f"one CPU and {gpus_each:g} of a GPU" if gpus_each else "one CPU"
    total, free = ray.cluster_resources(), ray.available_resources()
    have = " and ".join(
        f"{total.get(kind, 0):g} {kind}s, {free.get(kind, 0):g} of them free"
        for kind in (["CPU", "GPU"] if gpus_each else ["CPU"])
    )
    return f"each of --num-actors {num_actors} needs {needs}; the cluster has {have}"


def damage_of_this_node() -> str | None:
    """Why no process can be started on this host until Ray is started again, in one line; None: nothing known.

    A raylet whose sockets were deleted, perhaps with old files in /tmp, goes on with the workers it has. One that was
    stopped deletes them itself. Asks nothing of Ray, which might not answer any more.
    """
    try:  # a private API, as below
        from ray._private.worker import global_worker

        node: Any = global_worker.node
        if all(Path(socket).exists() for socket in (node.raylet_socket_name, node.plasma_store_socket_name)):
            return None
        return (
            f"Ray's sockets in {node.get_session_dir_path()} are gone (deleted, or `ray stop`): no actor can be "
            "started on this host until Ray is started again"
        )
    except Exception:
        return None


def draining_nodes() -> frozenset[str]:
    """Hexadecimal ids of the nodes that Ray is draining. Ray has no public API for this; Ray Serve uses this one."""
    try:
        from ray._private.worker import global_worker

        return frozenset(global_worker.gcs_client.get_draining_nodes())  # type: ignore[attr-defined]
    except Exception:  # if the private API changes, a drain is noticed when the node is gone
        return frozenset()
