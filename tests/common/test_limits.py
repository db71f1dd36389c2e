"""CPU, memory and process limits as cgroups of both versions and the affinity state them."""

from pathlib import Path

import pytest

from common.limits import available_cores, available_memory, cpu_quota, memory_limit, processes_left

GIB = 2**30
NO_LIMIT_V1 = str(2**63 - 4096)


def machine(root: Path, cgroup: str, **files: str) -> Path:
    """A directory with `proc/self/cgroup` and files below `sys/fs/cgroup`; `__` in a name stands for `/`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, content in files.items():
        *directories, file = name.split("__")
        path = root.joinpath("sys/fs/cgroup", *directories, file.replace("_of_", "."))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/\n", {"cpu_of_max": "100000 100000"}, 1.0),
        ("0::/\n", {"cpu_of_max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu_of_max": "max 100000"}, None),
        # Slurm: the quota is of a cgroup above the process's.
        ("0::/job/step\n", {"job__cpu_of_max": "200000 100000", "job__step__cpu_of_max": "max 100000"}, 2.0),
        ("0::/job/step\n", {"job__cpu_of_max": "200000 100000", "job__step__cpu_of_max": "50000 100000"}, 0.5),
        (
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu,cpuacct__cpu_of_cfs_quota_us": "100000", "cpu,cpuacct__cpu_of_cfs_period_us": "50000"},
            2.0,
        ),
        (
            "1:cpu:/a\n",
            {"cpu__a__cpu_of_cfs_quota_us": "-1", "cpu__a__cpu_of_cfs_period_us": "100000"},
            None,
        ),
        ("", {}, None),
        ("0::/\n", {"cpu_of_max": "nonsense"}, None),
    ],
)
def test_cpu_quota_is_the_smallest_of_the_cgroups(cgroup, files, expected, tmp_path) -> None:
    assert cpu_quota(machine(tmp_path, cgroup, **files)) == expected


@pytest.mark.parametrize(
    ("quota", "affinity", "expected"),
    [("max", 8, 8), ("300000", 8, 3), ("250000", 8, 2), ("10000", 8, 1), ("800000", 2, 2)],
)
def test_available_cores_are_those_of_quota_and_affinity(quota, affinity, expected, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(affinity)))
    assert available_cores(machine(tmp_path, "0::/\n", cpu_of_max=f"{quota} 100000")) == expected


def test_memory_is_what_the_smallest_cgroup_leaves_without_cached_files(tmp_path) -> None:
    root = machine(
        tmp_path,
        "0::/a\n",
        a__memory_of_max=str(4 * GIB),
        a__memory_of_current=str(3 * GIB),
        a__memory_of_stat=f"anon {GIB}\ninactive_file {2 * GIB}",
        memory_of_max="max",
    )
    assert memory_limit(16 * GIB, root) == 4 * GIB
    assert available_memory(10 * GIB, root) == 3 * GIB
    assert available_memory(GIB, root) == GIB


def test_memory_without_a_limit_is_that_of_the_machine(tmp_path) -> None:
    limits = {"memory__memory_of_limit_in_bytes": NO_LIMIT_V1, "memory__memory_of_usage_in_bytes": str(GIB)}
    root = machine(tmp_path, "4:memory:/\n", **limits)
    assert memory_limit(16 * GIB, root) == 16 * GIB
    assert available_memory(10 * GIB, root) == 10 * GIB


def test_memory_limit_of_version_1_is_found(tmp_path) -> None:
    limits = {"memory__m__memory_of_limit_in_bytes": str(2 * GIB), "memory__m__memory_of_usage_in_bytes": str(GIB)}
    root = machine(tmp_path, "4:memory:/m\n", **limits)
    assert memory_limit(16 * GIB, root) == 2 * GIB
    assert available_memory(10 * GIB, root) == GIB


def test_processes_left_are_those_below_the_limit(tmp_path) -> None:
    root = machine(tmp_path, "0::/a\n", a__pids_of_max="500", a__pids_of_current="480", pids_of_max="max")
    assert processes_left(root) == 20


def test_processes_without_a_limit_have_no_number(tmp_path) -> None:
    assert processes_left(machine(tmp_path, "0::/\n", pids_of_max="max")) is None
