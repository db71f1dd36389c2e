"""Stable-Baselines3 PPO and RLlib PPO at the work of preset `lab`, each in processes of its own.

`measure_peers` is `python -m benchmarks.throughput --peers`; `python -m benchmarks.peers sb3` (or `rllib`) prints one
peer's figures. Same game, environments, batch, minibatches, epochs, network and coefficients; float32, as both peers
compute by default. They even get our network's channels-last convolutions, which their users rarely ask for. What is
left is theirs: how they collect, store, cut and feed the same frames.

They are not part of the project's environment: `pip install -e '.[peers]'`.
"""

import argparse
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.processes import run_and_watch
from common.config import Config, resolve

STEPS = 256
WARM_UP_STEPS = 32


@dataclass(frozen=True, slots=True)
class Peer:
    """What a peer is called, the module here that measures it, and what must be installed for that."""

    title: str
    module: str
    needs: tuple[str, ...]  # modules; ray is always there, what its extra brings is not
    versions_of: tuple[str, ...]  # distributions


PEERS = {
    "sb3": Peer("stable-baselines3", "benchmarks.peer_sb3", ("stable_baselines3",), ("stable-baselines3",)),
    "rllib": Peer("ray[rllib]", "benchmarks.peer_rllib", ("gymnasium", "pyarrow", "tree", "lz4"), ("ray",)),
}


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of PPO: environment steps counted by the peer itself, and where the seconds went."""

    frames: int
    seconds: float
    seconds_collecting: float
    seconds_training: float


def measure_peers(steps: int = STEPS) -> dict[str, dict[str, Any]]:
    """The figures of each installed peer; one that is missing is named on stderr and left out.

    Args:
        steps: of each environment in the timed iteration; fewer than 256 only to try it out.
    """
    figures = {}
    for name, peer in PEERS.items():
        if is_installed(peer):
            out, peaks = run_and_watch([sys.executable, "-m", "benchmarks.peers", name, "--steps", str(steps)], {})
            # Ray may have printed before.
            figures[name] = {**json.loads(out.splitlines()[-1]), "peak_memory_mib": peaks}
        else:
            print(f"{peer.title} is not installed: pip install -e '.[peers]'", file=sys.stderr)
    return figures


def is_installed(peer: Peer) -> bool:
    """Whether everything that the peer needs can be imported; nothing is imported."""
    return all(importlib.util.find_spec(module) for module in peer.needs)


def lab(steps: int) -> Config:
    """Preset `lab` with rollouts of so many steps; its minibatches stay as large where there are frames enough."""
    preset = resolve("lab", {})
    num_minibatches = max(1, preset.num_envs * steps // preset.minibatch_size)
    return dataclasses.replace(preset, unroll_length=steps, num_minibatches=num_minibatches)


def warm_up(config: Config) -> Config:
    """One minibatch of full size, or less in a trial with fewer steps, for one epoch."""
    steps = min(WARM_UP_STEPS, config.unroll_length)
    return dataclasses.replace(config, unroll_length=steps, num_minibatches=1, update_epochs=1)


def main() -> None:
    """Measures one peer in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each environment, timed ({STEPS})")
    arguments = parser.parse_args()
    peer = PEERS[arguments.peer]
    if not is_installed(peer):
        sys.exit(f"{peer.title} is not installed: pip install -e '.[peers]'")
    iteration = importlib.import_module(peer.module).measure(lab(arguments.steps))
    result = {
        "frames_per_second": iteration.frames / iteration.seconds,
        **dataclasses.asdict(iteration),
        "versions": {name: importlib.metadata.version(name) for name in (*peer.versions_of, "torch", "gymnasium")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
