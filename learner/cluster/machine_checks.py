"""Checks of one machine: the learner's by `doctor`, and every node of a cluster.

No library is imported at the top of this file, so that a missing one becomes a finding.
"""

import logging
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.limits import available_cores, available_memory, memory_limit
from common.versions import LIBRARIES, PROCGEN_BUILDS, procgen_build, software

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
INSTALL = "pip install -c constraints.txt ."
GIB = 2**30
# Measured (docs/benchmarks.md): the learner with its batch and Ray's processes, and one actor.
LEARNER_MEMORY, ACTOR_MEMORY = 2 * GIB, 0.75 * GIB  # an actor of coinrun; some games need 0.5 GiB

Verdict = Literal["ok", "warning", "fatal"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's table; `remedy` says what to do and is empty if nothing is wrong."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def mib(size: float) -> int:
    """Bytes in MiB, rounded up."""
    return -(-int(size) // 2**20)


def python_check() -> Check:
    """Whether Procgen has wheels for this Python."""
    found = platform.python_version()
    if found.rpartition(".")[0] in SUPPORTED_PYTHONS:
        return Check("Python", "ok", found)
    return Check(
        "Python", "fatal", found, f"use Python {SUPPORTED_PYTHONS[0]} to {SUPPORTED_PYTHONS[-1]}, as Procgen requires"
    )


def libraries_check() -> Check:
    """The libraries that decide how actors act and communicate. Procgen and gym3, see procgen_check."""
    versions = software()
    missing = [name for name in LIBRARIES if name not in versions and name not in (*PROCGEN_BUILDS, "gym3")]
    if missing:
        return Check("libraries", "fatal", f"missing: {', '.join(missing)}", INSTALL)
    found = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    return Check("libraries", "ok", found)


def torch_check() -> Check:
    """The device that the learner would train on."""
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return Check("torch", "fatal", f"cannot be imported: {error}", INSTALL)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch", "ok", f"{torch.__version__}, GPU: {', '.join(names)}")
    if Path("/dev/nvidia0").exists():
        found = f"{torch.__version__} cannot use this machine's GPU"
        return Check("torch", "warning", found, "install a CUDA build of torch or a newer driver")
    precision = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return Check("torch", "ok", f"{torch.__version__}, no GPU: trains on the CPU in {precision}")


def procgen_check() -> Check:
    """Steps one environment."""
    try:
        from common.procgen_env import SYSTEM_PACKAGES, MissingLibrary, step_once
    except ImportError as error:
        return Check("Procgen", "fatal", f"cannot be imported: {error}", INSTALL)
    try:
        step_once()
    except MissingLibrary as missing:
        return Check("Procgen", "fatal", f"{missing} is missing", f"sudo apt-get install -y {SYSTEM_PACKAGES}")
    except Exception as error:  # third-party C++ behind cffi can raise anything
        return Check("Procgen", "fatal", f"does not run: {error}", INSTALL)
    return Check("Procgen", "ok", f"{procgen_build()} steps an environment")


def memory_check(actors: int) -> Check:
    """Memory for a learner and `actors` actors; 0 means a node that holds one actor per core and no learner."""
    import psutil

    memory = psutil.virtual_memory()
    available, total = available_memory(memory.available), memory_limit(memory.total)
    needed = LEARNER_MEMORY + actors * ACTOR_MEMORY if actors else available_cores() * ACTOR_MEMORY
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total < memory.total:
        found += f" (limit of the cgroup; the machine has {memory.total / GIB:.1f} GiB)"
    if available < needed:
        remedy = f"{needed / GIB:.1f} GiB are needed: free some memory or lower --num-actors"
        return Check("memory", "warning", found, remedy)
    return Check("memory", "ok", found)


def shared_memory_check(needed: int) -> Check:
    """Room for an object store of `needed` bytes; without it Ray uses the disk and only warns."""
    name = "shared memory"
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        found = f"cannot use {SHARED_MEMORY}: {error.strerror}"
        return Check(name, "fatal", found, f"mount a tmpfs on {SHARED_MEMORY}")
    if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
        return Check(name, "fatal", f"{SHARED_MEMORY} is not writable", "mount it writable, with mode 1777")
    found = f"{SHARED_MEMORY} has {mib(free)} MiB free; the rollouts in flight need {mib(needed)} MiB"
    if free < needed:
        remedy = f"enlarge it (docker: --shm-size {mib(needed)}m) or lower --unroll-length or --envs-per-actor"
        return Check(name, "fatal", found, remedy)
    return Check(name, "ok", found)


def machine_checks(actors: int) -> list[Check]:
    """Everything but shared memory; `actors` as in `memory_check`."""
    return run_checks(
        {
            "Python": python_check,
            "libraries": libraries_check,
            "torch": torch_check,
            "Procgen": procgen_check,
            "memory": lambda: memory_check(actors),
        }
    )


def run_checks(checks: Mapping[str, Callable[[], Check]]) -> list[Check]:
    """Runs the checks. One that raises becomes a fatal result under its name: surroundings can be broken in any way."""
    results = []
    for name, check in checks.items():
        try:
            results.append(check())
        except Exception as error:
            logger.info("the check of %s failed", name, exc_info=True)  # not on the terminal
            results.append(
                Check(name, "fatal", f"cannot be checked: {type(error).__name__}: {error}", "please report it")
            )
    return results
