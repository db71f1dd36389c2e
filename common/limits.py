"""The CPUs, memory and processes that this process may use, which on shared machines are fewer than the machine has.

Containers and batch systems limit a process by a cgroup (version 1 or 2) or by its CPU affinity. Every function takes
the directory that holds `proc` and `sys`, so that tests can pass a directory of their own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
# Version 1 writes "no limit" as the largest multiple of the page size below 2**63.
_NO_LIMIT = 2**62


def available_cores(root: Path = ROOT) -> int:
    """CPU cores that this process may use, at least 1: affinity and CPU quota, whichever is less.

    A quota of 2.5 CPUs counts as 2 cores: a third busy process would be throttled.
    """
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """The CPU quota of this process's cgroups in CPUs, such as 1.5; None if there is no quota."""
    quotas = []
    for directory in _cgroups("", root):
        quota, _, period = _read(directory / "cpu.max").partition(" ")
        quotas.append(_ratio(quota, period))
    for directory in _cgroups("cpu", root):
        quotas.append(_ratio(_read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")))
    return min((quota for quota in quotas if quota is not None), default=None)


def available_memory(free: int, root: Path = ROOT) -> int:
    """Bytes of memory that this process's cgroups leave, at most `free`, what the machine has available."""
    for directory in _cgroups("", root):
        free = min(free, _room(directory, "memory.max", "memory.current", "inactive_file", free))
    for directory in _cgroups("memory", root):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        free = min(free, _room(directory, *names, free))
    return free


def memory_limit(total: int, root: Path = ROOT) -> int:
    """Bytes of memory that this process's cgroups allow, at most `total`, what the machine has."""
    limits = [_number(_read(directory / "memory.max")) for directory in _cgroups("", root)]
    limits += [_number(_read(directory / "memory.limit_in_bytes")) for directory in _cgroups("memory", root)]
    return min(total, *(limit for limit in limits if limit is not None), total)


def processes_left(root: Path = ROOT) -> int | None:
    """How many more processes and threads this process's cgroups allow; None if they set no limit."""
    left = []
    for directory in (*_cgroups("", root), *_cgroups("pids", root)):
        limit, current = _number(_read(directory / "pids.max")), _number(_read(directory / "pids.current"))
        if limit is not None:
            left.append(limit - (current or 0))
    return min(left, default=None)


def _cgroups(controller: str, root: Path) -> Iterator[Path]:
    """The directories of this process's cgroup and those above it: of version 2 for "", else of a v1 controller.

    In a container the path in /proc may be the host's, of which only the top is visible.
    """
    mounts = [root / "sys/fs/cgroup"]
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        if controller:
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        for mount in mounts:
            if mount.is_dir():
                inner = mount / path.lstrip("/")
                yield inner
                yield from (parent for parent in inner.parents if parent.is_relative_to(mount))
                break


def _room(directory: Path, limit_name: str, usage_name: str, cache_name: str, free: int) -> int:
    """Bytes below the limit of one cgroup, `free` without a limit. Cached files do not count: the kernel drops them."""
    limit, usage = _number(_read(directory / limit_name)), _number(_read(directory / usage_name))
    if limit is None or usage is None:
        return free
    statistics = dict(line.split(" ", 1) for line in _read(directory / "memory.stat").splitlines() if " " in line)
    return max(0, limit - usage + (_number(statistics.get(cache_name, "")) or 0))


def _ratio(quota: str, period: str) -> float | None:
    """Quota divided by period; "max" and -1 mean no quota."""
    numerator, denominator = _number(quota), _number(period)
    return numerator / denominator if numerator and denominator else None


def _number(text: str) -> int | None:
    """A whole number below "no limit", else None."""
    return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


def _read(path: Path) -> str:
    """The content of a file without the last line end; "" if it cannot be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
