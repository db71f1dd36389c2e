"""What the tests of deployment files share, most of it for Slurm's job scripts."""

import shutil
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import PROJECT

SLURM = PROJECT / "deploy" / "slurm"
TRAIN, STUDY = SLURM / "train.sbatch", SLURM / "study.sbatch"


def assert_shellcheck_finds_nothing(*scripts: Path) -> None:
    """The first script may source the others."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (Debian's package shellcheck)")
    done = subprocess.run(["shellcheck", "-x", *scripts], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def own_address() -> str:
    """An address of this host, for jobs of several nodes, which do without the loopback interface."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return address.address
    pytest.skip("needs an IPv4 address other than the loopback address, which other nodes could not reach")


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def assert_only_the_owner_reaches(files: Path) -> None:
    modes = {path.name: stat_mode(path) for path in (files, *files.iterdir())}
    assert modes == {files.name: 0o700, "r": 0o777, "token": 0o600, "ray.log": 0o600}
