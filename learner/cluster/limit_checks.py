"""Checks of the limits that containers, batch systems and shells set for a run: CPUs, processes, files, sizes."""

import contextlib
import os
import resource

from common.limits import available_cores, cpu_quota, processes_left
from common.text import format_count
from learner.cluster.machine_checks import GIB, Check, Verdict, mib

# Measured with two actors: Ray's processes, learner and evaluator have 250 threads, and none has over 60 open files.
RUN_THREADS, ACTOR_THREADS = 250, 30
RAY_FILES, ACTOR_FILES = 64, 8
RECOMMENDED_FILES = 8192
# Measured with an object store of 0.2 GiB, which each of them maps: VmPeak of learner, actors and evaluator is at most
# 2.6 GiB.
ADDRESS_SPACE = 3 * GIB


def cpu_check() -> Check:
    """The cores of this machine that a run may use, and what limits them."""
    machine, affinity, quota = os.cpu_count() or 1, len(os.sched_getaffinity(0)), cpu_quota()
    limits = [f"affinity {affinity}"] if affinity < machine else []
    if quota is not None:
        limits.append(f"quota {format_count(quota, 'CPU')}")
    by = f" (limited by {' and '.join(limits)})" if limits else ""
    found = f"{available_cores()} of the machine's {machine} cores{by}"
    if quota is not None and quota < 1:
        return Check("CPUs", "warning", found, "raise the quota to at least 1 CPU (docker: --cpus): less is very slow")
    return Check("CPUs", "ok", found)


def worker_priority_check(niceness: int) -> Check:
    """Whether Ray's workers have normal priority; `ray start` runs them at nice 15 by default."""
    if niceness <= 0:
        return Check("priority", "ok", f"Ray's workers run at nice {niceness}")
    found = f"Ray's workers run at nice {niceness} and get little CPU time when other programs, or a learner, need it"
    return Check("priority", "warning", found, "set RAY_worker_niceness=0 in the environment of `ray start`")


def open_files_check(actors: int) -> Check:
    """Whether Ray can open the files and sockets that `actors` actors need; it raises the soft limit by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return Check("open files", "ok", "no limit")
    needed, remedy = RAY_FILES + actors * ACTOR_FILES, f"raise the hard limit to {RECOMMENDED_FILES} (ulimit -Hn)"
    found = f"limit {hard}; a run needs about {needed}"
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
    found = f"{source} leaves {max(0, limits[source])} processes and threads; a run needs about {needed}"
    if limits[source] < needed:
        return Check(name, "fatal", found, "raise the limit (docker: --pids-limit), or lower --num-actors")
    return Check(name, "ok", found)


def sizes_check(object_store: int) -> Check:
    """Whether `ulimit` leaves room for an object store of that many bytes, and for a run of any length.

    The object store is one file in shared memory, which is subject to the limit of file sizes: below it Ray cannot
    start.
    """
    problems = []
    file_size, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    has_room = file_size == resource.RLIM_INFINITY or file_size >= object_store
    if not has_room:
        problems.append(f"ulimit -f is {file_size // 2**20} MiB; a run needs {mib(object_store)} MiB")
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = ADDRESS_SPACE + object_store
    if memory != resource.RLIM_INFINITY and memory < needed:
        problems.append(f"ulimit -v is {memory // 2**20} MiB; a run needs about {mib(needed)} MiB")
    seconds, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if seconds != resource.RLIM_INFINITY:
        problems.append(f"ulimit -t ends the run, after a checkpoint, at {seconds} s of processor time")
    if problems:
        verdict: Verdict = "warning" if has_room else "fatal"
        return Check("sizes", verdict, "; ".join(problems), "raise these limits, or set them to unlimited")
    return Check("sizes", "ok", "no limit on file size, memory or processor time is too low")


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
