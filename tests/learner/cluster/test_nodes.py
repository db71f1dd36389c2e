"""What nodes answer to a probe, without a cluster: Ray's part is a stand-in."""

from typing import Any

import pytest
import ray

from common.versions import software
from learner.cluster import nodes
from learner.cluster.nodes import Node, ProbeResult
from learner.cluster.target import ClusterError

NEAR = Node("a" * 56, "10.0.0.1", "near", {"CPU": 8.0})
FAR = Node("b" * 56, "10.0.0.2", "far", {"CPU": 8.0})
HEAD = Node("c" * 56, "10.0.0.3", "head", {"CPU": 0.0})


class Function:
    """Stands for a remote function: each node's answer is a value, an error to raise, or TimeoutError for none."""

    def __init__(self, answers: dict[str, Any]):
        self.answers = answers
        self.canceled: list[Any] = []

    def options(self, scheduling_strategy: Any) -> "Function":
        assert not scheduling_strategy.soft  # another node's answer would be no answer
        self.node_id = scheduling_strategy.node_id
        return self

    def remote(self) -> Any:
        return self.answers[self.node_id]

    def get(self, reference: Any, timeout: float) -> Any:
        if isinstance(reference, Exception):
            raise reference
        return reference

    def cancel(self, reference: Any, force: bool) -> None:
        assert force  # a task that hangs does not end by itself
        self.canceled.append(reference)


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Replaces Ray by nodes with the given answers."""

    def answer(*answers: tuple[Node, Any]) -> Function:
        function = Function({node.node_id: value for node, value in answers})
        monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: (references, []))
        monkeypatch.setattr(ray, "get", function.get)
        monkeypatch.setattr(ray, "cancel", function.cancel)
        monkeypatch.setattr(nodes, "software_probe", function)
        monkeypatch.setattr(nodes, "living_nodes", lambda: [node for node, _ in answers])
        return function

    return answer


def test_living_nodes_are_those_that_ray_calls_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.1", "NodeManagerHostname": "near"}
    dead = {**described, "NodeID": "d" * 56, "Alive": False}  # a dead node has no Resources
    monkeypatch.setattr(ray, "nodes", lambda: [{**described, "Alive": True, "Resources": {"CPU": 8.0}}, dead])
    assert nodes.living_nodes() == [NEAR]


def test_node_is_named_by_address_and_host_and_holds_actors_if_it_has_a_cpu() -> None:
    assert NEAR.name == "node 10.0.0.1 (near)"
    assert [node.can_hold_actors for node in (NEAR, HEAD, Node("e", "", "", {}))] == [True, False, False]


def test_probe_returns_a_value_or_the_reason_for_each_node(answering: Any) -> None:
    silent = ray.exceptions.GetTimeoutError("Get timed out")
    lost = ray.exceptions.NodeDiedError("the node died")
    function = answering((NEAR, 7), (FAR, silent), (HEAD, lost))
    assert nodes.probe(function, [NEAR, FAR, HEAD], timeout=5.4) == [
        ProbeResult(NEAR, 7),
        ProbeResult(FAR, error="no answer within 5 s"),
        ProbeResult(HEAD, error="the node died"),
    ]
    assert function.canceled == [silent]


def test_probe_of_no_nodes_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", lambda *_args, **_options: pytest.fail("Ray refuses to wait for nothing"))
    assert nodes.probe(Function({}), [], timeout=5) == []


def test_stop_interrupts_waiting_for_a_node(answering: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answering((NEAR, dict(software())))
    monkeypatch.setattr(ray, "wait", lambda references, num_returns, timeout: ([], references))
    polls = iter([None, None, KeyboardInterrupt])

    def poll() -> None:
        if (error := next(polls)) is not None:
            raise error

    with pytest.raises(KeyboardInterrupt):
        nodes.require_same_software(60, poll)


def test_nodes_with_the_learners_software_are_accepted(answering: Any) -> None:
    answering((NEAR, dict(software())), (HEAD, {"torch": "0"}))  # no actor is placed on the head
    nodes.require_same_software(5)


def test_unusable_nodes_are_all_named_with_their_reasons(answering: Any) -> None:
    silent = ray.exceptions.GetTimeoutError("Get timed out")
    answering((NEAR, {**software(), "torch": "0.1"}), (FAR, silent))
    with pytest.raises(ClusterError) as refused:
        nodes.require_same_software(5)
    assert str(refused.value) == (
        f"nodes that cannot be used: node 10.0.0.1 (near): torch 0.1 (the learner has {software()['torch']}); "
        "node 10.0.0.2 (far): no answer within 5 s"
    )
