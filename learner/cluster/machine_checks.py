"""What one machine of a run must have, checked there: on the learner's by `doctor`, on every node of a cluster too.

Nothing of the environment is imported at the top: what is missing is to be found, not to be tripped over.
"""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.versions import LIBRARIES, software

Verdict = Literal["ok", "warning", "fatal"]
SHARED_MEMORY = Path("/dev/shm")
SUPPORTED_PYTHONS = ("3.10", "3.11")
GIB = 2**30
# The learner with its batch and Ray's own processes, and an actor (docs/benchmarks.md).
LEARNER_MEMORY, ACTOR_MEMORY = 2 * GIB, 0.75 * GIB


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's table. `remedy` is what to do about it; empty where nothing is wrong."""

    what: str
    verdict: Verdict
    found: str
    remedy: str = ""


def python_check() -> Check:
    """Procgen's wheels decide which Pythons there are."""
    found = platform.python_version()
    if not found.startswith(tuple(f"{supported}." for supported in SUPPORTED_PYTHONS)):
        return Check(
            "Python", "fatal", found, f"use Python {' or '.join(SUPPORTED_PYTHONS)}: Procgen has no other wheels"
        )
    return Check("Python", "ok", found)


def libraries_check() -> Check:
    """What decides how actors act and talk; Procgen, which has two distributions, has a check of its own."""
    versions = software()
    missing = [name for name in LIBRARIES if versions[name] == "none" and not name.startswith("procgen")]
    found = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if versions[name] != "none")
    if missing:
        return Check("libraries", "fatal", f"missing: {', '.join(missing)}", "pip install -c constraints.txt .")
    return Check("libraries", "ok", found)


def torch_check() -> Check:
    """Which device would train."""
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways
        return Check("torch", "fatal", f"cannot be imported: {error}", "pip install -c constraints.txt .")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch", "ok", f"{torch.__version__}, GPU: {', '.join(names)}")
    if Path("/dev/nvidia0").exists():
        return Check(
            "torch",
            "warning",
            f"{torch.__version__} does not see the GPU that is here",
            "install the CUDA build of torch, or a driver that is new enough for it",
        )
    bfloat16 = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
    return Check("torch", "ok", f"{torch.__version__}, no GPU: CPU in {bfloat16}")


def procgen_check() -> Check:
    """Steps one environment."""
    try:
        from common.procgen_env import SYSTEM_PACKAGES, MissingLibrary, step_once
    except ImportError as error:
        return Check("Procgen", "fatal", f"cannot be imported: {error}", "pip install -c constraints.txt .")
    try:
        step_once()
    except MissingLibrary as missing:
        return Check("Procgen", "fatal", f"{missing} is missing", f"sudo apt-get install -y {SYSTEM_PACKAGES}")
    except Exception as error:  # it is third-party C++ behind cffi: whatever it raises is the finding
        return Check("Procgen", "fatal", f"does not run: {error}", "pip install -c constraints.txt .")
    return Check("Procgen", "ok", "steps an environment")


def memory_check(actors: int) -> Check:
    """Of a learner with `actors` beside it, 0 actors: of a node with one actor for each of its cores."""
    import psutil

    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0))
    needed = LEARNER_MEMORY + actors * ACTOR_MEMORY if actors else cores * ACTOR_MEMORY
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free, {cores} cores"
    if memory.available < needed:
        return Check("memory", "warning", found, f"{needed / GIB:.1f} GiB are needed: free some or start fewer actors")
    return Check("memory", "ok", found)


def shared_memory_check(needed: int) -> Check:
    """Ray's object store lies there; where it does not fit Ray takes the disk and only warns."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError as error:
        return Check(
            "shared memory", "fatal", f"{SHARED_MEMORY}: {error.strerror}", f"mount a tmpfs on {SHARED_MEMORY}"
        )
    found = f"{usage.free // 2**20:,} of {usage.total // 2**20:,} MiB free"
    if usage.free < needed:
        mib = -(-needed // 2**20)
        return Check("shared memory", "fatal", found, f"{mib:,} MiB are needed; docker: --shm-size {mib}m")
    return Check("shared memory", "ok", f"{found}, {needed // 2**20:,} needed")


def node_checks() -> list[Check]:
    """What a node of a cluster must have to hold actors."""
    checks: list[Callable[[], Check]] = [python_check, libraries_check, torch_check, procgen_check]
    return [check() for check in checks] + [memory_check(actors=0)]
