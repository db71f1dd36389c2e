"""Every setting of a run, its presets, and the one place that refuses wrong values.

`Config` holds resolved values only. `resolve` builds one from a preset and what the user gave.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.cli import UsageError
from common.games import DISTRIBUTION_MODES, GAMES, MAX_LEVEL_SEED, Game
from common.policy_network import NetworkSettings


class ConfigError(UsageError):
    """A setting the user gave cannot be used; the message is one line for them to read."""


def setting(group: str, help: str, choices: tuple[str, ...] = (), **options: Any) -> Any:
    """A dataclass field that knows its section of `--help`, its words there and its permitted values."""
    return dataclasses.field(metadata={"group": group, "help": help, "choices": choices}, **options)


RUN, GAME, COLLECT, PPO, NETWORK, EVALUATE = (
    "run",
    "game and levels",
    "collecting rollouts",
    "PPO",
    "network and arithmetic",
    "evaluation",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete, validated description of what a run computes; stored as the run's config.json."""

    preset: str = setting(RUN, "starting values of all other settings", ("lab", "easy", "hard"))
    seed: int = setting(RUN, "every generator of the run derives from it")
    total_frames: int = setting(RUN, "environment steps to train for; the last update may pass it")
    checkpoint_interval: int = setting(RUN, "updates between checkpoints, each of which is scored")
    keep_checkpoints: int = setting(RUN, "newest checkpoints that stay, the best one always does; 0 keeps all")
    keep_every: int = setting(RUN, "of older checkpoints those stay whose version it divides; 0: none")
    device: str = setting(RUN, "where the learner trains; auto takes a GPU when there is one", ("auto", "cpu", "cuda"))

    env_name: str = setting(GAME, "Procgen game")
    distribution_mode: str = setting(GAME, "difficulty")
    start_level: int = setting(GAME, "first training level")
    num_levels: int = setting(GAME, "number of training levels; 0 trains on every level there is")
    held_out: str = setting(
        GAME,
        "held-out levels: those after the training levels (test, then validation), or fixed samples of all others",
        ("next", "sample"),
    )
    held_out_levels: int = setting(GAME, "number of validation levels, and of test levels")

    num_actors: int = setting(
        COLLECT,
        "Ray actors: N, a range LOW:HIGH that follows the cluster's size, or max; an update's batch stays the same",
    )
    min_actors: int = setting(COLLECT, "fewest actors to start with; 0: num_actors, as far as the cluster has room")
    envs_per_actor: int = setting(COLLECT, "environments stepped by each actor")
    unroll_length: int = setting(COLLECT, "steps of every environment in one rollout")
    half_batches: str = setting(
        COLLECT,
        "Procgen steps half of an actor's environments while the policy acts for the others; auto: with --actor-gpus",
        ("auto", "yes", "no"),
    )
    actor_gpus: float = setting(COLLECT, "share of a GPU that each actor's policy runs on; 0: on its CPU")
    compress: str = setting(
        COLLECT,
        "frames on their way to the learner; auto: zstd from other nodes, none on its own",
        ("auto", "none", "lz4", "zstd"),
    )
    mode: str = setting(
        COLLECT,
        "sync: collect, then train (lag 0); overlap: collect while training (lag 1); auto: overlap with a GPU",
        ("auto", "sync", "overlap"),
    )
    actor_timeout: float = setting(COLLECT, "seconds without a rollout after which an actor counts as lost")
    cluster_timeout: float = setting(COLLECT, "seconds to wait for the Ray cluster and for actors to be placed")

    learning_rate: float = setting(PPO, "Adam's step size")
    learning_rate_schedule: str = setting(PPO, "linear falls to 0 at total-frames", ("constant", "linear"))
    adam_eps: float = setting(PPO, "Adam's epsilon")
    gamma: float = setting(PPO, "discount per step")
    gae_lambda: float = setting(PPO, "lambda of generalised advantage estimation")
    clip_coef: float = setting(PPO, "clipping range of the probability ratio and of the value change")
    ent_coef: float = setting(PPO, "weight of the entropy bonus")
    vf_coef: float = setting(PPO, "weight of the value loss")
    max_grad_norm: float = setting(PPO, "the gradient's norm is clipped to it")
    num_minibatches: int = setting(PPO, "minibatches, so optimizer steps, in an epoch")
    update_epochs: int = setting(PPO, "passes over each batch")
    reward_transform: str = setting(
        PPO,
        "reward given to PPO: its sign, or divided by the running deviation of the discounted return, within 10",
        ("sign", "running_return", "raw"),
    )
    advantage_normalization: str = setting(
        PPO, "advantages get mean 0 and deviation 1 over this", ("batch", "minibatch")
    )

    observation_scale: int = setting(NETWORK, "pixel values are divided by it")
    relu_before_linear: bool = setting(NETWORK, "a relu between the last residual block and the 256-unit layer")
    orthogonal_heads: bool = setting(NETWORK, "orthogonal initialisation of the two heads, gains .01 and 1")
    precision: str = setting(
        NETWORK,
        "arithmetic of the convolutions; auto is bfloat16 where the hardware has it",
        ("auto", "float32", "bfloat16"),
    )
    micro_batch: int = setting(
        NETWORK, "samples in one forward and backward pass; gradients of a minibatch add up; 0: device's best"
    )
    cuda_graphs: bool = setting(NETWORK, "replay actors' inference and the learner's optimizer step as CUDA graphs")
    compile: bool = setting(NETWORK, "torch.compile the learner's network (GPU only, needs a C compiler)")
    learner_threads: int = setting(NETWORK, "CPU threads of the learner; 0: all cores")

    evaluator: bool = setting(EVALUATE, "score checkpoints while training, in a process of its own")
    eval_episodes_per_level: int = setting(EVALUATE, "episodes on each training and each held-out level")
    live_split: str = setting(
        EVALUATE, "held-out levels shown while training; test spoils them for a last judgement", ("validation", "test")
    )
    backfill: bool = setting(EVALUATE, "at the end, score the checkpoints that were skipped while training")
    eval_timeout: float = setting(EVALUATE, "seconds to wait at the end for the last checkpoint's score")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), (float, int) if field.type is float else (field.type,)
            if type(value) not in kinds:
                raise ConfigError(f"{flag(field.name)} {value!r} is no {getattr(field.type, '__name__', field.type)}")
            _check_choice(flag(field.name), value, field.metadata["choices"])
        _check_choice("--env-name", self.env_name, tuple(GAMES))
        _check_choice("--distribution-mode", self.distribution_mode, DISTRIBUTION_MODES)
        for name in _AT_LEAST_ONE:
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "adam_eps", "clip_coef", "max_grad_norm", *_SECONDS):
            self._require(name, 0 < getattr(self, name) < float("inf"), "more than 0")
        for name in ("gamma", "gae_lambda"):
            self._require(name, 0 <= getattr(self, name) <= 1, "between 0 and 1")
        self._require("actor_gpus", 0 <= self.actor_gpus <= 1, "between 0 and 1")
        for name in ("ent_coef", "vf_coef"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "0 or more")
        for name in (
            *("seed", "start_level", "num_levels", "micro_batch", "learner_threads"),
            *("keep_checkpoints", "keep_every"),
        ):
            self._require(name, 0 <= getattr(self, name) < MAX_LEVEL_SEED, "0 or more and less than 2147483647")
        if not 0 <= self.min_actors <= self.num_actors:
            raise ConfigError(
                f"--num-actors {self.min_actors}:{self.num_actors} must be LOW:HIGH with 1 <= LOW <= HIGH"
            )
        if self.num_levels and self.start_level + self.num_levels > MAX_LEVEL_SEED:
            raise ConfigError(
                f"--start-level {self.start_level} and --num-levels {self.num_levels} pass Procgen's last level "
                f"{MAX_LEVEL_SEED - 1}"
            )
        next_level = self.start_level + self.num_levels
        if self.held_out == "next" and next_level + 2 * self.held_out_levels > MAX_LEVEL_SEED:
            raise ConfigError(
                f"--held-out next: 2 x {self.held_out_levels} levels from {next_level} on pass Procgen's last level "
                f"{MAX_LEVEL_SEED - 1}; give fewer --held-out-levels or --held-out sample"
            )
        if self.num_levels == 0 and self.held_out == "next":
            raise ConfigError("--num-levels 0 trains on every level, none comes next; give --held-out sample")
        if self.batch_size % self.num_minibatches:
            raise ConfigError(
                f"--num-minibatches {self.num_minibatches} does not divide the batch of {self.batch_size} frames "
                f"({self.num_actors} actors x {self.envs_per_actor} environments x {self.unroll_length} steps)"
            )

        if self.minibatch_size < 2:
            raise ConfigError(f"--num-minibatches {self.num_minibatches} leaves minibatches of 1 frame: no deviation")

    def _require(self, name: str, holds: bool, condition: str) -> None:
        if not holds:
            raise ConfigError(f"{flag(name)} {getattr(self, name)} must be {condition}")

    @property
    def game(self) -> Game:
        """The Procgen game and its distribution mode."""
        return Game(self.env_name, self.distribution_mode)

    @property
    def num_envs(self) -> int:
        """Environments of all actors together."""
        return self.num_actors * self.envs_per_actor

    @property
    def batch_size(self) -> int:
        """Frames of one update."""
        return self.num_envs * self.unroll_length

    @property
    def minibatch_size(self) -> int:
        """Frames of one optimizer step."""
        return self.batch_size // self.num_minibatches

    @property
    def num_updates(self) -> int:
        """Updates until total_frames are reached or passed."""
        return -(-self.total_frames // self.batch_size)

    @property
    def network(self) -> NetworkSettings:
        """What the policy network needs to know."""
        return NetworkSettings(self.observation_scale, self.relu_before_linear, self.orthogonal_heads)


_SECONDS = ("actor_timeout", "cluster_timeout", "eval_timeout")
_AT_LEAST_ONE = (
    "total_frames",
    "checkpoint_interval",
    "held_out_levels",
    "num_actors",
    "envs_per_actor",
    "unroll_length",
    "num_minibatches",
    "update_epochs",
    "observation_scale",
    "eval_episodes_per_level",
)

# How a run is carried out, not what it computes: free to differ when it is resumed.
FREE_ON_RESUME = frozenset(
    {
        "total_frames",
        "device",
        "mode",
        "num_actors",
        "min_actors",
        "envs_per_actor",
        "keep_checkpoints",
        "keep_every",
        "precision",
        "half_batches",
        "actor_gpus",
        "compress",
        "micro_batch",
        "cuda_graphs",
        "compile",
        "learner_threads",
        "evaluator",
        "backfill",
        *_SECONDS,
    }
)

_LAB: dict[str, Any] = {
    "seed": 0,
    "total_frames": 10_000_000,
    "checkpoint_interval": 10,
    "keep_checkpoints": 0,
    "keep_every": 0,
    "device": "auto",
    "env_name": "coinrun",
    "distribution_mode": "easy",
    "start_level": 0,
    "num_levels": 20,
    "held_out": "next",
    "min_actors": 0,
    "unroll_length": 256,
    "half_batches": "auto",
    "actor_gpus": 0.0,
    "compress": "auto",
    "mode": "auto",
    "actor_timeout": 600.0,
    "cluster_timeout": 60.0,
    "learning_rate": 5e-4,
    "learning_rate_schedule": "constant",
    "adam_eps": 1e-8,
    "gamma": 0.999,
    "gae_lambda": 0.95,
    "clip_coef": 0.2,
    "ent_coef": 0.01,
    "vf_coef": 1.0,
    "max_grad_norm": 40.0,
    "num_minibatches": 8,
    "update_epochs": 3,
    "reward_transform": "sign",
    "advantage_normalization": "batch",
    "observation_scale": 256,
    "relu_before_linear": False,
    "orthogonal_heads": False,
    "precision": "auto",
    "micro_batch": 0,
    "cuda_graphs": False,
    "compile": False,
    "learner_threads": 0,
    "evaluator": True,
    "eval_episodes_per_level": 1,
    "live_split": "test",
    "backfill": False,
    "eval_timeout": 600.0,
}
_PUBLISHED: dict[str, Any] = {
    "held_out": "sample",
    "live_split": "validation",
    "adam_eps": 1e-5,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "reward_transform": "running_return",
    "advantage_normalization": "minibatch",
    "observation_scale": 255,
    "relu_before_linear": True,
    "orthogonal_heads": True,
}
# lab is the teaching notebook; easy and hard follow Cobbe et al. 2020, appendix D.
PRESETS: dict[str, dict[str, Any]] = {
    "lab": _LAB,
    "easy": {**_LAB, **_PUBLISHED, "num_levels": 200, "total_frames": 25_000_000},
    "hard": {
        **_LAB,
        **_PUBLISHED,
        "num_levels": 500,
        "total_frames": 200_000_000,
        "distribution_mode": "hard",
    },
}
PRESET_NUM_ENVS = {"lab": 64, "easy": 64, "hard": 256}
SAMPLED_HELD_OUT_LEVELS = 200
MAX_DEFAULT_ACTORS = 16
# With --num-actors max: fewer environments in an actor would leave its policy to run for almost nothing.
FEWEST_ENVS_PER_ACTOR = 4


def flag(name: str) -> str:
    """The command line's name of a setting: `num_actors` is `--num-actors`."""
    return "--" + name.replace("_", "-")


def resolve(preset: str, given: Mapping[str, Any], available_cores: int | None = None) -> Config:
    """The preset's values with the user's over them, and what follows from both.

    Args:
        preset: a name in `PRESETS`.
        given: settings by field name.
        available_cores: of this machine, for the default number of actors; None asks the system.

    Raises:
        ConfigError: a value is wrong; the message names the flag, the value and what would do.
    """
    _check_choice("--preset", preset, tuple(PRESETS))
    values = {**PRESETS[preset], **given, "preset": preset}
    if "held_out_levels" not in given:
        sampled = values["held_out"] == "sample"
        values["held_out_levels"] = SAMPLED_HELD_OUT_LEVELS if sampled else max(1, values["num_levels"])
    values |= _split_of_environments(PRESET_NUM_ENVS[preset], preset, given, available_cores)
    return Config(**values)


def _split_of_environments(
    num_envs: int, preset: str, given: Mapping[str, Any], available_cores: int | None
) -> dict[str, int]:
    """num_actors and envs_per_actor: as given, or so that they share the preset's environments."""
    names = ("num_actors", "envs_per_actor")
    chosen = {name: given[name] for name in names if name in given}
    if len(chosen) == 2:
        return chosen
    if not chosen and given.get("min_actors"):
        chosen["envs_per_actor"] = envs_of_smallest_actor(num_envs)
    if not chosen:
        cores = available_cores or len(os.sched_getaffinity(0))
        chosen["num_actors"] = max(n for n in range(1, min(cores, MAX_DEFAULT_ACTORS) + 1) if num_envs % n == 0)
    ((name, number),) = chosen.items()
    if number < 1:
        raise ConfigError(f"{flag(name)} {number} must be at least 1")
    other = names[1 - names.index(name)]
    if num_envs % number:
        raise ConfigError(
            f"{flag(name)} {number} does not divide the {num_envs} environments of preset {preset}; "
            f"give {flag(other)} too, or a number that does"
        )
    return {name: number, other: num_envs // number}


def envs_of_smallest_actor(num_envs: int) -> int:
    """`envs_per_actor` where as many actors as are useful share `num_envs` environments."""
    return max(n for n in range(1, FEWEST_ENVS_PER_ACTOR + 1) if num_envs % n == 0)


def contradictions(stored: Config, requested: Config, given: Mapping[str, Any]) -> list[str]:
    """Settings in `given` that a resumed run cannot change, each as `--flag (run has A, asked for B)`."""
    changed = [
        f"{flag(name)} (run has {getattr(stored, name)}, asked for {value})"
        for name, value in given.items()
        if name not in FREE_ON_RESUME and getattr(stored, name) != value
    ]
    if requested.num_envs != stored.num_envs:
        changed.append(
            f"--num-actors x --envs-per-actor (run has {stored.num_envs} environments, asked for {requested.num_envs})"
        )
    return changed


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not choices or value in choices:
        return
    near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(choices)}"
    raise ConfigError(f"{name} {value!r} is unknown; {hint}")
