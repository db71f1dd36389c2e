"""`ray start --head` as a user runs it, with and without a token, and who may read what a run leaves behind."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from learner.cluster.authentication_probe import CLIENT_TIMEOUTS
from tests.conftest import WORKER_SETTINGS

PROJECT = Path(__file__).parents[2]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
# Ray retries many times after a refusal; one attempt is enough here.
IMPATIENCE = {**CLIENT_TIMEOUTS, "RAY_NUM_REDIS_GET_RETRIES": "1"}
WORKER_ENVIRONMENT = {f"RAY_{name}": str(value) for name, value in WORKER_SETTINGS.items()}
# Ray replaces a node address of 127.0.0.1 by the host's own one; 127.0.0.2 stays.
HOST = "127.0.0.2"
WRONG_TOKEN = "0123456789abcdef" * 4


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's environment without Ray's variables, for a user whose home is `home`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**inherited, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", **more}


def store_token(home: Path, token: str) -> None:
    """Stores `token` where Ray and the learner look for it."""
    (home / ".ray").mkdir(parents=True, mode=0o700)
    path = home / ".ray" / "auth_token"
    path.touch(mode=0o600)
    path.write_text(token)


def run(*command: object, env: dict[str, str], timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end in the project's root."""
    return subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def start_head(
    log: Path, temp_dir: Path, env: dict[str, str], *flags: object, prefix: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """`ray start --head --block` at HOST with two CPUs and Ray's files in `temp_dir`; its output goes to `log`."""
    command = [
        *(*prefix, *RAY, "start", "--head", "--block", "--node-ip-address", HOST, "--include-dashboard", "false"),
        *("--temp-dir", str(temp_dir), "--num-cpus", "2", "--object-store-memory", str(200 << 20), *map(str, flags)),
    ]
    with open(log, "w") as output:
        return subprocess.Popen(
            command, env={**env, **WORKER_ENVIRONMENT}, cwd=PROJECT, stdout=output, stderr=output, text=True
        )


def end(process: subprocess.Popen[str]) -> None:
    """Ends a process and its descendants."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        tree = []
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in tree:
        with contextlib.suppress(psutil.Error):
            child.kill()


def readable_by_others(directory: Path) -> list[str]:
    """Files and directories that group or others could read, write or enter; links have no mode."""
    paths = [directory, *directory.rglob("*")]
    assert len(paths) > 10
    return [f"{p} {p.lstat().st_mode & 0o777:o}" for p in paths if not p.is_symlink() and p.lstat().st_mode & 0o077]
