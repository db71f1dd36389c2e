"""How a cluster is joined after a head's answers, and which token Ray would send."""

import subprocess
import sys
from pathlib import Path

import pytest

from learner.cluster import authentication
from learner.cluster.authentication import Token, find_token, is_loopback, requires_token
from learner.cluster.authentication_probe import Answer
from learner.cluster.target import ClusterError, ClusterTarget

TARGET = ClusterTarget("10.0.0.1:6379")
ADMITTED, REFUSED = Answer("admitted", ("10.0.0.1", "10.0.0.2")), Answer("refused")
PRINT_RAYS_TOKEN = """
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
    """The head's answers to a process without a token and to one with ours."""
    answer_of = {False: without, True: with_token}
    monkeypatch.setattr(authentication, "probe", lambda address, with_token, poll: answer_of[with_token])


def test_token_is_the_one_that_ray_sends(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rays_token() -> str:
        out = subprocess.run([sys.executable, "-c", PRINT_RAYS_TOKEN], capture_output=True, text=True, check=True)
        return out.stdout.strip()

    default, named = home / ".ray" / "auth_token", home / "named"
    assert find_token() == Token(str(default), default, False)
    default.parent.mkdir()
    default.write_text("d" * 64)
    assert find_token() == Token(str(default), default, True)
    assert rays_token() == "d" * 64

    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert find_token() == Token(f"{named} (RAY_AUTH_TOKEN_PATH)", named, False)
    named.write_text("")
    assert not find_token().exists
    named.write_text("n" * 64)
    assert find_token().exists
    assert rays_token() == "n" * 64

    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    assert find_token() == Token("RAY_AUTH_TOKEN", None, True)
    assert rays_token() == "e" * 64


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("127.0.0.2", False), ("10.0.0.1", False), ("", False)],
)
def test_loopback_is_what_ray_keeps_off_other_interfaces(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("mode", [None, "token", "disabled"])
def test_open_cluster_is_refused_in_every_authentication_mode(mode, our_token, monkeypatch) -> None:
    answers(monkeypatch, ADMITTED, ADMITTED)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    expected = r"at --address 10\.0\.0\.1:6379 runs without authentication on 10\.0\.0\.1, 10\.0\.0\.2: anyone who"
    with pytest.raises(ClusterError, match=expected) as refused:
        requires_token(TARGET)
    assert "RAY_AUTH_MODE=token" in str(refused.value) and "\n" not in str(refused.value)


def test_open_cluster_that_is_allowed_is_joined_without_a_token_and_with_a_warning(
    our_token, monkeypatch, capsys
) -> None:
    answers(monkeypatch, ADMITTED, ADMITTED)
    assert not requires_token(ClusterTarget("10.0.0.1:6379", allow_unauthenticated=True))
    warning = capsys.readouterr().err
    assert warning.startswith("learner: warning: ") and "can run code" in warning and warning.count("\n") == 1


def test_cluster_with_one_node_beyond_loopback_is_open(monkeypatch) -> None:
    answers(monkeypatch, Answer("admitted", ("127.0.0.1", "10.0.0.9")))
    with pytest.raises(ClusterError, match=r"without authentication on 10\.0\.0\.9:"):
        requires_token(TARGET)


def test_cluster_on_loopback_needs_no_token(monkeypatch, capsys) -> None:
    answers(monkeypatch, Answer("admitted", ("127.0.0.1", "127.0.0.1")))
    assert not requires_token(TARGET)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("allowed", [False, True])
def test_cluster_that_requires_a_token_gets_ours(allowed, our_token, monkeypatch) -> None:
    answers(monkeypatch, REFUSED, ADMITTED)
    assert requires_token(ClusterTarget("10.0.0.1:6379", allow_unauthenticated=allowed))


def test_missing_wrong_or_disabled_token_is_reported_with_what_to_do(home, monkeypatch) -> None:
    answers(monkeypatch, REFUSED, REFUSED)
    with pytest.raises(ClusterError, match=r"none was found in .*/\.ray/auth_token: copy the head's token file"):
        requires_token(TARGET)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "e" * 64)
    with pytest.raises(ClusterError, match="refused the one in RAY_AUTH_TOKEN") as refused:
        requires_token(TARGET)
    assert "e" * 64 not in str(refused.value)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is 'disabled': unset it"):
        requires_token(TARGET)


def test_cluster_that_does_not_answer_is_refused_with_the_source_of_its_address(monkeypatch) -> None:
    answers(monkeypatch, Answer("unavailable", reason="no answer: timed out", may_retry=True))
    target = ClusterTarget("auto", "RAY_ADDRESS", allow_unauthenticated=True)
    with pytest.raises(
        ClusterError, match=r"^no Ray cluster could be joined at RAY_ADDRESS=auto: no answer: timed out$"
    ):
        requires_token(target)
