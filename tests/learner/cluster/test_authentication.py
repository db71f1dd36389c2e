"""What is decided from a head's answers, which token is meant, and what only its user can reach."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private import ray_constants

from learner.cluster import authentication
from learner.cluster.authentication import (
    AccessError,
    Answer,
    access_to,
    is_loopback,
    only_loopback,
    private_directory,
    token_description,
)

ADMITTED, REFUSED = Answer("admitted", ("10.0.0.1", "10.0.0.2")), Answer("refused")
WHICH_TOKEN = """
from ray._raylet import AuthenticationTokenLoader
print(AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, and none of Ray's variables."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def our_token(home: Path) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("a" * 64)
    return path


def answers(monkeypatch: pytest.MonkeyPatch, without: Answer, with_token: Answer = REFUSED) -> None:
    """The head's answers to who shows no token, and to who shows ours."""
    monkeypatch.setattr(authentication, "ask", lambda address, shows_token: with_token if shows_token else without)


def test_ray_takes_the_token_that_the_description_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken_by_ray() -> str:
        out = subprocess.run([sys.executable, "-c", WHICH_TOKEN], capture_output=True, text=True, check=True)
        return out.stdout.strip()

    default, named = home / ".ray" / "auth_token", home / "named"
    assert token_description() == authentication.Token(f"none in {default}", default, False)
    default.parent.mkdir()
    default.write_text("d" * 64)
    assert token_description() == authentication.Token(f"in {default}", default, True)
    assert taken_by_ray() == "d" * 64

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert not token_description().exists
    named.write_text("")
    assert not token_description().exists
    named.write_text("n" * 64)
    assert token_description().path == named and token_description().exists
    assert taken_by_ray() == "n" * 64

    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    assert token_description() == authentication.Token("in RAY_AUTH_TOKEN", None, True)
    assert taken_by_ray() == "e" * 64


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.0.0.2", False), ("10.0.0.1", False), ("", False)],
)
def test_loopback_is_what_ray_keeps_off_other_interfaces(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("mode", [None, "token", "disabled"])
def test_an_open_cluster_is_refused_whatever_we_would_show(mode, our_token, monkeypatch) -> None:
    answers(monkeypatch, ADMITTED, ADMITTED)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(
        AccessError, match=r"without authentication on 10\.0\.0\.1, 10\.0\.0\.2: anyone who reaches"
    ) as refused:
        access_to("10.0.0.1:6379", allow_unauthenticated=False)
    assert "RAY_AUTH_MODE=token" in str(refused.value) and "\n" not in str(refused.value)


def test_an_open_cluster_that_is_allowed_is_joined_without_a_token_and_with_a_warning(our_token, monkeypatch) -> None:
    answers(monkeypatch, ADMITTED, ADMITTED)
    access = access_to("10.0.0.1:6379", allow_unauthenticated=True)
    assert access.mode == "disabled"
    assert access.warning is not None and "can run code" in access.warning


def test_one_node_beyond_loopback_makes_a_cluster_open(monkeypatch) -> None:
    answers(monkeypatch, Answer("admitted", ("127.0.0.1", "10.0.0.9")))
    with pytest.raises(AccessError, match=r"without authentication on 10\.0\.0\.9:"):
        access_to("auto", allow_unauthenticated=False)


def test_a_cluster_on_loopback_needs_no_token(monkeypatch) -> None:
    answers(monkeypatch, Answer("admitted", ("127.0.0.1", "127.0.0.1")))
    assert access_to("auto", allow_unauthenticated=False) == authentication.Access("disabled")


@pytest.mark.parametrize("allowed", [False, True])
def test_a_cluster_that_asks_for_a_token_gets_ours(allowed, our_token, monkeypatch) -> None:
    answers(monkeypatch, REFUSED, ADMITTED)
    assert access_to("10.0.0.1:6379", allow_unauthenticated=allowed) == authentication.Access("token")


def test_a_token_that_is_missing_or_wrong_or_switched_off_is_told_with_what_to_do(home, monkeypatch) -> None:
    answers(monkeypatch, REFUSED, REFUSED)
    with pytest.raises(AccessError, match=r"there is none in .*/\.ray/auth_token: copy the head's there"):
        access_to("auto", allow_unauthenticated=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    with pytest.raises(AccessError, match="refuses the token in RAY_AUTH_TOKEN") as refused:
        access_to("auto", allow_unauthenticated=False)
    assert "e" * 64 not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(AccessError, match="RAY_AUTH_MODE is 'disabled': unset it"):
        access_to("auto", allow_unauthenticated=False)


def test_where_something_else_listens_no_cluster_is_joined(home, monkeypatch) -> None:
    monkeypatch.setattr(authentication, "PATIENCE", 0.0)
    with socket.create_server(("127.0.0.2", 0)) as server:
        address = f"127.0.0.2:{server.getsockname()[1]}"
        nothing = rf"no Ray cluster could be used at --address {re.escape(address)}: no answer"
        with pytest.raises(AccessError, match=nothing):
            access_to(address, allow_unauthenticated=True)


def test_the_asking_process_shows_no_token_unless_told_to(our_token, monkeypatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    shown = []

    def ask_once(address: str, environment: dict[str, str]) -> Answer:
        shown.append((environment["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in environment))
        return REFUSED

    monkeypatch.setattr(authentication, "_ask_once", ask_once)
    authentication.ask("10.0.0.1:6379", shows_token=False)
    authentication.ask("10.0.0.1:6379", shows_token=True)
    assert shown == [("disabled", False), ("token", True)]


def test_the_private_directory_is_made_for_its_user_alone_and_used_again(tmp_path: Path) -> None:
    path = private_directory(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_uid == os.getuid()
    assert private_directory(tmp_path) == path


@pytest.mark.parametrize("trap", ["others may enter", "a link", "a file"])
def test_a_private_directory_that_somebody_prepared_is_refused(trap: str, tmp_path: Path) -> None:
    path = tmp_path / f"heldout-{os.getuid()}"
    if trap == "others may enter":
        path.mkdir()
        path.chmod(0o711)
    elif trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("")
    with pytest.raises(AccessError, match=str(path)):
        private_directory(tmp_path)


def test_loopback_is_asked_of_ray_only_inside() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with only_loopback():
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert before == ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([], Answer("silent", reason="no answer: the head has no node yet")),
        (["127.0.0.1"], Answer("admitted", ("10.0.0.1", "127.0.0.1"))),
    ],
)
def test_a_head_that_was_reached_from_elsewhere_or_has_no_node_yet_is_not_on_loopback(
    nodes, expected, monkeypatch
) -> None:
    class Client:
        def __init__(self, address: str) -> None:
            assert address == "10.0.0.1:6379"

        def get_all_node_info(self, **_: object) -> dict[int, SimpleNamespace]:
            return {number: SimpleNamespace(node_manager_address=node) for number, node in enumerate(nodes)}

    monkeypatch.setattr(authentication, "GcsClient", Client)
    assert authentication.asked("10.0.0.1:6379") == expected
