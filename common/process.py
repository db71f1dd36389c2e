"""The only module that changes its process: allocator, threads, environment variables, file modes.

Every role's process calls `prepare_process` once, before it creates its first tensor.
"""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Literal

import torch

# Parameter numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def prepare_process(num_threads: int | None, sees_gpu: bool, group_readable: bool = False) -> None:
    """Sets file modes, allocator and torch's thread count (None: torch's default); hides GPUs unless `sees_gpu`.

    Ray shows all GPUs to an actor that asked for none; a CUDA context there would cost the learner memory.
    """
    set_file_modes(group_readable)
    keep_freed_memory()
    if not sees_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def set_file_modes(group_readable: bool = False) -> None:
    """Who can read files that this process and its children create from now on.

    Only this user (modes 0600 and 0700), or with `group_readable` also their group (0640 and 0750).
    """
    os.umask(0o027 if group_readable else 0o077)


def keep_freed_memory() -> None:
    """Makes glibc keep freed memory and use one arena; does nothing without glibc.

    PyTorch frees and allocates the same activations for every minibatch. By default glibc returns them to the kernel,
    which zeroes the pages again at the next use. With one arena every thread reuses the same memory.
    """
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in settings:
            mallopt(parameter, value)


def end_with_parent() -> None:
    """Ends this process within a second after its parent, a raylet; Ray keeps actors alive when a node is cut off."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def set_ray_authentication(mode: Literal["token", "disabled"]) -> None:
    """Sets whether Ray sends and requires a token; Ray reads this in a new process or when told to."""
    os.environ["RAY_AUTH_MODE"] = mode


def prepare_ray_environment() -> None:
    """Sets the variables that Ray reads when it starts.

    No usage reports, no special treatment of `uv run`, and workers with the learner's priority: at Ray's default of
    nice 15 the evaluator starves on a machine whose cores the learner fills.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; we hide GPUs ourselves
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")


@contextlib.contextmanager
def restored_afterwards() -> Iterator[None]:
    """At its end, file modes, environment variables and torch's thread count are what they were at its start."""
    umask, environment, num_threads = _umask(), dict(os.environ), torch.get_num_threads()
    try:
        yield
    finally:
        os.umask(umask)
        torch.set_num_threads(num_threads)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _umask() -> int:
    """The umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
