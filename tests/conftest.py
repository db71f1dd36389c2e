"""What several test files share: the real `python -m learner` with settings so small that an update takes a second."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parent.parent

# 2 actors x 2 environments x 16 steps = 64 frames an update.
TINY = [
    *("--num-actors", "2", "--envs-per-actor", "2", "--unroll-length", "16", "--num-minibatches", "2"),
    *("--update-epochs", "1", "--num-levels", "2", "--checkpoint-interval", "2"),
]
TINY_BATCH = 64


# Tests that start process trees (Ray, learners, clusters): `make test` leaves them out, `make test-all` runs them.
PROCESS_FOLDERS = {"end_to_end", "drills"}
# A machine that runs several of them side by side is slow: a hang is found, but later.
PROCESS_TIMEOUT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the process folders and puts their files first: what takes longest must not start last."""
    for item in items:
        if PROCESS_FOLDERS & set(item.path.parts) and not item.get_closest_marker("smoke"):
            item.add_marker("processes")
        if starts_processes(item) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(PROCESS_TIMEOUT))
    slow_files = {item.path for item in items if starts_processes(item)}
    items.sort(key=lambda item: item.path not in slow_files)


def starts_processes(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("processes", "smoke"))


def pytest_sessionfinish() -> None:
    """Leaves the last cluster while the interpreter is whole: Ray's threads do not survive its end."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module", autouse=True)
def process_as_before() -> Iterator[None]:
    """Who joins a cluster in this process sets RAY_AUTH_MODE, and a learner its umask; the next module has neither."""
    before = os.environ.get("RAY_AUTH_MODE")
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    if os.environ.get("RAY_AUTH_MODE") != before:
        os.environ.pop("RAY_AUTH_MODE")
        if before is not None:
            os.environ["RAY_AUTH_MODE"] = before
        from learner.cluster import authentication

        authentication.reload_mode()


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a run whose updates have 64 frames."""
    return TINY


@pytest.fixture(scope="session")
def start_learner() -> Callable[..., subprocess.Popen[str]]:
    """Starts `python -m learner ARGS` in the project's root and returns the process."""

    def start(*args: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "learner", *map(str, args)],
            cwd=PROJECT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def run_learner(start_learner: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m learner ARGS` to its end."""

    def run(*args: object, timeout: float = 100, **environment: str) -> subprocess.CompletedProcess[str]:
        process = start_learner(*args, **environment)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"the learner did not end within {timeout} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """The objects of a JSON-lines file that may be growing: every line that has ended must parse."""
    return lambda path: [json.loads(line) for line in path.read_text().split("\n")[:-1]]
