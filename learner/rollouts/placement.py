"""What the cluster has room for and which of its nodes are leaving, asked of Ray."""

from collections.abc import Mapping
from pathlib import Path

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

    Without its sockets a raylet goes on with the workers it has. What deletes old files in /tmp may delete them.
    """
    try:  # a private API, as below
        from ray._private.worker import global_worker

        node = global_worker.node
        sockets = (node.raylet_socket_name, node.plasma_store_socket_name)  # type: ignore[union-attr]
        if all(Path(socket).exists() for socket in sockets):
            return None
        return (
            f"files of Ray in {node.get_session_dir_path()} were deleted: no actor can be started on this host until "  # type: ignore[union-attr]
            "Ray is started again"
        )
    except Exception:
        return None


def is_only_node() -> bool:
    """Whether the learner's node is the cluster's only one."""
    return sum(node["Alive"] for node in ray.nodes()) == 1


def draining_nodes() -> frozenset[str]:
    """Hexadecimal ids of the nodes that Ray is draining. Ray has no public API for this; Ray Serve uses this one."""
    try:
        from ray._private.worker import global_worker

        return frozenset(global_worker.gcs_client.get_draining_nodes())  # type: ignore[attr-defined]
    except Exception:  # if the private API changes, a drain is noticed when the node is gone
        return frozenset()
