"""Running a command under watch, and what machine it ran on."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch


def run_and_watch(command: list[str], environment: Mapping[str, str]) -> tuple[str, dict[str, float]]:
    """Runs a command to its end; its stdout, and the peak memory in MiB of each kind of process and of all together.

    Proportional set size: memory that n processes share counts a n-th in each.
    """
    process = psutil.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
    peaks: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(1.0):
            now: dict[str, float] = {}
            for member in family(process):
                try:
                    name = "driver" if member == process else member.name().split(":")[-1].strip() or "ray"
                    now[name] = now.get(name, 0.0) + member.memory_full_info().pss / 2**20
                except psutil.Error:
                    continue
            now["all together"] = sum(now.values())
            for name, value in now.items():
                peaks[name] = max(peaks.get(name, 0.0), value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, _ = process.communicate()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, as it should
            process.terminate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return out, {name: round(value) for name, value in peaks.items() if value >= 50}


def end_on_sigterm() -> None:
    """A benchmark that is ended takes what it started along: otherwise that would disturb the next one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all it started, as far as they live."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def machine(cores: int) -> dict[str, Any]:
    """Processor, cores and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": cores,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
