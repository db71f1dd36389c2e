"""Checks of one machine: the learner's by `doctor`, and every node of a cluster.

No library is imported at the top of this file, so that a missing one becomes a finding.
"""

import contextlib
import os
import platform
import resource
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.limits import available_cores, available_memory, memory_limit, processes_left
from common.versions import LIBRARIES, PROCGEN_BUILDS, procgen_build, software

SHARED_MEMORY = Path("/dev/shm")
SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
INSTALL = "pip install -c constraints.txt ."
GIB = 2**30
# Measured (docs/benchmarks.md): the learner with its batch and Ray's processes, and one actor.
LEARNER_MEMORY, ACTOR_MEMORY = 2 * GIB, 0.75 * GIB
# Measured with two actors: Ray's processes, learner and evaluator have 250 threads, and none has over 60 open files.
RUN_THREADS, ACTOR_THREADS = 250, 30
RAY_FILES, ACTOR_FILES = 64, 8
RECOMMENDED_FILES = 8192

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
    cores = available_cores()
    available, total = available_memory(memory.available), memory_limit(memory.total)
    needed = LEARNER_MEMORY + actors * ACTOR_MEMORY if actors else cores * ACTOR_MEMORY
    found = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free, {cores} cores"
    if available < needed:
        return Check("memory", "warning", found, f"{needed / GIB:.1f} GiB are needed: free some or start fewer actors")
    return Check("memory", "ok", found)


def shared_memory_check(needed: int) -> Check:
    """Room for an object store of `needed` bytes; without it Ray uses the disk and only warns."""
    name = "shared memory"
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        found = f"cannot use {SHARED_MEMORY}: {error.strerror}"
        return Check(name, "fatal", found, f"mount a tmpfs on {SHARED_MEMORY}")
    found = f"{SHARED_MEMORY} has {mib(free)} MiB free, the rollouts in flight need {mib(needed)} MiB"
    if free < needed:
        remedy = f"enlarge it (docker: --shm-size {mib(needed)}m) or lower --unroll-length or --envs-per-actor"
        return Check(name, "fatal", found, remedy)
    return Check(name, "ok", found)


def open_files_check(actors: int) -> Check:
    """Whether Ray can open the files and sockets that `actors` actors need; it raises the soft limit by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    needed, remedy = RAY_FILES + actors * ACTOR_FILES, f"raise the hard limit to {RECOMMENDED_FILES} (ulimit -Hn)"
    found = f"limit {hard}, a run needs about {needed}"
    verdict: Verdict = "fatal" if hard < needed else "warning" if hard < min(RECOMMENDED_FILES, 4 * needed) else "ok"
    return Check("open files", verdict, found, "" if verdict == "ok" else remedy)


def processes_check(actors: int) -> Check:
    """Whether this user may start the processes and threads of a run; a thread counts as a process."""
    name, needed = "processes", RUN_THREADS + actors * ACTOR_THREADS
    left = {"pids limit of the cgroup": processes_left(), "ulimit -u": _user_processes_left()}
    limits = {source: number for source, number in left.items() if number is not None}
    if not limits:
        return Check(name, "ok", "no limit")
    source = min(limits, key=limits.__getitem__)
    found = f"{source} leaves {max(0, limits[source])} processes and threads, a run needs about {needed}"
    if limits[source] < needed:
        return Check(name, "fatal", found, "raise the limit (docker: --pids-limit), or use fewer --num-actors")
    return Check(name, "ok", found)


def _user_processes_left() -> int | None:
    """Threads that `ulimit -u` lets this user start; None without a limit, and for root, who has none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if limit == resource.RLIM_INFINITY or os.getuid() == 0:
        return None
    import psutil

    used = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid():
                used += process.num_threads()
    return limit - used


def machine_checks(actors: int) -> list[Check]:
    """Everything but shared memory; `actors` as in `memory_check`."""
    return [python_check(), libraries_check(), torch_check(), procgen_check(), memory_check(actors)]


def streams_check() -> Check:
    """Whether what a run prints can be seen; the streams are the doctor's own, which a run would have too."""
    name, lost = "output", []
    for stream, label in ((sys.__stdout__, "standard output"), (sys.__stderr__, "standard error")):
        try:
            if stream is None:
                lost.append(f"{label} is closed")
                continue
            descriptor = stream.fileno()
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if is_file and not os.fstatvfs(descriptor).f_bavail:
                lost.append(f"{label} is a file on a full disk")
        except (OSError, ValueError):
            lost.append(f"{label} cannot be used")
    if lost:
        return Check(name, "warning", ", ".join(lost), "redirect it to a file with space; training goes on without it")
    terminal = os.environ.get("TERM", "unknown")
    is_terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
    return Check(name, "ok", f"terminal, TERM={terminal}" if is_terminal else "no terminal: a plain line per update")
