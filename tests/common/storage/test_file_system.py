"""File systems with fewer features: each is found by the probe, and each has a fallback that works."""

import errno
import fcntl
import os

import pytest

from common.storage.atomic_files import fsync_directory, write_atomically
from common.storage.file_system import existing_parent, probe
from common.storage.run_directory import RunDirectory

UNSUPPORTED = [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL]


def fails_with(number, when=lambda *args: True, otherwise=None):
    def operation(*args, **kwargs):
        if when(*args):
            raise OSError(number, os.strerror(number))
        return otherwise(*args, **kwargs)

    return operation


def lack(monkeypatch, operation, number):
    """Makes this process's file systems answer `number` to an operation."""
    if operation == "flock":
        monkeypatch.setattr(fcntl, "flock", fails_with(number))
    elif operation == "fsync":  # of directories only
        is_directory = lambda descriptor: os.path.isdir(f"/proc/self/fd/{descriptor}")  # noqa: E731
        monkeypatch.setattr(os, "fsync", fails_with(number, is_directory, os.fsync))
    elif operation == "replace":
        monkeypatch.setattr(
            os, "replace", fails_with(number, lambda source, target: os.path.exists(target), os.replace)
        )
    else:
        monkeypatch.setattr(os, operation, fails_with(number))


def test_complete_file_system_lacks_nothing_and_the_probe_leaves_nothing(tmp_path):
    features = probe(tmp_path)
    assert (features.missing, features.unusable, features.describe()) == ((), None, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", UNSUPPORTED)
@pytest.mark.parametrize(
    ("operation", "text"),
    [
        ("symlink", "no symbolic links"),
        ("link", "no hard links"),
        ("flock", "no flock"),
        ("fsync", "no fsync of directories"),
        ("replace", "no rename over an existing file"),
    ],
)
def test_probe_names_the_missing_feature_and_its_fallback(monkeypatch, tmp_path, operation, text, number):
    lack(monkeypatch, operation, number)
    (missing,) = probe(tmp_path).missing
    assert missing.startswith(f"{text}: ")
    assert list(tmp_path.iterdir()) == []


def test_ignored_modes_are_missing_modes(monkeypatch, tmp_path):
    real = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: os.stat_result((real(fd).st_mode | 0o055, *real(fd)[1:])))
    assert probe(tmp_path).describe().startswith("no file modes: ")


@pytest.mark.parametrize("operation", ["mkdir", "rename"])
def test_directory_where_no_run_can_be_written_is_unusable(monkeypatch, tmp_path, operation):
    run = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(os, operation, fails_with(errno.EROFS if operation == "mkdir" else errno.ENOTSUP))
    assert probe(tmp_path).unusable is not None
    with pytest.raises(ValueError, match=r"cannot be used: .*choose a directory on another file system with --run-dir"):
        run.check_file_system()


def test_parent_that_exists_stands_for_a_directory_that_does_not(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    assert RunDirectory(tmp_path / "a" / "b").check_file_system() == ""


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.EEXIST])
def test_files_are_replaced_where_a_rename_cannot_replace(monkeypatch, tmp_path, number):
    write_atomically(tmp_path / "file", b"old")
    lack(monkeypatch, "replace", number)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_full_disk_is_not_taken_for_a_missing_feature(monkeypatch, tmp_path):
    write_atomically(tmp_path / "file", b"old")
    lack(monkeypatch, "replace", errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_directories_are_not_synced_where_they_cannot_be(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        lack(patch, "fsync", errno.EINVAL)
        write_atomically(tmp_path / "file", b"data")
    with monkeypatch.context() as patch:
        lack(patch, "open", errno.EACCES)
        fsync_directory(tmp_path)
    lack(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        fsync_directory(tmp_path)


def test_best_checkpoint_is_a_link_or_a_text_file(monkeypatch, tmp_path):
    run = RunDirectory(tmp_path)
    run.checkpoints.mkdir()
    assert run.best_checkpoint() is None
    run.set_best_checkpoint("00000010")
    assert (run.best_checkpoint(), os.readlink(run.best)) == ("00000010", "00000010")
    with monkeypatch.context() as patch:
        lack(patch, "symlink", errno.EPERM)
        run.set_best_checkpoint("00000020")
        assert run.best_checkpoint() == "00000020"
        assert [path.name for path in run.checkpoints.iterdir()] == ["best.txt"]
        run.set_best_checkpoint("00000030")
    assert run.best_text.read_text() == "00000030\n"
    run.set_best_checkpoint("00000040")  # links are back
    assert (run.best_checkpoint(), [path.name for path in run.checkpoints.iterdir()]) == ("00000040", ["best"])
    run.set_best_checkpoint(None)
    assert run.best_checkpoint() is None and list(run.checkpoints.iterdir()) == []
