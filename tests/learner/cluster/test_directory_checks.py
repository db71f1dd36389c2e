"""A run directory is judged without creating or changing anything in it."""

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest

from common.policy_network import PolicyNetwork
from common.storage.checkpoints import save_checkpoint
from common.storage.run_directory import RunDirectory
from learner.cluster.directory_checks import file_system_check, run_directory_check
from learner.startup.preparation import lock_for_learner
from tests.conftest import tiny_config


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    config = tiny_config()
    run.write_config(config, {})
    for version in (0, 2):
        save_checkpoint(run.checkpoints, config, version, 0, PolicyNetwork(config.network).weights(), {})
    return run


def contents(directory: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in (directory, *directory.rglob("*"))}


def test_stored_run_is_judged_without_touching_it(run):
    before = contents(run.path)
    check, file_system = run_directory_check(run.path, is_named=True), file_system_check(run.path)
    assert check.verdict == "ok" and "holds a run with 2 checkpoints, at policy_version 2" in check.found
    assert file_system.verdict == "ok" and contents(run.path) == before


def test_run_in_use_is_fatal_and_its_lock_untouched(run):
    lock = lock_for_learner(run)
    before = contents(run.path)
    check = run_directory_check(run.path, is_named=True)
    assert check.verdict == "fatal" and f"in use by another learner (process {os.getpid()} on" in check.found
    assert contents(run.path) == before
    lock.close()
    assert run_directory_check(run.path, is_named=True).verdict == "ok"


def test_damaged_checkpoint_is_a_warning_and_no_complete_one_fatal(run):
    (run.checkpoints / "00000002" / "learner.pt").write_bytes(b"")
    check = run_directory_check(run.path, is_named=True)
    assert check.verdict == "warning" and "policy_version 0" in check.found and "learner.pt has 0 bytes" in check.found
    (run.checkpoints / "00000000" / "manifest.json").unlink()
    check = run_directory_check(run.path, is_named=True)
    assert check.verdict == "fatal" and "has no complete checkpoint" in check.found


@pytest.mark.parametrize("name", ["checkpoints", "resume"])
def test_directory_of_checkpoints_that_cannot_be_written_is_fatal(run, name, monkeypatch):
    (run.path / "resume").mkdir(exist_ok=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != name and access(path, mode))
    check = run_directory_check(run.path, is_named=True)
    assert check.verdict == "fatal" and check.found == f"{run.path / name} is not writable"


def test_link_to_another_file_system_is_tested_where_it_leads(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as target:
        link = tmp_path / "link"
        link.symlink_to(target)
        check = file_system_check(link)
        assert check.verdict == "ok" and check.found.startswith("/dev/shm: ")


def test_full_disk_is_told_from_a_file_system_that_cannot_hold_a_run(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "rename", fail)
    assert file_system_check(tmp_path).remedy == "free some space"


def test_edited_config_is_fatal(run):
    stored = json.loads(run.config.read_text())
    stored["settings"]["learning_rate"] = 0.05
    run.config.write_text(json.dumps(stored))
    check = run_directory_check(run.path, is_named=True)
    assert check.verdict == "fatal" and "config.json was edited: learning_rate is 0.05" in check.found


@pytest.mark.parametrize(
    ("path", "run_verdict", "file_system_verdict"),
    [
        ("new/run", "ok", "ok"),
        ("a file/run", "fatal", "fatal"),
        ("dangling", "fatal", "fatal"),
        ("x" * 300, "fatal", "ok"),
        ("a\nb 'c' %s", "ok", "ok"),
    ],
)
def test_directory_of_a_new_run(path, run_verdict, file_system_verdict, tmp_path):
    (tmp_path / "a file").write_text("")
    (tmp_path / "dangling").symlink_to("missing")
    before = sorted(tmp_path.iterdir())
    check, file_system = run_directory_check(tmp_path / path, is_named=True), file_system_check(tmp_path / path)
    assert (check.verdict, file_system.verdict) == (run_verdict, file_system_verdict), (check, file_system)
    assert sorted(tmp_path.iterdir()) == before


def test_directory_that_cannot_be_asked_about_is_fatal(tmp_path, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)
    check = run_directory_check(tmp_path / "run", is_named=True)
    assert check.verdict == "fatal" and "Permission denied" in check.found
