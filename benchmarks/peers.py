"""Stable-Baselines3 PPO and RLlib PPO doing the work of preset `lab`, each in its own process.

`python -m benchmarks.throughput --peers` calls `measure_peers`; `python -m benchmarks.peers sb3` (or `rllib`) prints
the figures of one peer. Game, environments, batch, minibatches, epochs, network and coefficients are the preset's;
float32, the default of both. They even use our network's channels-last convolutions, which their users rarely do.
What remains is their own: how they collect, store, slice and load the same frames.

They are not part of the project's environment: `pip install -e '.[peers]'`.
"""

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import run_for_json
from benchmarks.report import make_parser
from common.config import Config
from common.resolution import resolve

STEPS = 256
WARM_UP_STEPS = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer's name, the module here that measures it, and what must be installed."""

    title: str
    module: str
    needs: tuple[str, ...]  # modules; ray is always installed, the packages of its extra are not
    distribution: str  # whose version is reported


PEERS = {
    "sb3": Peer("stable-baselines3", "benchmarks.peer_sb3", ("stable_baselines3",), "stable-baselines3"),
    "rllib": Peer("ray[rllib]", "benchmarks.peer_rllib", ("gymnasium", "pyarrow", "tree", "lz4"), "ray"),
}


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of PPO: environment steps as the peer counts them, and seconds."""

    frames: int
    seconds: float
    seconds_collecting: float
    seconds_training: float


def measure_peers(steps: int = STEPS) -> dict[str, dict[str, Any]]:
    """The figures of each installed peer; a missing one is named on stderr and left out.

    Args:
        steps: of each environment in the timed iteration; fewer than 256 only to try it out.
    """
    figures = {}
    for name, peer in PEERS.items():
        if is_installed(peer):
            figures[name] = run_for_json("benchmarks.peers", name, "--steps", str(steps))
        else:
            print(missing(peer), file=sys.stderr)
    return figures


def is_installed(peer: Peer) -> bool:
    """Whether every module that the peer needs can be found; nothing is imported."""
    return all(importlib.util.find_spec(module) for module in peer.needs)


def missing(peer: Peer) -> str:
    """The message about a peer that is not installed."""
    return f"{peer.title} is not installed: pip install -e '.[peers]'"


def lab(steps: int) -> Config:
    """Preset `lab` with rollouts of `steps` steps; minibatches keep their size where there are enough frames."""
    preset = resolve("lab", {})
    num_minibatches = max(1, preset.num_envs * steps // preset.minibatch_size)
    return dataclasses.replace(preset, unroll_length=steps, num_minibatches=num_minibatches)


def warm_up(config: Config) -> Config:
    """One epoch of one full minibatch, or of fewer frames if `config` has shorter rollouts."""
    steps = min(WARM_UP_STEPS, config.unroll_length)
    return dataclasses.replace(config, unroll_length=steps, num_minibatches=1, update_epochs=1)


def main() -> None:
    """Measures one peer in this process."""
    parser = make_parser(__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--steps", type=int, default=STEPS, help="timed steps of each environment")
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    if not is_installed(peer):
        sys.exit(missing(peer))
    iteration = importlib.import_module(peer.module).measure(lab(arguments.steps))
    result = {
        "frames_per_second": iteration.frames / iteration.seconds,
        **dataclasses.asdict(iteration),
        "versions": {name: importlib.metadata.version(name) for name in (peer.distribution, "torch", "gymnasium")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
