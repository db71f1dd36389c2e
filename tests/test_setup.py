"""`make setup` in unusual surroundings, with stand-ins for Python and flock: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Python 3.11 which has venv, but cannot create one.
PYTHON = """#!/bin/bash
case "$*" in
*version_info*) echo 3.11 ;;
"-m venv .venv") exit 1 ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that set-up reads."""
    directory = tmp_path / "project"
    (directory / "tools").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "procgen-gym.txt", "tools/setup.sh"):
        shutil.copy(ROOT / name, directory / name)
    return directory


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def set_up(project: Path, **environment: str) -> str:
    """What `make setup` prints when it fails to make .venv with the stand-in for Python."""
    done = subprocess.run(
        ["bash", "tools/setup.sh"],
        cwd=project,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert (project / "tools/setup.sh").read_bytes() == (ROOT / "tools/setup.sh").read_bytes()
    return done.stdout + done.stderr


def test_path_of_python_may_have_spaces(project: Path, tmp_path: Path) -> None:
    python = program(tmp_path / "a directory" / "python3.11", PYTHON)
    assert set_up(project, PYTHON=str(python)).endswith(f"setup: {python} -m venv .venv failed\n")


def test_file_system_without_locks_does_not_end_set_up(project: Path, tmp_path: Path) -> None:
    python = program(tmp_path / "python3.11", PYTHON)
    flock = program(tmp_path / "bin" / "flock", "#!/bin/sh\necho 'flock: 9: Bad file descriptor' >&2\nexit 65\n")
    printed = set_up(project, PYTHON=str(python), PATH=f"{flock.parent}:{os.environ['PATH']}")
    assert printed.endswith("-m venv .venv failed\n") and "flock" not in printed


def test_lock_is_taken_on_a_file_that_is_open_for_writing(project: Path, tmp_path: Path) -> None:
    python = program(tmp_path / "python3.11", PYTHON)
    flock = program(tmp_path / "bin" / "flock", "#!/bin/sh\ngrep flags /proc/self/fdinfo/9 >../flags\n")
    set_up(project, PYTHON=str(python), PATH=f"{flock.parent}:{os.environ['PATH']}")
    flags = int((tmp_path / "flags").read_text().split()[1], 8)
    assert flags & os.O_ACCMODE == os.O_WRONLY and flags & os.O_APPEND  # NFSv4 refuses the lock otherwise
