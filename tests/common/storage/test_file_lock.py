"""One process holds the lock, which ends with the process, however that ends."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.storage import file_lock
from common.storage.file_lock import FileIsLocked, FileLock

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from common.storage.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(popen, tmp_path):
    """Another process that holds tmp_path/lock."""
    process = popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_second_process_is_refused_and_learns_the_holder(holder, tmp_path):
    with pytest.raises(FileIsLocked, match=f"^process {holder.pid} on {socket.gethostname()}$"):
        FileLock(tmp_path / "lock")


def test_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = FileLock(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    lock.close()


def test_close_releases_the_lock_and_a_child_does_not_keep_it(popen, tmp_path):
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(FileIsLocked):
        FileLock(tmp_path / "lock")
    program = "import time; print('up', flush=True); time.sleep(600)"
    child = popen([sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"  # Linux wakes the parent just before it closes the child's descriptors
    lock.close()
    lock.close()
    FileLock(tmp_path / "lock").close()


def test_full_disk_does_not_prevent_locking(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", fail_with_full_disk)
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(FileIsLocked, match=r"^another process$"):
        FileLock(tmp_path / "lock")
    lock.close()
    FileLock(tmp_path / "lock").close()


def fail_with_full_disk(*_arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_directory_that_cannot_be_written_raises_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "nowhere" / "lock")


class TestWithoutFlock:
    """The same promises, kept by a file that names its owner."""

    @pytest.fixture(autouse=True, params=[errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL])
    def no_flock(self, request, monkeypatch):
        def flock(descriptor, operation):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(fcntl, "flock", flock)

    @pytest.fixture
    def held(self, tmp_path, holder):
        """The file that `holder`, which has flock, would have written without it."""
        path = tmp_path / "lock.owner"
        path.write_text(json.dumps(file_lock._identity(holder.pid)))
        return path

    def test_second_lock_is_refused_until_the_first_is_closed(self, tmp_path):
        lock = FileLock(tmp_path / "lock")
        with pytest.raises(FileIsLocked, match=rf"process {os.getpid()} on .*; delete {tmp_path}/lock.owner if that"):
            FileLock(tmp_path / "lock")
        lock.close()
        FileLock(tmp_path / "lock").close()
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]

    def test_lock_of_a_killed_process_is_free_even_before_its_parent_noticed(self, tmp_path, holder, held):
        with pytest.raises(FileIsLocked, match=f"^process {holder.pid} on"):
            FileLock(tmp_path / "lock")
        holder.kill()
        while file_lock._start_time(holder.pid) is not None:  # it is a zombie until `wait`
            time.sleep(0.01)
        FileLock(tmp_path / "lock").close()
        assert not held.exists()

    def test_process_with_a_reused_number_does_not_hold_the_lock(self, tmp_path, held):
        held.write_text(json.dumps(json.loads(held.read_text()) | {"started": "1"}))
        FileLock(tmp_path / "lock").close()

    @pytest.mark.parametrize("difference", ["host", "boot", "namespace"])
    def test_process_that_cannot_be_seen_keeps_the_lock(self, tmp_path, held, difference):
        held.write_text(json.dumps(json.loads(held.read_text()) | {difference: "elsewhere", "started": "1"}))
        with pytest.raises(FileIsLocked, match="delete"):
            FileLock(tmp_path / "lock")

    def test_file_that_names_nobody_keeps_the_lock(self, tmp_path):
        (tmp_path / "lock.owner").touch()
        with pytest.raises(FileIsLocked, match=r"delete .* if none uses it"):
            FileLock(tmp_path / "lock")

    def test_stale_file_that_was_replaced_meanwhile_is_left_alone(self, tmp_path, held):
        assert not file_lock._take_away(held, {"process": 1})
        assert held.exists()


def test_broken_disk_is_not_taken_for_a_missing_flock(monkeypatch, tmp_path):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"):
        FileLock(tmp_path / "lock")
