"""The one place that changes the process it runs in: allocator, threads, environment variables, file modes.

Every role's process calls `prepare_process` once, before its first tensor.
"""

import ctypes
import os
import threading
import time
from typing import Literal

import torch

# glibc's mallopt(3) parameter numbers.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the kernel; False where there is no glibc.

    PyTorch frees and allocates the same activations for every minibatch. By default glibc returns each of them to
    the kernel, which zeroes the pages again on the next use.
    One arena, so that every thread reuses the same memory.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = [(_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20)]
    return min(mallopt(parameter, value) for parameter, value in settings) == 1


def prepare_process(num_threads: int | None, sees_gpu: bool) -> None:
    """Private files, allocator, torch's thread count (None: torch's own choice) and, unless `sees_gpu`, hidden GPUs.

    Ray lets an actor that asked for no GPU see them all; a CUDA context there would cost the learner's memory.
    """
    keep_files_private()
    keep_freed_memory()
    if not sees_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def keep_files_private() -> None:
    """Files made from now on, also by processes started from here, can be read by this user only: 0600, 0700."""
    os.umask(0o077)


def end_with_parent() -> None:
    """Has this process end within a second of its parent, a raylet: Ray leaves actors behind when a node is cut off."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def set_ray_authentication(mode: Literal["token", "disabled"]) -> None:
    """Whether Ray shows its token in this process and asks for it; it reads that when told to or in a new process."""
    os.environ["RAY_AUTH_MODE"] = mode


def prepare_ray_environment() -> None:
    """Variables Ray reads when it starts: no usage reports, no guessing that `uv run` launched us.

    Workers get the learner's priority instead of nice 15, at which the evaluator starves on a machine whose cores the
    learner fills.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; we hide GPUs ourselves
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
