"""Limits that containers, batch systems and shells set are found, with their names."""

import pytest

from learner.cluster import limit_checks
from learner.cluster.limit_checks import (
    cpu_check,
    open_files_check,
    processes_check,
    sizes_check,
    worker_priority_check,
)


@pytest.mark.parametrize(("hard", "verdict"), [(32, "fatal"), (200, "warning"), (8192, "ok"), (-1, "ok")])
def test_open_files_are_checked_against_the_hard_limit(hard, verdict, monkeypatch):
    monkeypatch.setattr(limit_checks.resource, "getrlimit", lambda kind: (32, hard))
    check = open_files_check(actors=2)
    assert check.verdict == verdict and ("ulimit -Hn" in check.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("in_cgroup", "of_user", "verdict", "found"),
    [
        (None, None, "ok", "no limit"),
        (100, None, "fatal", "pids limit of the cgroup leaves 100"),
        (100, 4000, "fatal", "pids limit of the cgroup leaves 100"),
        (4000, -5, "fatal", "ulimit -u leaves 0"),
        (4000, 5000, "ok", "leaves 4000"),
    ],
)
def test_processes_are_checked_against_cgroup_and_ulimit(in_cgroup, of_user, verdict, found, monkeypatch):
    monkeypatch.setattr(limit_checks, "processes_left", lambda: in_cgroup)
    monkeypatch.setattr(limit_checks, "_user_processes_left", lambda: of_user)
    check = processes_check(actors=2)
    assert check.verdict == verdict and found in check.found


@pytest.mark.parametrize(
    ("affinity", "quota", "verdict", "found"),
    [
        (8, None, "ok", "8 of the machine's 8 cores"),
        (2, None, "ok", "2 of the machine's 8 cores (limited by affinity 2)"),
        (8, 2.5, "ok", "2 of the machine's 8 cores (limited by quota 2.5 CPUs)"),
        (4, 0.5, "warning", "1 of the machine's 8 cores (limited by affinity 4 and quota 0.5 CPUs)"),
    ],
)
def test_usable_cores_are_shown_with_what_limits_them(affinity, quota, verdict, found, monkeypatch):
    monkeypatch.setattr(limit_checks.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(limit_checks.os, "sched_getaffinity", lambda process: set(range(affinity)))
    monkeypatch.setattr(limit_checks, "cpu_quota", lambda: quota)
    monkeypatch.setattr("common.limits.cpu_quota", lambda root: quota)
    check = cpu_check()
    assert (check.verdict, check.found) == (verdict, found) and bool(check.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("kind", "limit", "verdict", "found"),
    [
        (None, 0, "ok", "no limit"),
        ("RLIMIT_FSIZE", 100 << 20, "fatal", "ulimit -f is 100 MiB; a run needs 500 MiB"),
        ("RLIMIT_FSIZE", 500 << 20, "ok", "no limit"),
        ("RLIMIT_AS", 3 << 30, "warning", "ulimit -v is 3072 MiB; a run needs about 3572 MiB"),
        ("RLIMIT_AS", 4 << 30, "ok", "no limit"),
        ("RLIMIT_CPU", 3600, "warning", "ulimit -t ends the run, after a checkpoint, at 3600 s"),
    ],
)
def test_limits_of_sizes_and_time_that_are_too_low_are_named(kind, limit, verdict, found, monkeypatch):
    resource = limit_checks.resource
    limited = kind and getattr(resource, kind)
    monkeypatch.setattr(resource, "getrlimit", lambda asked: (limit if asked == limited else -1, -1))
    check = sizes_check(500 << 20)
    assert check.found.startswith(found) and check.verdict == verdict


@pytest.mark.parametrize(("niceness", "verdict"), [(0, "ok"), (-5, "ok"), (1, "warning"), (15, "warning")])
def test_priority_of_workers_below_that_of_other_programs_is_a_warning(niceness, verdict):
    check = worker_priority_check(niceness)
    assert check.verdict == verdict and f"nice {niceness}" in check.found
    assert ("RAY_worker_niceness=0" in check.remedy) == (verdict == "warning")
