"""What only this user can reach of an embedded Ray, and which processes it has."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import parameter, ray_constants, utils
from ray._private.node import Node

from learner.cluster.embedded import (
    MAX_DIRECTORY_LENGTH,
    directory_for_ray,
    only_loopback,
    only_needed_processes,
    private_directory,
    private_token,
    provide_token,
    start_embedded_ray,
    token_can_be_used,
)
from learner.cluster.target import ClusterError
from tests.conftest import wait_until

AGENT_PORT = ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def test_private_directory_is_created_for_its_user_alone_and_reused(tmp_path: Path) -> None:
    path = private_directory(tmp_path)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_uid == os.getuid()
    assert private_directory(tmp_path) == path


@pytest.mark.parametrize("trap", ["others may enter", "a link", "a file"])
def test_private_directory_prepared_by_somebody_else_is_refused(trap: str, tmp_path: Path) -> None:
    path = tmp_path / f"heldout-{os.getuid()}"
    if trap == "others may enter":
        path.mkdir()
        path.chmod(0o711)
    elif trap == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("")
    with pytest.raises(ClusterError, match=str(path)):
        private_directory(tmp_path)


def test_ray_listens_on_loopback_only_inside_the_context() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with only_loopback():
        assert not ray_constants.ENABLE_RAY_CLUSTER
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_ray_is_changed_only_inside_the_context() -> None:
    before = parameter.RayParams, Node.start_api_server, utils.get_dashboard_dependency_error
    with only_needed_processes():
        assert parameter.RayParams().no_monitor and utils.get_dashboard_dependency_error() is not None
    assert before == (parameter.RayParams, Node.start_api_server, utils.get_dashboard_dependency_error)
    assert not parameter.RayParams().no_monitor


@pytest.fixture
def another_ray_has_the_agent_port() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # another Ray has it indeed
            stack.enter_context(socket.create_server(("127.0.0.1", AGENT_PORT)))
        yield


class Echo:
    def echo(self, value: int) -> int:
        return value


@pytest.mark.processes
def test_embedded_ray_starts_only_what_it_needs_beside_another_ray(another_ray_has_the_agent_port) -> None:
    start_embedded_ray(100 << 20)
    try:
        actor = ray.remote(Echo).remote()
        assert ray.get(actor.echo.remote(5)) == 5
        processes = psutil.Process().children(recursive=True)
        commands = [process.cmdline() for process in processes if process.name() != "raylet"]
        assert not [words for words in commands if "ray::IDLE" in words[0] or "default_worker.py" in " ".join(words)]
        programs = {Path(word).name for process in processes for word in process.cmdline() if word.endswith(".py")}
        assert programs.isdisjoint({"monitor.py", "log_monitor.py", "dashboard.py"})
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        (port,) = [int(path.read_text()) for path in session.glob("dashboard_agent_listen_port_*")]
        assert port == -1  # the agent has no web server, which would try for three seconds to get its port
    finally:
        ray.shutdown()
    wait_until(lambda: not any(process.is_running() for process in processes))


@pytest.mark.parametrize("named", ["relative", "{tmp}/missing", "{tmp}/file", "/" + "x" * MAX_DIRECTORY_LENGTH])
def test_unusable_ray_tmpdir_is_refused_by_name(named: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", named.format(tmp=tmp_path))
    with pytest.raises(ClusterError, match="RAY_TMPDIR="):
        directory_for_ray()


def test_usable_ray_tmpdir_is_left_to_ray(monkeypatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert directory_for_ray() is None


@pytest.mark.parametrize(
    ("home", "token_path", "expected"),
    [
        ("{tmp}", None, True),
        ("/dev/null", None, False),
        ("/proc/nope", None, False),
        ("{tmp}", "{tmp}/missing", False),
        ("/dev/null", "{tmp}/token", True),
    ],
)
def test_home_or_token_path_that_ray_cannot_use_is_found(home, token_path, expected, tmp_path, monkeypatch) -> None:
    (tmp_path / "token").write_text("a" * 64)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", home.format(tmp=tmp_path))
    if token_path is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token_path.format(tmp=tmp_path))
    assert token_can_be_used() is expected


def test_private_token_is_created_once_for_its_user_alone(tmp_path: Path) -> None:
    path = private_token(tmp_path)
    content = path.read_text()
    assert len(content) == 64 and path.stat().st_mode & 0o777 == 0o600
    assert private_token(tmp_path).read_text() == content
    assert [file.name for file in path.parent.iterdir()] == ["auth_token"]


def told_path(home: str, token_path: str | None, tmp_path: Path, monkeypatch) -> Path:
    """The path that Ray is told after `provide_token`."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    (tmp_path / "ray").mkdir()
    if token_path is None:
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", token_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", os.environ.get("RAY_AUTH_TOKEN_PATH", ""))  # restored afterwards
    provide_token()
    return Path(os.environ["RAY_AUTH_TOKEN_PATH"])


def test_token_is_created_in_the_home_directory_for_its_user_alone(tmp_path: Path, monkeypatch) -> None:
    path = told_path(str(tmp_path), None, tmp_path, monkeypatch)
    assert path == tmp_path / ".ray" / "auth_token" and path.stat().st_mode & 0o777 == 0o600
    content = path.read_text()
    provide_token()
    assert path.read_text() == content and len(content) == 64


@pytest.mark.parametrize("home", ["", "relative", "/dev/null", "/proc/missing", "full"])
def test_token_is_private_where_the_home_directory_cannot_hold_it(home: str, tmp_path: Path, monkeypatch) -> None:
    if home == "full":
        (tmp_path / "home" / ".ray").mkdir(parents=True)
        (tmp_path / "home" / ".ray" / f"auth_token-{os.getpid()}").mkdir()  # where the token would be written
        home = str(tmp_path / "home")
    path = told_path(home, None, tmp_path, monkeypatch)
    assert path == tmp_path / "ray" / f"heldout-{os.getuid()}" / "auth_token" and path.stat().st_size


# Started as a program, which has one thread: a child that is forked from several may wait forever for a lock.
LEARNERS_THAT_START_TOGETHER = """
import multiprocessing, os, secrets, sys
from pathlib import Path
from learner.cluster.embedded import private_token

fork = multiprocessing.get_context("fork")
all_found_none = fork.Barrier(8)

def new_token(size):
    all_found_none.wait(60)
    return os.urandom(size).hex()

def start():
    os.write(1, private_token(Path(sys.argv[1])).read_bytes() + b"\\n")

secrets.token_hex = new_token
learners = [fork.Process(target=start) for _ in range(8)]
for learner in learners:
    learner.start()
for learner in learners:
    learner.join()
"""


def test_learners_that_start_together_for_the_first_time_get_the_same_token(tmp_path: Path) -> None:
    """Otherwise the first one's Ray would refuse processes that start after the second one replaced it."""
    command = [sys.executable, "-c", LEARNERS_THAT_START_TOGETHER, str(tmp_path)]
    tokens = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout.split()
    assert len(tokens) == 8 and set(tokens) == {private_token(tmp_path).read_text()}


def test_empty_token_file_of_an_interrupted_learner_is_filled(tmp_path: Path) -> None:
    path = private_token(tmp_path)
    path.write_text("")
    assert private_token(tmp_path) == path and len(path.read_text()) == 64


def test_token_is_created_where_the_file_system_has_no_hard_links(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links")

    monkeypatch.setattr(os, "link", refuse)
    assert len(private_token(tmp_path).read_text()) == 64


def test_named_token_file_that_is_missing_is_not_created(tmp_path: Path, monkeypatch) -> None:
    path = told_path(str(tmp_path), str(tmp_path / "named"), tmp_path, monkeypatch)
    assert path.is_relative_to(tmp_path / "ray") and not (tmp_path / "named").exists()


def test_directory_for_ray_is_found_without_creating_it(tmp_path: Path) -> None:
    assert private_directory(tmp_path, create=False) == tmp_path / f"heldout-{os.getuid()}"
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClusterError, match="not a writable directory"):
        private_directory(tmp_path / "missing", create=False)
