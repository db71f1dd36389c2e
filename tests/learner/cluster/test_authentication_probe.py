"""What the probe sends, when it tries again and how it reads the head's answer."""

import json
import socket
import subprocess
from types import SimpleNamespace

import pytest

from learner.cluster import authentication_probe
from learner.cluster.authentication_probe import Answer, ask_head, probe


def run_printing(monkeypatch: pytest.MonkeyPatch, *outputs: str) -> list[dict[str, str]]:
    """Replaces the probe's processes by ones that print these; returns the list of their environments."""
    environments: list[dict[str, str]] = []
    remaining = [output.encode() for output in outputs]

    def start(*_args: object, env: dict[str, str], **_options: object) -> SimpleNamespace:
        environments.append(env)
        output = remaining.pop(0)
        return SimpleNamespace(
            communicate=lambda timeout: (output, None), kill=lambda: None, wait=lambda: 9, returncode=9
        )

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return environments


REFUSED = json.dumps({"verdict": "refused"})
STARTING = json.dumps({"verdict": "unavailable", "reason": "the head has no node yet", "may_retry": True})
WRONG_VERSION = json.dumps({"verdict": "unavailable", "reason": "no answer: another protocol", "may_retry": False})


def test_probe_sends_no_token_unless_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    environments = run_printing(monkeypatch, REFUSED, REFUSED)
    assert probe("10.0.0.1:6379", with_token=False) == probe("10.0.0.1:6379", with_token=True) == Answer("refused")
    sent = [(env["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in env) for env in environments]
    assert sent == [("disabled", False), ("token", True)]


def test_probe_retries_only_answers_that_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    admitted = json.dumps({"verdict": "admitted", "nodes": ["10.0.0.1"]})
    environments = run_printing(monkeypatch, STARTING, "", "no JSON", admitted)
    assert probe("auto", with_token=False) == Answer("admitted", ("10.0.0.1",))
    assert len(environments) == 4

    environments = run_printing(monkeypatch, WRONG_VERSION)
    assert probe("auto", with_token=False).reason == "no answer: another protocol"
    assert len(environments) == 1


def test_probe_gives_up_after_its_retry_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication_probe, "RETRY_PERIOD", -1.0)
    run_printing(monkeypatch, "")
    answer = probe("auto", with_token=False)
    assert answer.verdict == "unavailable" and answer.reason.endswith("ended with exit code 9")


def test_probe_of_a_port_without_ray_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication_probe, "RETRY_PERIOD", 0.0)
    with socket.create_server(("127.0.0.2", 0)) as server:
        answer = probe(f"127.0.0.2:{server.getsockname()[1]}", with_token=False)
    assert answer.verdict == "unavailable" and answer.reason.startswith("no answer: ")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], Answer("unavailable", reason="the head has no node yet", may_retry=True)),
        (["127.0.0.1"], Answer("admitted", ("10.0.0.1", "127.0.0.1"))),
    ],
)
def test_head_is_asked_for_its_nodes_and_its_own_address_is_one(nodes, expected, monkeypatch) -> None:
    class Client:
        def __init__(self, address: str) -> None:
            assert address == "10.0.0.1:6379"

        def get_all_node_info(self, **_: object) -> dict[int, SimpleNamespace]:
            return {number: SimpleNamespace(node_manager_address=node) for number, node in enumerate(nodes)}

    monkeypatch.setattr(authentication_probe, "GcsClient", Client)
    assert ask_head("10.0.0.1:6379") == expected


def test_stop_interrupts_a_probe_that_gets_no_answer() -> None:
    polls = iter([None, None, KeyboardInterrupt])

    def poll() -> None:
        if (error := next(polls)) is not None:
            raise error

    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(KeyboardInterrupt):
        probe(f"127.0.0.1:{silent.getsockname()[1]}", with_token=False, poll=poll)
