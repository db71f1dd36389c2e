"""Each check says what it found, how bad that is and what to do about it."""

import collections
import errno

import pytest

import common.procgen_env
from common.procgen_env import MissingLibrary
from common.versions import procgen_build
from learner.cluster import machine_checks
from learner.cluster.machine_checks import (
    GIB,
    libraries_check,
    memory_check,
    procgen_check,
    python_check,
    shared_memory_check,
    torch_check,
)


def test_machine_that_can_train_has_no_fatal_check():
    checks = machine_checks.machine_checks(actors=0)
    assert [check.name for check in checks] == ["Python", "libraries", "torch", "Procgen", "memory"]
    assert [check for check in checks if check.verdict == "fatal"] == []


def test_unsupported_python_is_fatal(monkeypatch):
    monkeypatch.setattr(machine_checks.platform, "python_version", lambda: "3.1.4")
    check = python_check()
    assert check.verdict == "fatal" and "3.10 to 3.13" in check.remedy


def test_missing_library_is_named(monkeypatch):
    versions = {name: found for name, found in machine_checks.software().items() if name != "zstandard"}
    monkeypatch.setattr(machine_checks, "software", lambda: versions)
    check = libraries_check()
    assert check.verdict == "fatal" and check.found == "missing: zstandard" and "pip install" in check.remedy


@pytest.mark.parametrize("python", ["3.10.13", "3.11.7", "3.12.1", "3.13.0"])
def test_every_python_that_procgen_has_a_build_for_is_accepted(monkeypatch, python):
    monkeypatch.setattr(machine_checks.platform, "python_version", lambda: python)
    assert python_check().verdict == "ok"


def test_build_of_procgen_and_its_version_are_shown():
    check = procgen_check()
    assert check.verdict == "ok" and check.found.startswith(f"{procgen_build()} ") and "unknown" not in check.found


@pytest.mark.parametrize("missing", ["gym3", "procgen", "procgen-mirror", "procgen-gym"])
def test_library_that_only_some_builds_of_procgen_need_is_not_missed(monkeypatch, missing):
    versions = {name: found for name, found in machine_checks.software().items() if name != missing}
    monkeypatch.setattr(machine_checks, "software", lambda: versions)
    assert libraries_check().verdict == "ok"


@pytest.mark.parametrize(
    ("error", "found", "remedy"),
    [
        (MissingLibrary("libGL.so.1"), "libGL.so.1 is missing", "apt-get install"),
        (RuntimeError("no assets"), "does not run: no assets", "pip install"),
    ],
)
def test_procgen_that_does_not_run_is_fatal(monkeypatch, error, found, remedy):
    def fail():
        raise error

    monkeypatch.setattr(common.procgen_env, "step_once", fail)
    check = procgen_check()
    assert check.verdict == "fatal" and check.found == found and remedy in check.remedy


def test_system_library_that_procgen_lacks_is_named_by_its_file_name(monkeypatch):
    def fail(*_args, **_options):
        raise OSError("cannot load library: libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(common.procgen_env, "make_envs", fail)
    with pytest.raises(MissingLibrary, match=r"^libGL\.so\.1$"):
        common.procgen_env.step_once()


def test_too_little_shared_memory_is_fatal_and_names_the_size_for_docker():
    check = shared_memory_check(10**6 * GIB)
    assert check.verdict == "fatal" and f"--shm-size {1024 * 10**6}m" in check.remedy
    assert shared_memory_check(1).verdict == "ok"


def test_missing_shared_memory_is_fatal(monkeypatch):
    def missing(_path):
        raise OSError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(machine_checks.shutil, "disk_usage", missing)
    check = shared_memory_check(1)
    assert check.verdict == "fatal" and "No such file" in check.found


def test_too_little_memory_is_a_warning_with_the_size_that_actors_need(monkeypatch):
    memory = collections.namedtuple("memory", "available total")(3 * GIB, 8 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert memory_check(actors=1).verdict == "ok"
    check = memory_check(actors=4)
    assert check.verdict == "warning" and check.remedy.startswith("5.0 GiB are needed")


def test_gpu_that_torch_cannot_use_is_a_warning(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert torch_check().verdict == "ok"
    monkeypatch.setattr(machine_checks.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    check = torch_check()
    assert check.verdict == "warning" and "CUDA build" in check.remedy


def test_memory_check_follows_the_limit_of_the_cgroup(monkeypatch):
    monkeypatch.setattr(machine_checks, "available_memory", lambda free: GIB)
    monkeypatch.setattr(machine_checks, "memory_limit", lambda total: 2 * GIB)
    check = memory_check(actors=1)
    assert check.verdict == "warning" and check.found.startswith("1.0 of 2.0 GiB free (limit of the cgroup")


def test_shared_memory_that_cannot_be_written_is_fatal(monkeypatch):
    monkeypatch.setattr(machine_checks.os, "access", lambda path, mode: False)
    assert shared_memory_check(1).found == "/dev/shm is not writable"


def test_check_that_fails_itself_is_a_line_of_the_table(capfd):
    def fail():
        raise RuntimeError("surroundings of a new kind")

    (check,) = machine_checks.run_checks({"a check": fail})
    assert (check.name, check.verdict) == ("a check", "fatal")
    assert check.found == "cannot be checked: RuntimeError: surroundings of a new kind"
    assert capfd.readouterr() == ("", "")
