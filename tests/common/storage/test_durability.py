"""What reaches the disk in which order: after a power failure or a kill at any moment, what can be seen is complete."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from common.storage.atomic_files import write_atomically
from common.storage.checkpoints import list_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from tests.conftest import tiny_config


def save(directory, version):
    return save_checkpoint(directory, tiny_config(), version, 0, {"weight": np.zeros(3, np.float32)}, {"step": version})


@pytest.fixture
def operations(monkeypatch):
    """What happens from now on: ("sync", path, bytes in the file or None) and ("rename", from, to)."""
    done, fsync = [], os.fsync

    def record_sync(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        done.append(("sync", path, None if path.is_dir() else path.stat().st_size))
        fsync(descriptor)

    def recorded(rename):
        return lambda source, target: (done.append(("rename", Path(source), Path(target))), rename(source, target))

    monkeypatch.setattr(os, "fsync", record_sync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, recorded(getattr(os, name)))
    return done


def test_checkpoint_is_on_the_disk_manifest_last_before_it_gets_its_name(operations, tmp_path):
    final = save(tmp_path, 7)
    temporary = tmp_path / f".00000007.{os.getpid()}.tmp"
    files = ("policy.safetensors", "learner.pt", "manifest.json")
    assert operations == [
        *(("sync", temporary / name, (final / name).stat().st_size) for name in files),
        ("sync", temporary, None),
        ("rename", temporary, final),
        ("sync", tmp_path, None),
    ]


def test_file_is_on_the_disk_before_it_replaces_the_old_one(operations, tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    write_atomically(tmp_path / "file", b"newer")
    temporary = tmp_path / f".file.{os.getpid()}.tmp"
    assert operations == [
        ("sync", temporary, 5),
        ("rename", temporary, tmp_path / "file"),
        ("sync", tmp_path, None),
    ]


def test_interrupted_write_leaves_the_old_file_and_nothing_else(monkeypatch, tmp_path):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", b"newer")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_checkpoint_whose_deletion_was_interrupted_is_not_seen(monkeypatch, tmp_path):
    for version in range(3):
        save(tmp_path, version)

    def delete_one_file(path, **_):
        next(Path(path).iterdir()).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", delete_one_file)
    with pytest.raises(Killed):
        prune_checkpoints(tmp_path, keep=1, keep_every=0, is_protected=lambda version: False)
    assert [load_checkpoint(path).policy_version for path in list_checkpoints(tmp_path)] == [1, 2]
