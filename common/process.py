"""The only module that changes its process: allocator, threads, environment variables, file modes.

Every role's process calls `prepare_process` once, before it creates its first tensor. What is done about variables
that a user's shell, notebook or another project left in the environment is in the tables below; all other variables
are left alone. Measured, and needing nothing: proxies (Ray's gRPC ignores them), OMP_NUM_THREADS (threads are set
explicitly), CUDA_VISIBLE_DEVICES (obeyed), PYTHONHASHSEED (nothing depends on the order of a set).
"""

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Literal

from common.home import home_directory

# Parameter numbers of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8

# Variable: the value it gets (None: it is removed).
Replacements = Mapping[str, str | None]

# The evaluator draws png files. Jupyter's backend needs Jupyter, and a user's matplotlibrc may need LaTeX or a screen.
MATPLOTLIB_VARIABLES: Replacements = {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
# Ray's own processes must not fail because of a warning, and its dashboard's agent needs its libraries' docstrings.
RAY_VARIABLES: Replacements = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "PYTHONWARNINGS": None,
    "PYTHONOPTIMIZE": None,
}
# They describe another Ray: its job, its processes, its storage, its certificates. An embedded Ray starts from nothing.
EMBEDDED_RAY_VARIABLES: Replacements = dict.fromkeys(
    (
        "RAY_ADDRESS",
        "RAY_GCS_SERVER_PORT",
        "RAY_JOB_CONFIG_JSON_ENV_VAR",
        "RAY_JOB_ID",
        "RAY_NAMESPACE",
        "RAY_NODE_ID",
        "RAY_OVERRIDE_JOB_RUNTIME_ENV",
        "RAY_RAYLET_PID",
        "RAY_REDIS_ADDRESS",
        "RAY_RUNTIME_ENV",
        "RAY_RUNTIME_ENV_HOOK",
        "RAY_USE_TLS",
    )
)
# What the user may set for Heldout's Ray; any other RAY_ variable is named when Ray cannot start.
EXPECTED_RAY_VARIABLES = frozenset(
    {
        *("RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"),
        *("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT", "RAY_JOB_CONFIG_JSON_ENV_VAR"),
        *("RAY_worker_niceness", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_DEDUP_LOGS", "RAY_CLIENT_MODE"),
        *RAY_VARIABLES,
    }
)


def prepare_process(num_threads: int | None, sees_gpu: bool, group_readable: bool = False) -> None:
    """Sets file modes, allocator and torch's thread count (None: torch's default); hides GPUs unless `sees_gpu`.

    Ray shows all GPUs to an actor that asked for none; a CUDA context there would cost the learner memory.
    """
    set_file_modes(group_readable)
    keep_freed_memory()
    if not sees_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if num_threads is not None:
        import torch  # not at the top: `python -m evaluator` needs the variables, and only then torch

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


def use_token_file(path: str) -> None:
    """Makes Ray, here and in its processes, read its token from `path`."""
    os.environ["RAY_AUTH_TOKEN_PATH"] = path


def prepare_matplotlib() -> None:
    """Makes drawing independent of the user's settings; call it before matplotlib is imported. Those of a matplotlibrc
    in the current directory are undone by `evaluator/output/plot.py`.

    Without a home directory matplotlib works, with a temporary cache, and would say so in two warnings. An empty or
    relative HOME counts as none: the cache would be created in the root or below the current directory.
    """
    _replace(MATPLOTLIB_VARIABLES)
    if home_directory() is None:
        os.environ["HOME"] = os.devnull
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def prepare_ray_environment(embedded: bool = False) -> None:
    """Sets the variables that Ray reads when it starts, and removes those of another Ray for an embedded one.

    No usage reports, no special treatment of `uv run`, and workers with the learner's priority: at Ray's default of
    nice 15 the evaluator starves on a machine whose cores the learner fills.
    """
    _replace(RAY_VARIABLES)
    if embedded:
        _replace(EMBEDDED_RAY_VARIABLES)
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice; we hide GPUs ourselves
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")


@contextlib.contextmanager
def restored_afterwards() -> Iterator[None]:
    """At its end, file modes, environment variables and torch's thread count are what they were at its start."""
    import torch

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


def unexpected_ray_variables(environment: Mapping[str, str], embedded: bool) -> list[str]:
    """Names of inherited variables that change how Ray works, and that Heldout neither sets nor removes."""
    known = EXPECTED_RAY_VARIABLES | (EMBEDDED_RAY_VARIABLES.keys() if embedded else set())
    return sorted(name for name in environment if name.startswith("RAY_") and name not in known)


def replaced_variables(environment: Mapping[str, str], embedded: bool) -> list[str]:
    """Names of inherited variables whose values Heldout's processes do not use."""
    replaced = {**MATPLOTLIB_VARIABLES, **RAY_VARIABLES, **(EMBEDDED_RAY_VARIABLES if embedded else {})}
    return sorted(name for name, value in replaced.items() if environment.get(name, value) not in (value, ""))


def _replace(variables: Replacements) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
