"""Runs probes on the nodes of a joined cluster: which software they have, and whether an actor can work there."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.versions import differences, software
from learner.cluster.limit_checks import worker_priority_check
from learner.cluster.machine_checks import Check, machine_checks
from learner.cluster.remote_errors import cause_in_one_line
from learner.cluster.target import ClusterError


@dataclass(frozen=True, slots=True)
class Node:
    """A living node, as Ray describes it."""

    node_id: str
    address: str
    host: str
    resources: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"node {self.address} ({self.host})"

    @property
    def can_hold_actors(self) -> bool:
        return self.resources.get("CPU", 0) >= 1


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe returned on `node`, or why it returned nothing: `error` is one line, empty on success."""

    node: Node
    value: Any = None
    error: str = ""


def living_nodes() -> list[Node]:
    """The cluster's living nodes."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerHostname"], node.get("Resources", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


@ray.remote(num_cpus=0, max_retries=0)
def software_probe() -> dict[str, str]:
    """The software versions of a node."""
    return dict(software())


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)
def machine_probe() -> tuple[dict[str, str], list[Check]]:
    """A node's software versions and checks. `max_calls` ends the process, which has imported torch and Procgen."""
    return dict(software()), [*machine_checks(actors=0), worker_priority_check(os.nice(0))]


def probe(
    function: Any, nodes: Sequence[Node], timeout: float, poll: Callable[[], None] = lambda: None
) -> list[ProbeResult]:
    """Runs `function`, a remote function without arguments, on each node, for at most `timeout` seconds in all.

    Calls `poll` while waiting, which may raise.
    """
    references = []
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        references.append(function.options(scheduling_strategy=on_node).remote())
    deadline = time.monotonic() + timeout
    waiting = references
    while waiting and (left := deadline - time.monotonic()) > 0:
        poll()
        _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=min(left, 0.5))
    results = []
    for node, reference in zip(nodes, references, strict=True):
        try:
            results.append(ProbeResult(node, ray.get(reference, timeout=0.1)))
        except ray.exceptions.GetTimeoutError:
            results.append(ProbeResult(node, error=f"no answer within {timeout:.0f} s"))
            ray.cancel(reference, force=True)
        except ray.exceptions.RayError as error:
            results.append(ProbeResult(node, error=cause_in_one_line(error)))
    return results


def require_same_software(timeout: float, poll: Callable[[], None] = lambda: None) -> None:
    """Raises ClusterError if a node that can hold actors has other software than this process or does not answer.

    Calls `poll` while waiting, which may raise.
    """
    problems = []
    for result in probe(software_probe, [node for node in living_nodes() if node.can_hold_actors], timeout, poll):
        if problem := result.error or ", ".join(differences(software(), result.value)):
            problems.append(f"{result.node.name}: {problem}")
    if problems:
        raise ClusterError(f"nodes that cannot be used: {'; '.join(problems)}")
