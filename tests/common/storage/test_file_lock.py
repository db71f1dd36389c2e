"""One process holds the lock, which ends with the process, however that ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
def holder(tmp_path):
    """Another process that holds tmp_path/lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_second_process_is_refused_and_learns_the_holder(holder, tmp_path):
    with pytest.raises(FileIsLocked, match=f"^process {holder.pid} on {socket.gethostname()}$"):
        FileLock(tmp_path / "lock")


def test_lock_of_a_killed_process_is_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = FileLock(tmp_path / "lock")
    assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    lock.close()


def test_close_releases_the_lock_and_a_child_does_not_keep_it(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(FileIsLocked):
        FileLock(tmp_path / "lock")
    program = "import time; print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", program], close_fds=False, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"up\n"  # Linux wakes the parent just before it closes the child's descriptors
    lock.close()
    lock.close()
    FileLock(tmp_path / "lock").close()
    child.kill()
    child.communicate()


def test_directory_that_cannot_be_written_raises_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "nowhere" / "lock")
