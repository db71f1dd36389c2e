"""`python -m benchmarks.cluster_link`: what a slow network costs, and what compressing the frames gains.

Three hosts on this machine (`benchmarks/network_hosts.py`): the learner on the first, an actor on each of the others.
Procgen, Ray and packets are real; only the direction to the learner's host is limited, by a token bucket in the switch.
Runs of `python -m learner` take turns, so that a slowdown of the machine affects all cases; figures are medians.

    frames/s    from metrics.jsonl, without the first update
    beside      bytes per frame that a rollout carries besides its frames, mostly the states of the environments
    predicted   1 / (seconds per frame without a limit + (bytes per frame + beside) / link), with the measured bytes
    on the wire bytes through the learner's port divided by frames; includes start-up, headers and Ray's own messages

A second part, without a network, measures the compression on one core with frames of several games, played at random.

It needs root and Debian's iproute2. Run nothing else on the machine.
"""

import dataclasses
import json
import pickle
import shlex
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console

from actors.rollout_actor import RolloutActor
from benchmarks.network_hosts import HostsError, Network, cluster_address, join, start_head, why_no_hosts
from benchmarks.processes import end_on_sigterm, summarize
from benchmarks.report import Column, machine, make_console, make_parser, median_seconds, show_table
from common.frame_compression import compress_frames, decompress_frames
from common.games import NUM_ACTIONS, Game
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs
from common.resolution import resolve
from common.storage.jsonl import read_jsonl
from learner.startup import flags as command_line

ACTORS, ENVS, STEPS = 2, 2, 64
BATCH = ACTORS * ENVS * STEPS
# One epoch and no evaluator, so that almost nothing but the link limits the run.
SETTINGS = [
    *("--num-actors", str(ACTORS), "--envs-per-actor", str(ENVS), "--unroll-length", str(STEPS)),
    *("--num-minibatches", "2", "--update-epochs", "1", "--no-evaluator", "--checkpoint-interval", "1000"),
]
GAMES = ("coinrun", "starpilot", "bigfish", "maze", "jumper", "fruitbot")
COMPRESSION_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One way to run: the frames' compression, through the limited link or not, and the number of timed updates."""

    compression: str
    limited: bool
    updates: int  # a fast case needs more updates than one that waits for the link

    def __str__(self) -> str:
        return f"{self.compression}, {'limited' if self.limited else 'no limit'}"


CASES = [Case("none", False, 6), Case("zstd", False, 6), Case("none", True, 2), Case("zstd", True, 6)]


def run_learner(network: Network, case: Case, bytes_per_second: float) -> dict[str, float]:
    """Figures of one run on the hosts, from metrics.jsonl and the switch's counter."""
    host = network.hosts[0]
    network.limit(host, bytes_per_second if case.limited else None)
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "run"
        command = (sys.executable, "-m", "learner", *SETTINGS, "--compression", case.compression, "--run-dir", run_dir)
        sent_before = network.bytes_to(host)
        host.run(
            *(*command, "--address", cluster_address(host), "--total-frames", BATCH * (1 + case.updates)), timeout=300
        )
        rows = read_jsonl(run_dir / "metrics.jsonl")
    names = ("bytes_per_frame", "seconds_collecting", "seconds_transfer", "seconds_waiting", "seconds_training")
    wire_bytes = network.bytes_to(host) - sent_before
    return {**summarize(rows, names), "wire_bytes_per_frame": wire_bytes / rows[-1]["frames"]}


def measure_link(bytes_per_second: float, rounds: int, console: Console) -> list[dict[str, Any]]:
    """One row for each case: medians over the rounds."""
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in CASES}
    with Network(1 + ACTORS) as network:
        head, *others = network.hosts
        start_head(head, num_cpus=0)  # no actor on the learner's host
        for host in others:
            join(host, head, num_cpus=1)
        for number in range(rounds):
            for case in CASES:
                result = run_learner(network, case, bytes_per_second)
                results[case].append(result)
                console.print(f"round {number + 1}: {case}: {result['frames_per_second']:,.0f} frames/s")
    rows: list[dict[str, Any]] = []
    for case, runs in results.items():
        medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        kind = {"compression": case.compression, "limited": case.limited}
        every = [round(run["frames_per_second"], 2) for run in runs]
        rows.append({**kind, **medians, "frames_per_second_of_rounds": every})
    return rows


def bytes_beside_frames() -> float:
    """Bytes per frame that a rollout with these settings carries besides its frames."""
    config = resolve("lab", {**command_line.parse(SETTINGS).overrides, "num_actors": 1})
    rollout = RolloutActor(config, ActorIdentity(0)).collect(PolicyNetwork(config.network).weights(), 0)
    return len(pickle.dumps(dataclasses.replace(rollout, observations=np.empty(0, np.uint8)))) / (ENVS * STEPS)


def predict(rows: list[dict[str, Any]], bytes_per_second: float, beside: float) -> None:
    """Adds to each limited row what the link alone allows, the prediction, and the ratios to raw frames."""
    free = {row["compression"]: row["frames_per_second"] for row in rows if not row["limited"]}
    limited = {row["compression"]: row for row in rows if row["limited"]}
    raw = limited["none"]
    for compression, row in limited.items():
        seconds_on_link = (row["bytes_per_frame"] + beside) / bytes_per_second
        row["link_frames_per_second"] = 1 / seconds_on_link
        row["predicted_frames_per_second"] = 1 / (1 / free[compression] + seconds_on_link)
        row["measured_over_predicted"] = row["frames_per_second"] / row["predicted_frames_per_second"]
        row["times_raw"] = row["frames_per_second"] / raw["frames_per_second"]
        row["predicted_times_raw"] = row["predicted_frames_per_second"] / raw["predicted_frames_per_second"]


def random_play(game: str) -> np.ndarray:
    """uint8 `[256, 4, 64, 64, 3]`: a rollout of four environments under random actions, 12.6 MB."""
    envs = make_envs(4, Game(game, "easy"), 0, 200, rand_seed=1, num_threads=1)
    generator = np.random.default_rng(0)
    frames = np.empty((256, 4, 64, 64, 3), np.uint8)
    for step in frames:
        step[:] = envs.observe()[1]
        envs.act(generator.integers(0, NUM_ACTIONS, 4, dtype=np.int32))
    return frames


def measure_compression(game: str) -> dict[str, Any]:
    """zstd with random play of a game: ratio, and MB of raw frames per second on one core (medians)."""
    frames = random_play(game)
    packed = compress_frames(frames)
    assert np.array_equal(decompress_frames(packed), frames)
    megabytes = frames.nbytes / 1e6
    compress_seconds = median_seconds(lambda: compress_frames(frames), COMPRESSION_REPEATS)
    decompress_seconds = median_seconds(lambda: decompress_frames(packed), COMPRESSION_REPEATS)
    return {
        "game": game,
        "compression": "zstd",
        "ratio": frames.nbytes / packed.nbytes,
        "bytes_per_frame": packed.nbytes / (frames.shape[0] * frames.shape[1]),
        "compress_megabytes_per_second": megabytes / compress_seconds,
        "decompress_megabytes_per_second": megabytes / decompress_seconds,
    }


LINK_COLUMNS: dict[str, Column] = {
    "compression": "{compression!s}",
    "link": lambda row: "limited" if row["limited"] else "free",
    "frames/s": "{frames_per_second:,.0f}",
    "bytes/frame": "{bytes_per_frame:,.0f}",
    "on the wire": "{wire_bytes_per_frame:,.0f}",
    "collect s": "{seconds_collecting:.2f}",
    "transfer s": "{seconds_transfer:.2f}",
    "link alone": "{link_frames_per_second:,.0f}",
    "predicted": "{predicted_frames_per_second:,.0f}",
    "measured / predicted": "{measured_over_predicted:.2f}",
    "times raw": "{times_raw:.2f}",
    "predicted times raw": "{predicted_times_raw:.2f}",
}
COMPRESSION_COLUMNS: dict[str, Column] = {
    "game": "{game!s}",
    "compression": "{compression!s}",
    "ratio": "{ratio:.1f}",
    "bytes/frame": "{bytes_per_frame:,.0f}",
    "compress MB/s": "{compress_megabytes_per_second:,.0f}",
    "decompress MB/s": "{decompress_megabytes_per_second:,.0f}",
}


def main() -> int:
    """Prints the JSON on stdout and the tables on stderr; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often to run each case")
    parser.add_argument("--megabytes-per-second", type=float, default=0.5, help="bandwidth of the link")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.megabytes_per_second <= 0:
        parser.error("--rounds must be at least 1, --megabytes-per-second greater than 0")
    if (reason := why_no_hosts()) is not None:
        parser.error(reason)
    end_on_sigterm()
    console = make_console()
    limit = arguments.megabytes_per_second * 1e6
    try:
        compressions, beside = [measure_compression(game) for game in GAMES], bytes_beside_frames()
        link = measure_link(limit, arguments.rounds, console)
    except HostsError as error:
        console.print(str(error))
        return 1
    predict(link, limit, beside)
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.cluster_link", *sys.argv[1:]]),
        "machine": {**machine(), "ray": ray.__version__},
        "settings": SETTINGS,
        "rounds": arguments.rounds,
        "link_bytes_per_second": limit,
        "bytes_beside_frames": beside,
        "link": link,
        "compressions": compressions,
    }
    title = f"link of {limit / 1e6:g} MB/s to the learner, medians of {arguments.rounds} rounds"
    show_table(console, title, link, LINK_COLUMNS)
    console.print(f"beside: {beside:,.0f} bytes per frame")
    show_table(console, "compression on one core, random play, MB/s of raw frames", compressions, COMPRESSION_COLUMNS)
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
