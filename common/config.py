"""Every setting of a run, declared once, its presets, and the checks that refuse wrong values.

`Config` holds resolved values only; `common.resolution` makes one from what a user asks for.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from common.cli import UsageError, suggestion
from common.games import DISTRIBUTION_MODES, GAMES, MAX_LEVEL_SEED, Game

# What the user may ask for instead of a value: `common.resolution` chooses.
AUTO = "auto"


class ConfigError(UsageError):
    """A setting cannot be used; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """The settings of the network that differ between presets; enough to rebuild it."""

    observation_scale: int  # observations are divided by this
    relu_before_linear: bool  # the notebook has no relu between the last block and the 256-unit layer
    orthogonal_heads: bool  # gains .01 (policy) and 1 (value), zero bias; else PyTorch's defaults
    initialization: Literal["torch", "glorot"] = "torch"  # of everything but the heads
    encoder: Literal["impala", "impoola"] = "impala"
    width: int = 1  # factor of the number of channels


def setting(
    group: str,
    help: str,
    default: Any,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    free: bool = False,
    changes_updates: bool = False,
    has_flag: bool = True,
) -> Any:
    """Declares a setting: its section and text in `--help`, preset lab's value, and bounds.

    Choices come from the field's `Literal`, unless given. A `free` setting may differ when a run is resumed; with
    `changes_updates` it is part of the algorithm nevertheless.
    """
    return dataclasses.field(metadata=locals())


# How a run is carried out, not what it computes.
option = functools.partial(setting, free=True)

RUN, GAME, COLLECT = "run", "game and levels", "collecting rollouts"
PPO, NETWORK, EVALUATE = "PPO", "network and arithmetic", "evaluation"
LAST_LEVEL = MAX_LEVEL_SEED - 1


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete, validated description of a run; stored in config.json and in every checkpoint."""

    preset: Literal["lab", "easy", "hard"] = setting(RUN, "default values of all other settings", "lab")
    seed: int = setting(RUN, "seed of every random number in the run", 0, at_least=0, at_most=LAST_LEVEL)
    total_frames: int = option(
        RUN,
        "train for at least this many environment steps, such as 500k or 10M",
        10_000_000,
        unit="frames",
        at_least=1,
    )
    checkpoint_interval: int = setting(
        RUN, "updates between checkpoints; the evaluator scores checkpoints", 10, unit="updates", at_least=1
    )
    keep_checkpoints: int = option(
        RUN, "keep only the newest N checkpoints and the best one; 0: keep all", 0, at_least=0
    )
    keep_every: int = option(RUN, "also keep every checkpoint whose version is a multiple of N; 0: off", 0, at_least=0)
    group_readable: bool = option(RUN, "let your group read the run's files: modes 0640 and 0750", False)
    device: Literal["cpu", "cuda"] = option(RUN, "where the learner trains; auto: a GPU if there is one", AUTO)

    env_name: str = setting(GAME, "Procgen game", "coinrun", choices=tuple(GAMES))
    distribution_mode: str = setting(GAME, "difficulty of the levels", "easy", choices=DISTRIBUTION_MODES)
    start_level: int = setting(GAME, "seed of the first training level", 0, at_least=0, at_most=LAST_LEVEL)
    num_levels: int = setting(
        GAME, "number of training levels; 0: every level", 20, unit="levels", at_least=0, at_most=LAST_LEVEL
    )
    held_out: Literal["next", "sample"] = setting(
        GAME,
        "where held-out levels come from; next: right after the training levels (test, then validation); sample: drawn "
        "from all other levels",
        "next",
    )
    held_out_levels: int = setting(
        GAME,
        "number of test levels and of validation levels (next: as many as training levels; sample: 200)",
        None,
        unit="levels",
        at_least=1,
        at_most=1_000_000,  # more cannot be drawn, and millions of draws take long to fail
    )

    num_actors: int = option(
        COLLECT,
        "number of Ray actors; LOW:HIGH and max adapt it to the size of the cluster; actors share the environments, so "
        "the batch stays the same (one per core, up to 16)",
        None,
        at_least=1,
    )
    min_actors: int = option(COLLECT, "LOW of --num-actors", 0, at_least=1, has_flag=False)
    envs_per_actor: int = option(
        COLLECT, "environments per actor (lab 64, easy 64, hard 256 for all actors)", None, at_least=1
    )
    unroll_length: int = setting(COLLECT, "steps of each environment in one rollout", 256, unit="steps", at_least=1)
    half_batches: bool = option(
        COLLECT,
        "step one half of the environments while the policy acts in the other; auto: with --actor-gpus",
        AUTO,
    )
    actor_gpus: float = option(
        COLLECT, "share of a GPU per actor; 0: actors act on the CPU", 0.0, at_least=0, at_most=1
    )
    compression: Literal["none", "remote", "zstd"] = option(
        COLLECT, "compress frames sent to the learner with zstd; remote: only frames from other nodes", "remote"
    )
    mode: Literal["sync", "overlap"] = option(
        COLLECT,
        "sync: collect, then train (lag 0); overlap: in parallel; auto: overlap with a GPU",
        AUTO,
        changes_updates=True,
    )
    max_policy_lag: int = option(
        COLLECT,
        "overlap: train on rollouts up to this many versions old, with one more staging buffer (1 in overlap mode, 0 "
        "in sync)",
        None,
        unit="updates",
        at_least=0,
        changes_updates=True,
    )
    repeatable: bool = option(
        COLLECT,
        "overlap: collect batch k with version k - N (N: --max-policy-lag), each actor its own part, so that runs "
        "repeat and resume exactly; no: with the newest weights, by whichever actor is free; auto: yes, unless the "
        "number of actors varies",
        AUTO,
        changes_updates=True,
    )
    actor_timeout: float = option(
        COLLECT,
        "replace an actor that takes longer than this to build its environments or to return a rollout (for a rollout "
        "less once rollout times are known: 10 times the slowest recent one, at least 60 s)",
        600.0,
        unit="seconds",
        above=0,
    )
    cluster_timeout: float = option(
        COLLECT, "time to wait for the Ray cluster and for actors to start", 60.0, unit="seconds", above=0
    )

    learning_rate: float = setting(PPO, "step size of Adam", 5e-4, above=0)
    learning_rate_schedule: Literal["constant", "linear"] = setting(
        PPO, "linear: decrease to 0 at --total-frames", "constant"
    )
    adam_eps: float = setting(PPO, "epsilon of Adam", 1e-8, above=0)
    gamma: float = setting(PPO, "discount factor per step", 0.999, at_least=0, at_most=1)
    gae_lambda: float = setting(PPO, "lambda of generalized advantage estimation", 0.95, at_least=0, at_most=1)
    clip_coef: float = setting(PPO, "clipping range of the probability ratio and of the value change", 0.2, above=0)
    objective: Literal["standard", "decoupled"] = option(
        PPO,
        "decoupled: correct for rollouts of older versions; auto: decoupled where --max-policy-lag is not 0",
        AUTO,
        changes_updates=True,
    )
    importance_weight_cap: float = setting(
        PPO, "decoupled: largest weight of a sample, pi_proximal / pi_behavior", 100.0, at_least=1
    )
    ent_coef: float = setting(PPO, "weight of the entropy bonus", 0.01, at_least=0)
    vf_coef: float = setting(PPO, "weight of the value loss", 1.0, at_least=0)
    max_grad_norm: float = setting(PPO, "clip the norm of the gradient to this value", 40.0, above=0)
    num_minibatches: int = setting(PPO, "minibatches (optimizer steps) per epoch", 8, at_least=1)
    update_epochs: int = setting(PPO, "passes over each batch", 3, unit="epochs", at_least=1)
    reward_transform: Literal["sign", "running_return", "raw"] = setting(
        PPO, "reward for PPO; running_return: divided by the running std of returns, clipped to +-10", "sign"
    )
    reward_norm_gamma: float = setting(
        PPO, "discount of the returns whose std running_return divides by", 0.99, at_least=0, at_most=1
    )
    advantage_normalization: Literal["batch", "minibatch"] = setting(
        PPO, "normalize advantages per batch or per minibatch", "batch"
    )

    observation_scale: int = setting(NETWORK, "pixel values are divided by this", 256, at_least=1)
    relu_before_linear: bool = setting(NETWORK, "ReLU between the last residual block and the 256-unit layer", False)
    orthogonal_heads: bool = setting(NETWORK, "orthogonal initialization of both heads, gains .01 and 1", False)
    initialization: Literal["torch", "glorot"] = setting(
        NETWORK, "convolutions and 256-unit layer; glorot: Glorot uniform, zero bias; torch: PyTorch's", "torch"
    )
    encoder: Literal["impala", "impoola"] = setting(
        NETWORK,
        "what precedes the 256-unit layer; impala: flattening; impoola: ReLU and global average pooling",
        "impala",
    )
    width: int = setting(NETWORK, "multiply the channels of the convolutions by this", 1, at_least=1, at_most=16)
    precision: Literal["float32", "bfloat16"] = option(
        NETWORK, "arithmetic of the convolutions and the 256-unit layer; auto: bfloat16 where the hardware has it", AUTO
    )
    actor_precision: Literal["float32", "bfloat16"] = option(
        NETWORK, "--precision on the actors' device", AUTO, has_flag=False
    )
    micro_batch: int = option(
        NETWORK, "frames per forward pass; 0: chosen for the device", 0, at_least=1, at_most=LAST_LEVEL
    )
    cuda_graphs: bool = option(NETWORK, "run actor inference and the learner's optimizer steps as CUDA graphs", False)
    compile: bool = option(NETWORK, "torch.compile the learner's network (needs a GPU and a C compiler)", False)
    learner_threads: int = option(NETWORK, "CPU threads of the learner; 0: one per core", 0, unit="threads", at_least=1)

    evaluator: bool = option(EVALUATE, "score checkpoints during training, in a separate process", True)
    eval_episodes_per_level: int = setting(
        EVALUATE,
        "episodes on each training level and each held-out level; 1: no interval for the training score",
        3,
        unit="episodes",
        at_least=1,
    )
    live_split: Literal["validation", "test"] = setting(
        EVALUATE, "held-out levels scored during training; test: biases the final score on test levels", "test"
    )
    backfill: bool = option(EVALUATE, "after training, score the checkpoints that were skipped during training", False)
    eval_timeout: float = option(
        EVALUATE, "time to wait for the score of the last checkpoint", 600.0, unit="seconds", above=0
    )

    def __post_init__(self) -> None:
        for field in SETTINGS.values():
            check_setting(field, getattr(self, field.name))
        end = self.start_level + self.num_levels
        if self.min_actors > self.num_actors:
            raise ConfigError(
                f"--num-actors: must be LOW:HIGH with 1 <= LOW <= HIGH, got {self.min_actors}:{self.num_actors}"
            )
        if end > MAX_LEVEL_SEED:
            raise ConfigError(
                f"--num-levels: {self.num_levels} levels from --start-level {self.start_level} exceed Procgen's last "
                f"level {LAST_LEVEL}"
            )
        if self.held_out == "next" and not self.num_levels:
            raise ConfigError("--num-levels: 0 trains on every level, so no level comes next; use --held-out sample")
        if self.held_out == "next" and end + 2 * self.held_out_levels > MAX_LEVEL_SEED:
            raise ConfigError(
                f"--held-out: 2 x {self.held_out_levels} levels from {end} exceed Procgen's last level {LAST_LEVEL}; "
                "lower --held-out-levels or use --held-out sample"
            )
        if self.batch_size % self.num_minibatches:
            raise ConfigError(
                f"--num-minibatches: {self.num_minibatches} does not divide the batch of {self.batch_size} frames "
                f"({self.num_actors} actors x {self.envs_per_actor} environments x {self.unroll_length} steps)"
            )
        if self.minibatch_size < 2:
            raise ConfigError(
                f"--num-minibatches: {self.num_minibatches} gives minibatches of 1 frame; at least 2 are needed to "
                "normalize advantages"
            )
        if self.mode == "sync" and self.max_policy_lag:
            raise ConfigError(
                f"--max-policy-lag: {self.max_policy_lag} needs --mode overlap; this run's mode is sync (lag 0): use "
                "--max-policy-lag 0 or --mode overlap"
            )
        if self.mode == "overlap" and not self.max_policy_lag:
            raise ConfigError(
                "--max-policy-lag: must be at least 1 in overlap mode, got 0; use --max-policy-lag 1, or --mode sync "
                "for lag 0"
            )
        if self.repeatable and self.min_actors < self.num_actors:
            raise ConfigError(
                "--repeatable: yes needs a fixed number of actors, but --num-actors is "
                f"{self.min_actors}:{self.num_actors}; use --repeatable no or a number without a range"
            )
        if self.compile and self.device != "cuda":
            raise ConfigError("--compile: needs a GPU, and the learner uses none; use --no-compile")
        if self.cuda_graphs and self.device != "cuda" and not self.actor_gpus:
            raise ConfigError(
                "--cuda-graphs: needs a GPU, and neither learner nor actors use one; use --no-cuda-graphs"
            )

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
        """Updates until total_frames is reached or exceeded."""
        return -(-self.total_frames // self.batch_size)

    @property
    def network(self) -> NetworkSettings:
        """The settings of the policy network."""
        return NetworkSettings(
            self.observation_scale,
            self.relu_before_linear,
            self.orthogonal_heads,
            self.initialization,
            self.encoder,
            self.width,
        )


SETTINGS = {field.name: field for field in dataclasses.fields(Config)}
DEFAULTS = {name: field.metadata["default"] for name, field in SETTINGS.items()}
# What runs did before a setting existed, computed from their other settings: checkpoints without it mean this.
BEFORE_SETTING: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "reward_norm_gamma": lambda stored: stored["gamma"],
    "initialization": lambda _: "torch",
    "encoder": lambda _: "impala",
    "width": lambda _: 1,
    "max_policy_lag": lambda stored: int(stored["mode"] == "overlap"),
    "repeatable": lambda _: False,
    "objective": lambda _: "standard",
    "importance_weight_cap": lambda _: DEFAULTS["importance_weight_cap"],
}

_PUBLISHED: dict[str, Any] = {
    "held_out": "sample",
    "live_split": "validation",
    "eval_episodes_per_level": 1,
    "adam_eps": 1e-5,
    "vf_coef": 0.25,  # theirs is .5, of a loss with a factor 1/2
    "max_grad_norm": 0.5,
    "reward_transform": "running_return",
    "advantage_normalization": "minibatch",
    "observation_scale": 255,
    "relu_before_linear": True,
    "orthogonal_heads": True,
    "initialization": "glorot",
}
# What differs from the defaults, which are the teaching notebook's; easy and hard are the code that made OpenAI's
# published logs (docs/published.md).
PRESETS: dict[str, dict[str, Any]] = {
    "lab": {},
    "easy": {**_PUBLISHED, "num_levels": 200, "total_frames": 25_000_000},
    "hard": {**_PUBLISHED, "num_levels": 500, "total_frames": 200_000_000, "distribution_mode": "hard"},
}
PRESET_NUM_ENVS = {"lab": 64, "easy": 64, "hard": 256}


def flag(name: str) -> str:
    """The name of a setting on the command line: `num_actors` is `--num-actors`."""
    return "--" + name.replace("_", "-")


def choices_of(field: dataclasses.Field) -> tuple[str, ...]:
    """What the user may write for a setting that is a choice; empty for other settings."""
    automatic = (AUTO,) if field.metadata["default"] == AUTO else ()
    if field.type is bool:
        return (*automatic, "yes", "no") if automatic else ()
    return (*automatic, *(field.metadata["choices"] or get_args(field.type)))


def algorithm(config: Config) -> dict[str, Any]:
    """What decides the updates of a run, by name: settings, and num_envs, however actors share the environments.

    Not the game, the levels, the seed, the length of the run or how it is carried out; of these only total_frames, and
    only where the learning rate depends on it.
    """
    names = [
        name
        for name, field in SETTINGS.items()
        if field.metadata["group"] in (COLLECT, PPO, NETWORK)
        and (not field.metadata["free"] or field.metadata["changes_updates"])
    ]
    if config.learning_rate_schedule == "linear":
        names.append("total_frames")
    return {name: getattr(config, name) for name in (*names, "num_envs")}


def differs_from_preset(config: Config, preset: str) -> dict[str, tuple[Any, Any]]:
    """What `config` computes otherwise than `preset` does today: {setting: (its value, the preset's)}.

    Only the algorithm, without what is chosen for the machine. It differs because the user chose so, or because the run
    is older than the preset's present values.
    """
    values = {**DEFAULTS, **PRESETS[preset], "num_envs": PRESET_NUM_ENVS[preset]}
    chosen = {name for name, field in SETTINGS.items() if field.metadata["free"]}
    return {
        name: (value, values[name])
        for name, value in algorithm(config).items()
        if name not in chosen and value != values[name]
    }


def describe_differences(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """`vf_coef 0.5 instead of 0.25, adam_eps ...`."""
    return ", ".join(f"{name} {ours} instead of {theirs}" for name, (ours, theirs) in differing.items())


def check_setting(field: dataclasses.Field, value: Any) -> None:
    """Raises ConfigError unless `value` has the type of `field`, is one of its choices and within its bounds."""
    name, choices = flag(field.name), choices_of(field)
    kind: Any = field.type if field.type in (bool, int, float) else str
    if type(value) is not kind and not (kind is float and type(value) is int):
        words: dict[Any, str] = {bool: "yes or no", int: "a whole number", float: "a number"}
        expected = f"one of {', '.join(choices)}" if choices else words[field.type]
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")
    if kind is str:
        if value == AUTO or value not in choices:
            raise ConfigError(f"{name}: unknown value {value!r}; {suggestion(value, choices)}")
        return
    at_least, at_most, above = (field.metadata[bound] for bound in ("at_least", "at_most", "above"))
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{name}: must be a finite number, got {value}")
    if above is not None and value <= above:
        raise ConfigError(f"{name}: must be greater than {above}, got {value}")
    if (at_least is not None and value < at_least) or (at_most is not None and value > at_most):
        condition = f"at least {at_least}" if at_most is None else f"between {at_least} and {at_most}"
        raise ConfigError(f"{name}: must be {condition}, got {value}")
