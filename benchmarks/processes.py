"""Starts the processes that a benchmark measures, and watches their memory."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from common.storage.jsonl import read_jsonl


@contextlib.contextmanager
def watch_peaks(sample: Callable[[], dict[str, int]], interval: float) -> Iterator[dict[str, int]]:
    """Calls `sample` on a thread every `interval` seconds inside its `with` block; yields the largest values."""
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while True:
            for name, value in sample().items():
                peaks[name] = max(peaks.get(name, 0), value)
            if ended.wait(interval):
                return

    thread = threading.Thread(target=watch, name="watch-peaks", daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and its living descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_tree(process: psutil.Process) -> None:
    """Kills a process and its descendants."""
    for member in process_tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def memory_by_kind(process: psutil.Process, kind: Callable[[psutil.Process], str]) -> dict[str, int]:
    """Bytes of memory of a process and its descendants, summed for each kind of process.

    Proportional set size: of memory that n processes share, each counts an n-th.
    """
    sizes: dict[str, int] = {}
    for member in process_tree(process):
        with contextlib.suppress(psutil.Error):  # it has ended
            name = kind(member)
            sizes[name] = sizes.get(name, 0) + member.memory_full_info().pss
    return sizes


def run_and_watch(command: list[str], environment: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Runs a command to its end; returns its stdout and the peak memory in MiB of each kind of process and of all.

    Raises:
        RuntimeError: the command failed.
    """
    process = psutil.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)

    def kind(member: psutil.Process) -> str:
        return "driver" if member == process else member.name().split(":")[-1].strip() or "ray"

    def sample() -> dict[str, int]:
        sizes = memory_by_kind(process, kind)
        return {**sizes, "all together": sum(sizes.values())}

    with watch_peaks(sample, interval=1.0) as peaks:
        try:
            out, _ = process.communicate()
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # the usual case: it has ended
                process.terminate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return out, {name: round(value / 2**20) for name, value in peaks.items() if value >= 50 * 2**20}


def run_for_json(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs `python -m MODULE`; returns the JSON object in its last line of output, with its peak memory."""
    out, peaks = run_and_watch([sys.executable, "-m", module, *arguments], environment or {})
    return {"peak_memory_mib": peaks, **json.loads(out.splitlines()[-1])}


def run_learner(*flags: object) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Runs `python -m learner` in a temporary run directory; returns its metrics.jsonl and its peak memory in MiB."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        _, peaks = run_and_watch([sys.executable, "-m", "learner", *map(str, flags), "--run-dir", str(run_dir)], {})
        return read_jsonl(run_dir / "metrics.jsonl"), peaks


def summarize(rows: list[dict[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Frames/s and the means of the named columns of metrics.jsonl, without the first update."""
    first, last = rows[0], rows[-1]
    return {
        "frames_per_second": (last["frames"] - first["frames"]) / (last["time"] - first["time"]),
        **{name: statistics.mean(row[name] for row in rows[1:]) for name in names if name in last},
    }


def end_on_sigterm() -> None:
    """Exits normally on SIGTERM, so that processes started by a benchmark end with it and do not disturb the next."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
