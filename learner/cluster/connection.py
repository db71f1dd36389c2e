"""Joins a Ray cluster or starts an embedded Ray, and checks that its object store holds the run's rollouts."""

import contextlib
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from common.config import Config
from common.messages import rollout_bytes
from common.policy_network import weights_bytes
from common.process import prepare_ray_environment, set_ray_authentication, unexpected_ray_variables
from common.text import format_count
from common.versions import package_directories
from learner.cluster import authentication
from learner.cluster.embedded import logs_of_embedded_ray, replaced, start_embedded_ray
from learner.cluster.limit_checks import open_files_check, processes_check, sizes_check
from learner.cluster.machine_checks import mib, shared_memory_check
from learner.cluster.surroundings_checks import loopback_check
from learner.cluster.target import ClusterError, ClusterTarget

# For Ray's own objects and the allocator.
OBJECT_STORE_SLACK = 128 << 20
# Ray starts to move objects to disk above this share of the object store.
SPILLING_THRESHOLD = 0.8
# A cluster that does not answer is waited for in silence this long, because it may have been started a moment ago.
_REPORT_AFTER_SECONDS = 5.0
# Where `ray job submit` describes its job, as JSON.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Connection:
    """The Ray that this process is connected to; `address` is None for an embedded one."""

    address: str | None
    nodes: int
    cpus: int
    authenticated: bool

    def describe(self) -> str:
        """For people: `Ray cluster at 10.0.0.1:6379, 2 nodes, 16 CPUs, token authentication`."""
        cpus = format_count(self.cpus, "CPU")
        if self.address is None:
            return f"embedded local Ray, {cpus}"
        nodes = format_count(self.nodes, "node")
        access = "token authentication" if self.authenticated else "no authentication"
        return f"Ray cluster at {self.address}, {nodes}, {cpus}, {access}"


def object_store_bytes_needed(config: Config) -> int:
    """Bytes for one finished rollout per actor and one more that may not have been freed yet, and for the weights of
    every version that rollouts are collected with and of the next one.
    """
    rollouts = rollout_bytes(config.unroll_length, config.envs_per_actor) * (config.num_actors + 1)
    weights = weights_bytes(config.network) * (config.max_policy_lag + 2)
    return int((rollouts + weights + OBJECT_STORE_SLACK) / SPILLING_THRESHOLD)


def require_no_ray() -> None:
    """Raises ClusterError if this process (perhaps a notebook) already uses Ray, which ours would replace."""
    if ray.is_initialized():
        raise ClusterError("Ray is already running in this process; run python -m learner as its own process")


def connect(target: ClusterTarget | None, config: Config, poll: Callable[[], None] = lambda: None) -> Connection:
    """Joins the target cluster; None starts an embedded Ray. Calls `poll` while waiting, which may raise.

    Raises:
        ClusterError: nothing answers within `cluster_timeout` seconds, the cluster is open to anyone and the target
            does not allow that, it refuses us, this host is not one of its nodes, the object store is too small, or
            this process is connected already.
    """
    require_no_ray()
    prepare_ray_environment(embedded=target is None)
    needed = object_store_bytes_needed(config)
    if target is None:
        warnings = _require_what_ray_needs(config.num_actors, needed)
        with _ray_starting("cannot start an embedded local Ray", embedded=True, warnings=warnings):
            start_embedded_ray(needed)
        return _connection(None, authenticated=False)
    if (head := target.host_and_port()) is not None:
        _wait_for_port(target, head, config.cluster_timeout, poll)
    authenticated = authentication.requires_token(target, poll)
    set_ray_authentication("token" if authenticated else "disabled")
    authentication.reload_mode()
    with _ray_starting(f"no Ray cluster could be joined at {target}", embedded=False), our_code() as runtime_env:
        ray.init(target.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
    available = _object_store_bytes()
    if available < needed:
        disconnect()
        raise ClusterError(
            f"the object store of the learner's node has {mib(available)} MiB, but the rollouts in flight need "
            f"{mib(needed)} MiB: start Ray on this node with --object-store-memory {needed}"
        )
    return _connection(target.address, authenticated)


@contextlib.contextmanager
def messages_of_ray_in_the_log() -> Iterator[None]:
    """Logs what raylets report to this process, such as the death of a worker, inside its `with` block.

    Ray would print it on standard output, in color, and the last message only when Ray is left, after our last line.
    """

    def log(data: Any, ignore_prefix: bool) -> None:
        first, *more = [line for text in data["lines"] for line in text.splitlines()] or [""]
        logger.info("Ray: %s", first, extra={"details": "\n".join(more)})

    with replaced(ray._private.worker, "print_to_stdstream", log):
        yield


def disconnect() -> None:
    """Leaves the cluster, or stops the embedded Ray."""
    ray.shutdown()


@contextlib.contextmanager
def our_code() -> Iterator[dict[str, Any]]:
    """A runtime environment that copies our four packages from this machine to every node.

    They go into `working_dir`, since Ray would otherwise look for code in a directory with the same name as the
    learner's current one, which may hold an older copy on another host. Nothing is copied inside a job of
    `ray job submit --working-dir`: Ray has already copied that directory, and allows only one.
    """
    if submitted_working_directory(os.environ) is not None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="heldout-code-") as directory:
        for package in package_directories():
            shutil.copytree(package, Path(directory, package.name), ignore=shutil.ignore_patterns("__pycache__"))
        yield {"working_dir": directory}


def submitted_working_directory(environment: Mapping[str, str]) -> str | None:
    """The working directory that `ray job submit` gave this process; None outside a job or without one.

    Raises:
        ClusterError: the variable that Ray sets cannot be read.
    """
    try:
        job = json.loads(environment.get(JOB_VARIABLE, "{}"))
        return (job.get("runtime_env") or {}).get("working_dir")
    except (ValueError, AttributeError) as error:
        raise ClusterError(f"{JOB_VARIABLE}, which `ray job submit` sets, cannot be read: unset it") from error


def _connection(address: str | None, authenticated: bool) -> Connection:
    nodes = sum(node["Alive"] for node in ray.nodes())
    return Connection(address, nodes, int(ray.cluster_resources().get("CPU", 0)), authenticated)


def _object_store_bytes() -> float:
    """Bytes of the object store of this process's node, where every rollout arrives."""
    own_id = ray.get_runtime_context().get_node_id()
    return next(node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["NodeID"] == own_id)


def _require_what_ray_needs(actors: int, object_store: int) -> list[str]:
    """Checks what an embedded Ray needs to start; returns warnings about what may not be enough.

    Raises:
        ClusterError: Ray cannot start. It would report that only after half a minute, without the cause.
    """
    warnings = []
    for check in (
        *(shared_memory_check(object_store), sizes_check(object_store)),
        *(open_files_check(actors), processes_check(actors), loopback_check()),
    ):
        if check.verdict == "fatal":
            raise ClusterError(f"{check.name}: {check.found}: {check.remedy}")
        if check.verdict == "warning":
            warnings.append(f"{check.name}: {check.found}")
    return warnings


@contextlib.contextmanager
def _ray_starting(failure: str, embedded: bool, warnings: Sequence[str] = ()) -> Iterator[None]:
    """Turns an error of Ray's into a ClusterError of one line that starts with `failure`.

    It names what Ray's messages do not: `warnings`, the inherited variables that change how Ray works, and where an
    embedded Ray's logs are.

    Silences file descriptor 2 meanwhile, where Ray's C++ code repeats a refused connection every second, and keeps the
    handler of SIGTERM: Ray's own would end this process with exit code 15.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        with replaced(ray._private.utils, "set_sigterm_handler", lambda _handler: None):
            yield
    except ClusterError:
        raise
    except Exception as error:  # Ray raises any type, and a variable may make it import and parse anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        hints = list(warnings)
        if inherited := unexpected_ray_variables(os.environ, embedded):
            hints.append(f"Ray reads these variables; unset any that you do not need: {', '.join(inherited)}")
        if embedded and (logs := logs_of_embedded_ray()) is not None:
            hints.append(f"Ray's logs are in {logs}")
        raise ClusterError("; ".join((f"{failure}: {reason}", *hints))) from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _wait_for_port(target: ClusterTarget, head: tuple[str, int], timeout: float, poll: Callable[[], None]) -> None:
    """Waits until `head` accepts connections, perhaps because it is still starting; ClusterError after `timeout` s."""
    started = time.monotonic()
    is_reported = False
    while True:
        try:
            socket.create_connection(head, timeout=min(5.0, timeout)).close()
            return
        except OSError as error:
            waited = time.monotonic() - started
            reason = f"{error.strerror or error}{target.hint()}"
            if waited > timeout:
                raise ClusterError(f"no Ray cluster answered at {target} within {timeout:.0f} s: {reason}") from error
            if waited > _REPORT_AFTER_SECONDS and not is_reported:
                logger.warning("no Ray cluster answers yet at %s, waiting up to %.0f s: %s", target, timeout, reason)
                is_reported = True
            poll()
            time.sleep(0.5)
