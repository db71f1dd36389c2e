"""`python -m benchmarks.cluster_link`: what a slow network costs, and what compressing the frames gives back.

Three hosts on this machine (`benchmarks/network_hosts.py`): the learner on the first, an actor on each of the others.
Real Procgen, real Ray, real packets; only the way to the learner's host is limited, by a token bucket in the switch.
Runs of `python -m learner` take turns, so that a machine that becomes slower is slower for all; figures are medians.

    frames/s    from metrics.jsonl, without the first update
    beside      bytes that a rollout carries besides its frames, for each frame: most of all the environments' states
    predicted   1 / (seconds a frame without a limit + (bytes a frame + beside) / link), with the bytes measured
    on the wire bytes through the learner's port by frames, start-up, headers and Ray's own talk included

A part without network says what each codec does on one core with frames of several games, played at random.

It needs root and Debian's iproute2. Nothing else should run on the machine.
"""

import argparse
import dataclasses
import json
import os
import pickle
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from actors.rollout_actor import RolloutActor
from benchmarks.network_hosts import (
    Host,
    HostsError,
    Network,
    cluster_address,
    end,
    join,
    start_head,
    why_no_hosts,
)
from benchmarks.processes import end_on_sigterm, machine
from common.config import resolve
from common.frame_compression import CODECS, compress_frames, decompress_frames
from common.games import NUM_ACTIONS
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs, observe
from common.storage.jsonl import read_jsonl
from learner.startup import flags as command_line

ACTORS, ENVS, STEPS = 2, 2, 64
BATCH = ACTORS * ENVS * STEPS
# One epoch and no evaluator: little but the link is to bound the run.
SETTINGS = [
    *("--num-actors", str(ACTORS), "--envs-per-actor", str(ENVS), "--unroll-length", str(STEPS)),
    *("--num-minibatches", "2", "--update-epochs", "1", "--no-evaluator", "--checkpoint-interval", "1000"),
]
# Updates to time after the first: a fast case needs more of them than one that waits for the link.
LIMITED_UPDATES, FREE_UPDATES = {"none": 2, "lz4": 4, "zstd": 6}, 6
GAMES = ("coinrun", "starpilot", "bigfish", "maze", "jumper", "fruitbot")
CODEC_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One way of running: a codec, through the limited link or not."""

    codec: str
    limited: bool

    @property
    def name(self) -> str:
        return f"{self.codec}, {'limited' if self.limited else 'no limit'}"


CASES = [Case(codec, limited) for limited in (False, True) for codec in CODECS]


def run_learner(network: Network, case: Case, bytes_per_second: float, directory: Path) -> dict[str, float]:
    """One run on the hosts, from metrics.jsonl and the switch's counter."""
    host = network.hosts[0]
    network.limit(host, bytes_per_second if case.limited else None)
    updates = 1 + (LIMITED_UPDATES[case.codec] if case.limited else FREE_UPDATES)
    run_dir = directory / f"run-{time.monotonic_ns()}"
    command = (sys.executable, "-m", "learner", *SETTINGS, "--compress", case.codec, "--run-dir", run_dir)
    sent_before = network.bytes_to(host)
    process = host.start(
        *(*command, "--address", cluster_address(host), "--total-frames", BATCH * updates),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=300)
    finally:
        end(process)
    if process.returncode:
        raise RuntimeError(f"{case.name}: exit code {process.returncode}\n{said}")
    rows = read_jsonl(run_dir / "metrics.jsonl")
    first, last, counted = rows[0], rows[-1], rows[1:]
    names = ("bytes_per_frame", "seconds_collecting", "seconds_transfer", "seconds_waiting", "seconds_training")
    return {
        "frames_per_second": (last["frames"] - first["frames"]) / (last["time"] - first["time"]),
        "wire_bytes_per_frame": (network.bytes_to(host) - sent_before) / last["frames"],
        **{name: statistics.mean(row[name] for row in counted) for name in names},
    }


def measure_link(bytes_per_second: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    """A row for each case: medians over the rounds."""
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    with Network(1 + ACTORS) as network, tempfile.TemporaryDirectory() as directory:
        start_cluster(network.hosts)
        for number in range(rounds):
            for case in CASES:
                result = run_learner(network, case, bytes_per_second, Path(directory))
                results[case].append(result)
                console.print(f"round {number + 1}: {case.name}: {result['frames_per_second']:,.0f} frames/s")
    rows: list[dict[str, Any]] = []
    for case, runs in results.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        every = [round(run["frames_per_second"], 2) for run in runs]
        rows.append({"codec": case.codec, "limited": case.limited, **medians, "frames_per_second_of_rounds": every})
    return rows


def start_cluster(hosts: list[Host]) -> None:
    """Ray on all: no actor on the learner's host, one on each other."""
    head, *others = hosts
    start_head(head, 0)
    for host in others:
        join(host, head, 1)


def bytes_beside_frames() -> float:
    """What a rollout of these settings carries besides its frames, for each frame."""
    config = resolve("lab", {**command_line.parse(SETTINGS).given, "num_actors": 1})
    weights = {name: value.numpy() for name, value in PolicyNetwork(config.network).state_dict().items()}
    rollout = RolloutActor(config, ActorIdentity(0)).collect(weights, 0)
    return len(pickle.dumps(dataclasses.replace(rollout, observations=np.empty(0, np.uint8)))) / (ENVS * STEPS)


def predict(rows: list[dict[str, Any]], bytes_per_second: float, beside: float) -> None:
    """Adds to each limited row what the link alone would carry, and what it and the unlimited run let one expect."""
    free = {row["codec"]: row["frames_per_second"] for row in rows if not row["limited"]}
    raw = next((row for row in rows if row["limited"] and row["codec"] == "none"), None)
    for row in rows:
        if row["limited"]:
            seconds_on_link = (row["bytes_per_frame"] + beside) / bytes_per_second
            row["link_frames_per_second"] = 1 / seconds_on_link
            row["predicted_frames_per_second"] = 1 / (1 / free[row["codec"]] + seconds_on_link)
            row["measured_over_predicted"] = row["frames_per_second"] / row["predicted_frames_per_second"]
            if raw is not None:
                row["times_raw"] = row["frames_per_second"] / raw["frames_per_second"]
                row["predicted_times_raw"] = row["predicted_frames_per_second"] / raw["predicted_frames_per_second"]


def random_play(game: str) -> np.ndarray:
    """uint8 `[256, 4, 64, 64, 3]`: a rollout of four environments under random actions, 12.6 MB."""
    envs = make_envs(4, game, "easy", 0, 200, rand_seed=1, num_threads=1)
    generator = np.random.default_rng(0)
    frames = np.empty((256, 4, 64, 64, 3), np.uint8)
    for step in frames:
        step[:] = observe(envs)[1]
        envs.act(generator.integers(0, NUM_ACTIONS, 4, dtype=np.int32))
    return frames


def measure_codecs() -> list[dict[str, Any]]:
    """A row for each game and codec: ratio, and MB of raw frames a second on one core, both ways."""
    rows = []
    for game in GAMES:
        frames = random_play(game)
        for codec in CODECS[1:]:
            packed = compress_frames(frames, codec)
            assert np.array_equal(decompress_frames(packed), frames)
            rows.append(
                {
                    "game": game,
                    "codec": codec,
                    "ratio": frames.nbytes / packed.nbytes,
                    "bytes_per_frame": packed.nbytes / (frames.shape[0] * frames.shape[1]),
                    "compress_megabytes_per_second": speed(partial(compress_frames, frames, codec), frames),
                    "decompress_megabytes_per_second": speed(partial(decompress_frames, packed), frames),
                }
            )
    return rows


def speed(work: Callable[[], object], frames: np.ndarray) -> float:
    """MB of raw frames a second, median."""
    seconds = []
    for _ in range(CODEC_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return frames.nbytes / 1e6 / statistics.median(seconds)


def show(result: Mapping[str, Any], console: Console) -> None:
    """The tables a person reads."""
    limit = result["link_bytes_per_second"]
    table = Table(title=f"link of {limit / 1e6:g} MB/s to the learner, medians of {result['rounds']} rounds")
    for name in ("codec", "link", "frames/s", "bytes a frame", "on the wire", "collect s", "transfer s"):
        table.add_column(name, justify="left" if name in ("codec", "link") else "right")
    for name in ("link alone", "predicted", "measured / predicted", "times raw", "predicted times raw"):
        table.add_column(name, justify="right")

    def number(row: Mapping[str, Any], name: str, form: str) -> str:
        return format(row[name], form) if name in row else "-"

    for row in result["link"]:
        table.add_row(
            *(row["codec"], "limited" if row["limited"] else "free"),
            *(f"{row[name]:,.0f}" for name in ("frames_per_second", "bytes_per_frame", "wire_bytes_per_frame")),
            *(f"{row[name]:.2f}" for name in ("seconds_collecting", "seconds_transfer")),
            *(number(row, name, ",.0f") for name in ("link_frames_per_second", "predicted_frames_per_second")),
            *(number(row, name, ".2f") for name in ("measured_over_predicted", "times_raw", "predicted_times_raw")),
        )
    console.print(table)
    console.print(f"beside: {result['bytes_beside_frames']:,.0f} bytes a frame")
    table = Table(title="codecs on one core, random play, MB/s of raw frames")
    for name in ("game", "codec", "ratio", "bytes a frame", "compress MB/s", "decompress MB/s"):
        table.add_column(name, justify="left" if name in ("game", "codec") else "right")
    for row in result["codecs"]:
        speeds = (row[f"{way}_megabytes_per_second"] for way in ("compress", "decompress"))
        ratio = (f"{row['ratio']:.1f}", f"{row['bytes_per_frame']:,.0f}")
        table.add_row(row["game"], row["codec"], *ratio, *(f"{value:,.0f}" for value in speeds))
    console.print(table)


def main() -> int:
    """Prints the JSON on stdout and the tables on stderr; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of all cases in turns (%(default)s)")
    parser.add_argument("--megabytes-per-second", type=float, default=0.5, help="that the link carries (%(default)s)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.megabytes_per_second <= 0:
        parser.error("--rounds must be at least 1, --megabytes-per-second more than 0")
    if (reason := why_no_hosts()) is not None:
        parser.error(reason)
    end_on_sigterm()
    # Without a terminal rich assumes 80 columns, which cuts the table.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 180)
    limit = arguments.megabytes_per_second * 1e6
    try:
        codecs, beside = measure_codecs(), bytes_beside_frames()
        link = measure_link(limit, arguments.rounds, console)
    except HostsError as error:
        console.print(str(error))
        return 1
    predict(link, limit, beside)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.cluster_link", *sys.argv[1:]]),
        "machine": {**machine(len(os.sched_getaffinity(0))), "ray": ray.__version__},
        "settings": SETTINGS,
        "rounds": arguments.rounds,
        "link_bytes_per_second": limit,
        "bytes_beside_frames": beside,
        "link": link,
        "codecs": codecs,
    }
    show(result, console)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
