"""Starts an embedded local Ray that only this user can reach, from this host."""

import contextlib
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._private import ray_constants

from common.limits import available_cores
from common.process import use_token_file
from common.versions import package_directories
from learner.cluster.authentication import find_token
from learner.cluster.authentication_probe import PATH_VARIABLE
from learner.cluster.target import ClusterError
from learner.stopping import only_for_the_learner

# A socket's path may have at most 107 characters, and Ray's longest name below its directory is this one.
MAX_DIRECTORY_LENGTH = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def start_embedded_ray(object_store_memory: int) -> None:
    """Starts Ray with an object store of `object_store_memory` bytes.

    Raises:
        ClusterError: the directory for Ray's files cannot be used.
        Exception: any error of Ray's.
    """
    directory = directory_for_ray()
    if not token_can_be_used():
        use_token_file(str(private_token()))
    with only_loopback(), working_directory(package_directories()[0].parent), only_for_the_learner():
        ray.init(
            address="local",
            num_cpus=available_cores(),  # Ray counts cores of the machine that this process may not use
            object_store_memory=object_store_memory,
            include_dashboard=False,
            # Nobody reads the metrics here, and their port requires no token.
            _system_config={"enable_metrics_collection": False},
            _temp_dir=None if directory is None else str(directory / "ray"),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


def directory_for_ray() -> Path | None:
    """Where an embedded Ray puts its sockets and files; None: where RAY_TMPDIR says, which Ray reads itself.

    Raises:
        ClusterError: the directory cannot be used.
    """
    named = os.environ.get("RAY_TMPDIR")
    if named is None:
        return private_directory()
    path = Path(named)
    if len(os.fsencode(path.absolute())) > MAX_DIRECTORY_LENGTH:
        raise ClusterError(f"RAY_TMPDIR={named} is too long for sockets: use at most {MAX_DIRECTORY_LENGTH} characters")
    if not path.is_absolute() or not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ClusterError(f"RAY_TMPDIR={named} is not a writable directory: create it or unset RAY_TMPDIR")
    return None


def token_can_be_used() -> bool:
    """Whether Ray finds a token, or can create one in the home directory, as it does for an embedded Ray."""
    token = find_token()
    if token.exists or token.path is None:
        return token.exists
    if os.environ.get(PATH_VARIABLE):  # Ray creates none where this says
        return False
    try:
        token.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(token.path.parent, os.W_OK | os.X_OK)


def private_token(parent: Path = Path("/tmp")) -> Path:
    """A file with a token for embedded Rays of a user without a usable home directory; it is created once."""
    path = private_directory(parent) / "auth_token"
    if path.exists() and path.stat().st_size:
        return path
    temporary = path.with_name(f"auth_token-{os.getpid()}")
    temporary.write_text(secrets.token_hex(32))
    temporary.chmod(0o600)
    temporary.replace(path)
    return path


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
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def private_directory(parent: Path = Path("/tmp")) -> Path:
    """A directory that only this user can enter, for the sockets and files of an embedded Ray.

    Ray makes its own directories writable for everyone, and whoever replaces a socket there can talk to its workers.
    The path is short because a socket's path may have at most 107 characters.

    Raises:
        ClusterError: the directory cannot be created, belongs to another user or can be entered by others.
    """
    path = parent / f"heldout-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ClusterError(
            f"cannot create {path} for Ray's files: {error.strerror}; name another directory with RAY_TMPDIR"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ClusterError(f"{path}, the directory for Ray's files, is not private to you: remove it")
    return path
