"""Starts an embedded local Ray that only this user can reach, from this host."""

import contextlib
import errno
import functools
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray._private import parameter, ray_constants, utils
from ray._private.node import Node

from common.limits import available_cores
from common.process import use_token_file
from common.storage.file_system import remove_quietly
from common.versions import package_directories
from learner.cluster.authentication import find_token
from learner.cluster.authentication_probe import PATH_VARIABLE
from learner.cluster.target import ClusterError
from learner.stopping import only_for_the_learner

# A socket's path may have at most 107 characters, and Ray's longest name below its directory is this one.
MAX_DIRECTORY_LENGTH = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")

SYSTEM_CONFIG = {
    "enable_metrics_collection": False,  # nobody reads the metrics here, and their port requires no token
    "prestart_worker_first_driver": False,  # a worker per core before one is needed, of which the rest stay idle
}


def start_embedded_ray(object_store_memory: int) -> None:
    """Starts Ray with an object store of `object_store_memory` bytes.

    Raises:
        ClusterError: the directory for Ray's files cannot be used.
        Exception: any error of Ray's.
    """
    directory = directory_for_ray()
    provide_token()
    with (
        only_loopback(),
        only_needed_processes(),
        working_directory(package_directories()[0].parent),
        only_for_the_learner(),
    ):
        ray.init(
            address="local",
            num_cpus=available_cores(),  # Ray counts cores of the machine that this process may not use
            object_store_memory=object_store_memory,
            include_dashboard=False,
            _system_config=SYSTEM_CONFIG,
            _temp_dir=None if directory is None else str(directory / "ray"),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def directory_for_ray(create: bool = True) -> Path | None:
    """Where an embedded Ray puts its sockets and files; None: where RAY_TMPDIR says, which Ray reads itself.

    Without `create` it need not exist yet, but it could be created.

    Raises:
        ClusterError: the directory cannot be used.
    """
    named = os.environ.get("RAY_TMPDIR")
    if not named:
        return private_directory(create=create)
    path = Path(named)
    if len(os.fsencode(path.absolute())) > MAX_DIRECTORY_LENGTH:
        raise ClusterError(f"RAY_TMPDIR={named} is too long for sockets: use at most {MAX_DIRECTORY_LENGTH} characters")
    if not path.is_absolute() or not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ClusterError(f"RAY_TMPDIR={named} is not a writable directory: create it or unset RAY_TMPDIR")
    return None


def logs_of_embedded_ray() -> Path | None:
    """The logs of the newest embedded Ray that this process started; None if it got no further than its settings."""
    directory = directory_for_ray(create=False)
    parent = Path(os.environ["RAY_TMPDIR"]) if directory is None else directory
    sessions = sorted((parent / "ray").glob(f"session_*_{os.getpid()}"))
    return sessions[-1] / "logs" if sessions else None


def token_can_be_used() -> bool:
    """Whether there is a token, or one can be created in the home directory; creates nothing."""
    token = find_token()
    if token.exists or token.path is None or os.environ.get(PATH_VARIABLE):
        return token.exists
    directory = token.path.parent if token.path.parent.exists() else token.path.parent.parent
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)


def provide_token() -> None:
    """Makes an embedded Ray use the user's token, which is created if there is none.

    Without a home directory that can be written to, the token is private to embedded Rays. Ray is always told the path:
    where HOME is not set its C++ code finds no home directory.

    Raises:
        ClusterError: there is no place for a token.
    """
    token = find_token()
    if token.path is None and token.exists:  # in RAY_AUTH_TOKEN
        return
    path = token.path
    if not token.exists:
        try:
            if path is None or os.environ.get(PATH_VARIABLE):  # nothing is created where the variable says
                raise FileNotFoundError(token.location)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            _create_token(path)
        except OSError:
            path = private_token(Path(os.environ.get("RAY_TMPDIR") or "/tmp"))
    use_token_file(str(path))


def private_token(parent: Path = Path("/tmp")) -> Path:
    """A file with a token for embedded Rays of a user without a usable home directory; it is created once.

    Raises:
        ClusterError: it cannot be created.
    """
    path = private_directory(parent) / "auth_token"
    try:
        if not path.exists() or not path.stat().st_size:
            _create_token(path)
    except OSError as error:
        raise ClusterError(f"cannot create {path} for Ray's token: {error.strerror}") from error
    return path


def _create_token(path: Path) -> None:
    """Creates a file with a token, or fills an empty one. If another process creates it first, that token counts."""
    temporary = path.with_name(f"{path.name}-{os.getpid()}")
    try:
        temporary.touch(mode=0o600)
        temporary.write_text(secrets.token_hex(32))
        try:
            os.link(temporary, path)  # unlike a rename, never replaces a token with which another Ray has just started
        except OSError:  # it exists, or the file system has no hard links
            if not path.exists() or not path.stat().st_size:
                temporary.replace(path)
    finally:
        remove_quietly(temporary)


@contextlib.contextmanager
def working_directory(path: Path) -> Iterator[None]:
    """Changes into a directory for a while.

    Ray puts the directory in which it is started first in its workers' search path. That must be where our packages
    are, and not the user's, which may have packages of the same names.
    """
    before = os.getcwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def only_loopback() -> Iterator[None]:
    """Makes a Ray that starts inside listen only on 127.0.0.1; on Linux it would otherwise use every interface.

    Ray does the same on macOS and Windows, where it supports no clusters.
    """
    with replaced(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield


@contextlib.contextmanager
def only_needed_processes() -> Iterator[None]:
    """Makes a Ray that starts inside its `with` block run without autoscaler, log monitor and dashboard.

    One node needs no autoscaler, no log is sent to the driver, and nobody opens the dashboard. Its agent, without which
    no node starts, runs as where its libraries are not installed, without a web server: if another Ray on this host has
    that server's port, Ray retries for three seconds before it starts, and importing the libraries takes a third of a
    second. `ray.init` has no arguments for these.
    """
    settings: dict[str, Any] = {"no_monitor": True, "include_log_monitor": False}
    with (
        replaced(parameter, "RayParams", functools.partial(parameter.RayParams, **settings)),
        replaced(Node, "start_api_server", lambda *_, **__: None),  # the dashboard, and nothing else that we use
        replaced(utils, "get_dashboard_dependency_error", lambda: ImportError("not needed")),
    ):
        yield


@contextlib.contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replaces an attribute of Ray's inside its `with` block; AttributeError if this version of Ray has no such one."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def private_directory(parent: Path = Path("/tmp"), create: bool = True) -> Path:
    """A directory that only this user can enter, for the sockets and files of an embedded Ray.

    Ray makes its own directories writable for everyone, and whoever replaces a socket there can talk to its workers.
    The path is short because a socket's path may have at most 107 characters. Without `create` it need not exist yet.

    Raises:
        ClusterError: the directory cannot be created, belongs to another user or can be entered by others.
    """
    path = parent / f"heldout-{os.getuid()}"
    try:
        if create:
            path.mkdir(mode=0o700, exist_ok=True)
        elif not os.path.lexists(path):
            if not os.access(parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"{parent} is not a writable directory")
            return path
        status = path.lstat()
    except OSError as error:
        raise ClusterError(
            f"cannot create {path} for Ray's files: {error.strerror}; name another directory with RAY_TMPDIR"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ClusterError(f"{path}, the directory for Ray's files, is not private to you: remove it")
    return path
