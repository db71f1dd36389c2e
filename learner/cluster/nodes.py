"""Asking the nodes of a joined cluster what they are made of, each by a task that Ray runs there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from learner.cluster.remote_errors import cause_in_one_line
from common.versions import differences, software
from learner.cluster.connection import ClusterError
from learner.cluster.machine_checks import Check, node_checks


@dataclass(frozen=True, slots=True)
class Node:
    """One living node, as Ray describes it."""

    node_id: str
    address: str
    host: str
    resources: Mapping[str, float]

    @property
    def name(self) -> str:
        return f"node {self.address} ({self.host})"


def nodes() -> list[Node]:
    """The cluster's living nodes."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["NodeManagerHostname"], node.get("Resources", {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


@ray.remote(num_cpus=0, max_retries=0)
def software_there() -> dict[str, str]:
    """The versions a node has."""
    return dict(software())


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)
def checks_there() -> list[Check]:
    """All that can be checked on a node; the process that imported torch and Procgen for it ends."""
    return node_checks()


def ask(question: Any, asked: list[Node], timeout: float) -> list[tuple[Node, Any]]:
    """What `question`, a remote function without arguments, returns on each node; a str where it did not."""
    references = []
    for node in asked:
        there = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
        references.append(question.options(scheduling_strategy=there).remote())
    if references:
        ray.wait(references, num_returns=len(references), timeout=timeout)
    answers: list[tuple[Node, Any]] = []
    for node, reference in zip(asked, references, strict=True):
        try:
            answers.append((node, ray.get(reference, timeout=0.1)))
        except ray.exceptions.GetTimeoutError:
            answers.append((node, f"no answer within {timeout:.0f} s"))
            ray.cancel(reference, force=True)
        except ray.exceptions.RayError as error:
            answers.append((node, cause_in_one_line(error)))
    return answers


def require_same_software(timeout: float) -> None:
    """Raises ClusterError, one line that names each node that could hold actors and has other software than this."""
    if problems := nodes_with_other_software(timeout):
        told = "; ".join(f"{node.name}: {problem}" for node, problem in problems)
        raise ClusterError(f"nodes that cannot be used: {told}")


def nodes_with_other_software(timeout: float) -> list[tuple[Node, str]]:
    """Nodes that could hold actors and have other software than this process, or do not answer, and what it is."""
    ours = software()
    problems = []
    for node, answer in ask(software_there, [n for n in nodes() if n.resources.get("CPU", 0) >= 1], timeout):
        differing = [answer] if isinstance(answer, str) else differences(ours, answer)
        if differing:
            problems.append((node, ", ".join(differing)))
    return problems
