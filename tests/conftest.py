"""What several test files share: tiny settings, waiting, bit-equality, and the real `python -m learner`.

Fixtures come by themselves; import the functions: `from tests.conftest import wait_until`.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.processes import kill_tree
from common.config import Config
from common.resolution import resolve

PROJECT = Path(__file__).parent.parent

# 4 environments x 16 steps = 64 frames an update. Episodes of leaper last about a hundred steps, so that a score and
# its videos take a second on a quiet machine; those of coinrun last a thousand. One actor: each takes three seconds of
# processor time to start.
TINY = [
    *("--env-name", "leaper"),
    *("--num-actors", "1", "--envs-per-actor", "4", "--unroll-length", "16", "--num-minibatches", "2"),
    *("--update-epochs", "1", "--num-levels", "2", "--checkpoint-interval", "2"),
    *("--eval-episodes-per-level", "1"),
    *("--cluster-timeout", "180"),  # several learners that start side by side on two cores need more than the default
]
TINY_BATCH = 64
# The same batch from two actors.
TINY_PAIR = [*TINY, "--num-actors", "2", "--envs-per-actor", "2"]
# Of a cluster's head. Ray starts no workers that nobody needs: each takes a second of processor time. Workers have
# normal priority: at Ray's default, nice 15, they get almost no CPU time beside other tests.
WORKER_SETTINGS = {"prestart_worker_first_driver": False, "worker_niceness": 0}
# Settings of the head of a `ray.cluster_utils.Cluster`, beside its resources. Any port of the agent: with its default,
# Ray starts three seconds later while another Ray of this machine has it.
HEAD: dict[str, Any] = {
    "include_dashboard": False,
    "dashboard_agent_listen_port": 0,
    "_system_config": WORKER_SETTINGS,
}
# Before the command of a run without an end: while it waits for a fault, it leaves the cores to tests that have work.
# Not lower: with the learner at nice 10 and its workers at 15, beside busy processes on both cores, a run did not start
# within three minutes.
LOW_PRIORITY = ("nice", "-n", "5")


# Tests that start process trees (Ray, learners, clusters): `make test` leaves them out, `make test-all` runs them.
PROCESS_FOLDERS = {"end_to_end", "drills"}
# A machine that runs several of them side by side is slow: a hang is found, but later.
PROCESS_TIMEOUT = 600
# For waits that are not what a test is about: neighbors on all cores may slow everything down several times.
PATIENCE = 180.0


def wait_until(
    condition: Callable[[], object],
    process: subprocess.Popen[Any] | None = None,
    seconds: float = PATIENCE,
    output: Path | None = None,
) -> None:
    """Waits for a condition; fails if it takes too long or `process` ends first, showing what that wrote.

    `output` is the file that the process writes to, if not a pipe.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            said: object = ""
            if process is not None:
                if not ended:
                    kill_tree(psutil.Process(process.pid))  # otherwise reading its output would wait for its end
                said = process.communicate() if output is None else output.read_text()
            reason = "the process ended" if ended else f"nothing after {seconds:.0f} s"
            pytest.fail(f"waiting for a condition: {reason}\n{said}")
        time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    """Different ports that are free on every interface now."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def build_preload(source: Path, directory: Path) -> Path:
    """Compiles a C file into a library for LD_PRELOAD; skips the test where there is no compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = directory / f"{source.stem}.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def num_lines(path: Path) -> int:
    """Complete lines of a file that may be growing; 0 if there is none yet."""
    return path.read_text().count("\n") if path.exists() else 0


def tiny_config(preset: str = "lab", **settings: Any) -> Config:
    """A Config of two actors with two environments each, float32; `settings` override."""
    sizes = {"num_actors": 2, "envs_per_actor": 2, "unroll_length": 16, "num_minibatches": 2}
    return resolve(preset, {**sizes, "precision": "float32", **settings})


def assert_bit_equal(one: Any, other: Any, path: str = "state") -> None:
    """Nested dicts, sequences and tensors are equal in type, structure and every bit; `path` is named if not."""
    import torch  # most tests need neither it nor the second that it takes

    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_bit_equal(one[key], other[key], f"{path}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_bit_equal(a, b, f"{path}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), path
    else:
        assert one == other, path


@contextlib.contextmanager
def slow_actor(process: subprocess.Popen[str]) -> Iterator[None]:
    """Suspends one of a learner's actors three quarters of the time; a run in sync mode then leaves the cores idle."""
    ended = threading.Event()

    def disturb() -> None:
        while not ended.wait(0.1):
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(process.pid).children(recursive=True)
                actors = [child for child in children if "RemoteRolloutActor" in " ".join(child.cmdline())]
                for actor in actors[:1]:
                    actor.suspend()
                    ended.wait(0.3)
                    actor.resume()

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl without what differs between runs that compute the same."""
    return {name: value for name, value in row.items() if not name.startswith(("time", "fps", "seconds_"))}


def assert_signal_ends_training_after_a_checkpoint(
    process: subprocess.Popen[str], signum: signal.Signals, run_dir: Path
) -> str:
    """Ends a learner that has trained some updates: with the signal's exit code, one line on standard error that says
    how to continue, a checkpoint of the newest update, and no process left. Returns its standard output.
    """
    from common.storage.checkpoints import load_newest_complete

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signum, out + err
    assert err.strip() == f"learner: stopped by {signum.name}; continue with --resume {run_dir}"
    newest = load_newest_complete(run_dir / "checkpoints", on_damaged=pytest.fail)
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert newest is not None and newest.policy_version == last["policy_version"] >= 1
    _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert not alive
    return out


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


@pytest.fixture(scope="session", autouse=True)
def cache_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The audit's cache of this session and its learners; the user's is left alone."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """Learners started here react to signals as in a terminal, also where pytest itself was started by `nohup`."""
    ignored = [signum for signum in (signal.SIGHUP, signal.SIGQUIT) if signal.getsignal(signum) == signal.SIG_IGN]
    for signum in ignored:
        signal.signal(signum, signal.SIG_DFL)
    yield
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)


@pytest.fixture(scope="module", autouse=True)
def process_as_before() -> Iterator[None]:
    """Whoever joins a cluster here sets Ray's variables, and a learner its umask; the next module has neither."""
    before = dict(os.environ)
    umask = os.umask(0o022)
    os.umask(umask)
    yield
    os.umask(umask)
    mode_differs = os.environ.get("RAY_AUTH_MODE") != before.get("RAY_AUTH_MODE")
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
    if mode_differs:
        from learner.cluster import authentication

        authentication.reload_mode()


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """Tiny networks are slower with several threads, and results may depend on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Flags of a run with one actor whose updates have 64 frames."""
    return TINY


@pytest.fixture(scope="session")
def tiny_pair() -> list[str]:
    """Flags of a run with two actors whose updates have 64 frames."""
    return TINY_PAIR


def kill_all(processes: list[subprocess.Popen[Any]]) -> None:
    """Kills those that have not ended, with their children, and empties the list."""
    for process in processes:
        if process.poll() is None:
            kill_tree(psutil.Process(process.pid))
            process.wait()
    processes.clear()


@pytest.fixture(scope="session")
def started() -> list[subprocess.Popen[Any]]:
    """What the present test has started with `popen` and its like."""
    return []


@pytest.fixture(autouse=True)
def no_process_survives_its_test(started: list[subprocess.Popen[Any]]) -> Iterator[None]:
    """A failed test must not leave a process that slows down those after it."""
    yield
    kill_all(started)


@pytest.fixture(scope="session")
def popen(started: list[subprocess.Popen[Any]]) -> Callable[..., subprocess.Popen[Any]]:
    """As subprocess.Popen, for a process that ends with its test, even if that fails."""

    def start(*args: Any, **options: Any) -> subprocess.Popen[Any]:
        started.append(subprocess.Popen(*args, **options))
        return started[-1]

    return start


@pytest.fixture(scope="session")
def start_learner(popen: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts `python -m learner ARGS` in the project's root and returns the process; `prefix` may be `nice`, say."""

    def start(*args: object, prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[str]:
        return popen(
            [*prefix, sys.executable, "-m", "learner", *map(str, args)],
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

    def run(*args: object, timeout: float = 240, **options: Any) -> subprocess.CompletedProcess[str]:
        process = start_learner(*args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_tree(psutil.Process(process.pid))
            out, err = process.communicate()
            pytest.fail(f"the learner did not end within {timeout} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def rows() -> Callable[[Path], list[dict[str, Any]]]:
    """The objects of a JSON-lines file that may be growing: every line that has ended must parse."""
    return lambda path: [json.loads(line) for line in path.read_text().split("\n")[:-1]]
