"""Starts an embedded local Ray that only this user can reach, from this host."""

import contextlib
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import ray
from ray._private import ray_constants

from common.versions import package_directories
from learner.cluster.target import ClusterError
from learner.stopping import only_for_the_learner


def start_embedded_ray(object_store_memory: int) -> None:
    """Starts Ray with an object store of `object_store_memory` bytes.

    Raises:
        ClusterError: the directory for Ray's files cannot be used.
        Exception: any error of Ray's.
    """
    with only_loopback(), working_directory(package_directories()[0].parent), only_for_the_learner():
        ray.init(
            address="local",
            object_store_memory=object_store_memory,
            include_dashboard=False,
            # Nobody reads the metrics here, and their port requires no token.
            _system_config={"enable_metrics_collection": False},
            _temp_dir=None if "RAY_TMPDIR" in os.environ else str(private_directory() / "ray"),
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


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
        raise ClusterError(f"cannot create {path} for Ray's files: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ClusterError(f"{path}, the directory for Ray's files, is not private to you: remove it")
    return path
