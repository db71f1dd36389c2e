"""From what a user asks for to a Config: of a new run and of a resumed one, with what is chosen for the machine."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.config import AUTO, DEFAULTS, PRESET_NUM_ENVS, PRESETS, SETTINGS, Config, ConfigError, check_setting, flag
from common.limits import available_cores
from common.precision import Precision, fastest_precision
from common.text import format_count

SAMPLED_HELD_OUT_LEVELS = 200
MAX_DEFAULT_ACTORS = 16
# For --num-actors max: with fewer environments per actor, inference would cost too much per frame.
MIN_ENVS_PER_ACTOR = 4
# On a CPU the activations of this many frames fit in the caches.
CPU_MICRO_BATCH = 128


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware that automatic values are chosen for. `precision_on` gives the best for "cpu" or "cuda"."""

    cores: int = 1
    has_gpu: bool = False
    precision_on: Callable[[str], Precision] = lambda device: "float32"

    @staticmethod
    def here() -> "Machine":
        """This machine; `cores` are those the process may use."""
        import torch  # not at the top: level sets and the audit need this module, not torch

        return Machine(available_cores(), torch.cuda.is_available(), fastest_precision)


# How automatic values are chosen, in this order: later rules read what earlier rules chose.
AUTOMATIC: dict[str, Callable[[dict[str, Any], Machine], Any]] = {
    "device": lambda values, machine: "cuda" if machine.has_gpu else "cpu",
    "mode": lambda values, _: "overlap" if values["device"] == "cuda" else "sync",
    "max_policy_lag": lambda values, _: int(values["mode"] == "overlap"),
    "objective": lambda values, _: "decoupled" if values["max_policy_lag"] else "standard",
    "actor_precision": lambda values, machine: (
        machine.precision_on("cuda" if values["actor_gpus"] else "cpu")
        if values["precision"] == AUTO
        else values["precision"]
    ),
    "precision": lambda values, machine: machine.precision_on(values["device"]),
    "half_batches": lambda values, _: values["actor_gpus"] > 0,
    "min_actors": lambda values, _: values["num_actors"],
    "repeatable": lambda values, _: values["min_actors"] == values["num_actors"],
    "micro_batch": lambda values, _: _minibatch_size(values) if values["device"] == "cuda" else CPU_MICRO_BATCH,
    "learner_threads": lambda _, machine: machine.cores,
}


def _minibatch_size(values: Mapping[str, Any]) -> int:
    batch_size = values["num_actors"] * values["envs_per_actor"] * values["unroll_length"]
    return max(1, batch_size // values["num_minibatches"])


def resolve(preset: str, overrides: Mapping[str, Any], machine: Machine | None = None) -> Config:
    """The settings of a new run: the preset's values, the user's `overrides` by field name, and automatic values.

    `machine` is the one automatic values are chosen for; None: this one.

    Raises:
        ConfigError: a value is wrong; the message names the flag, the value and what to do.
    """
    check_setting(SETTINGS["preset"], preset)
    machine = machine or Machine.here()
    values = {**DEFAULTS, **PRESETS[preset], **overrides, "preset": preset}
    _check_requested(values)
    if values["held_out_levels"] is None:
        sampled = values["held_out"] == "sample"
        values["held_out_levels"] = SAMPLED_HELD_OUT_LEVELS if sampled else max(1, values["num_levels"])
    num_envs = PRESET_NUM_ENVS[preset]
    default_actors = _largest_divisor(num_envs, min(machine.cores, MAX_DEFAULT_ACTORS))
    values |= _share_environments(num_envs, f"preset {preset}", overrides, default_actors)
    config = _resolved(values, machine)
    _require_effect(config, overrides)
    return config


def resolve_resumed(
    stored: Config, requested: Mapping[str, Any], overrides: Mapping[str, Any], machine: Machine | None = None
) -> Config:
    """The settings of a resumed run: the stored ones with the user's `overrides`.

    What was chosen automatically for the machine is chosen again, unless `requested`, what the user has asked for
    since the run began, says otherwise. Another number of actors shares the same environments.

    Raises:
        ConfigError: a value is wrong.
    """
    automatic = {name: requested.get(name, DEFAULTS[name]) for name in AUTOMATIC}
    values = {**dataclasses.asdict(stored), **automatic, **overrides}
    _check_requested(values)
    values |= _share_environments(stored.num_envs, "the run", overrides, stored.num_actors)
    if "envs_per_actor" in overrides and values["min_actors"] > values["num_actors"]:
        raise ConfigError(
            f"--envs-per-actor: {values['envs_per_actor']} leaves {format_count(values['num_actors'], 'actor')}, fewer "
            f"than the run's {values['min_actors']}, the LOW of its --num-actors; give --num-actors too"
        )
    config = _resolved(values, machine or Machine.here())
    _require_effect(config, overrides)
    return config


# Settings that have no effect if the condition holds, and why. Refused only where the user named them.
WITHOUT_EFFECT: dict[str, tuple[Callable[[Config], bool], str]] = {
    "start_level": (lambda config: not config.num_levels, "--num-levels 0 trains on every level"),
    "keep_every": (
        lambda config: config.keep_every > 0 and not config.keep_checkpoints,
        "without --keep-checkpoints every checkpoint is kept",
    ),
    "backfill": (lambda config: config.backfill and not config.evaluator, "--no-evaluator scores nothing"),
    "eval_timeout": (lambda config: not config.evaluator, "--no-evaluator scores nothing"),
    "relu_before_linear": (
        lambda config: config.encoder == "impoola",
        "--encoder impoola always has that ReLU",
    ),
    "reward_norm_gamma": (
        lambda config: config.reward_transform != "running_return",
        "only --reward-transform running_return normalizes rewards",
    ),
    "half_batches": (
        lambda config: config.half_batches and config.envs_per_actor == 1,
        "--envs-per-actor 1 leaves nothing to split",
    ),
    "repeatable": (lambda config: config.mode == "sync", "--mode sync collects every batch with the newest weights"),
    "importance_weight_cap": (
        lambda config: config.objective == "standard",
        "--objective standard uses no importance weights",
    ),
    "learner_threads": (
        lambda config: config.device == "cuda" and config.learner_threads > 1,
        "a learner on a GPU uses one thread",
    ),
}


def _require_effect(config: Config, overrides: Mapping[str, Any]) -> None:
    """Raises ConfigError if a setting that the user named changes nothing, unless it has the preset's value."""
    defaults = {**DEFAULTS, **PRESETS[config.preset]}
    for name, (has_no_effect, reason) in WITHOUT_EFFECT.items():
        if name in overrides and overrides[name] != defaults[name] and has_no_effect(config):
            raise ConfigError(f"{flag(name)}: has no effect because {reason}; leave it out")


def edited(stored: Config, of_checkpoint: Config) -> list[str]:
    """Settings of config.json that a run cannot change and that differ from those of its checkpoint."""
    changed = [
        f"{name} is {getattr(stored, name)}, the checkpoint has {getattr(of_checkpoint, name)}"
        for name, field in SETTINGS.items()
        if not field.metadata["free"] and getattr(stored, name) != getattr(of_checkpoint, name)
    ]
    if stored.num_envs != of_checkpoint.num_envs:
        changed.append(f"num_actors x envs_per_actor is {stored.num_envs}, the checkpoint has {of_checkpoint.num_envs}")
    return changed


def contradictions(stored: Config, config: Config, overrides: Mapping[str, Any]) -> list[str]:
    """Settings in `overrides` that a resumed run cannot change, each as `--flag (run has A, asked for B)`."""
    changed = [
        f"{flag(name)} (run has {getattr(stored, name)}, asked for {value})"
        for name, value in overrides.items()
        if not SETTINGS[name].metadata["free"] and getattr(stored, name) != value
    ]
    if config.num_envs != stored.num_envs:
        changed.append(
            f"--num-actors x --envs-per-actor (run has {stored.num_envs} environments, asked for {config.num_envs})"
        )
    return changed


def _resolved(values: dict[str, Any], machine: Machine) -> Config:
    if values["device"] == "cuda" and not machine.has_gpu:
        raise ConfigError("--device: cuda is not available: torch finds no GPU on this machine; use cpu or auto")
    for name, rule in AUTOMATIC.items():
        if values[name] == DEFAULTS[name]:
            values[name] = rule(values, machine)
    return Config(**values)


def _share_environments(num_envs: int, owner: str, overrides: Mapping[str, Any], default_actors: int) -> dict[str, int]:
    """num_actors and envs_per_actor: both as given, or such that the actors share `num_envs` environments."""
    names = ("num_actors", "envs_per_actor")
    given = {name: overrides[name] for name in names if name in overrides}
    if len(given) == 2:
        return given
    if not given and overrides.get("min_actors"):  # --num-actors max
        given = {"envs_per_actor": _largest_divisor(num_envs, MIN_ENVS_PER_ACTOR)}
    ((name, number),) = (given or {"num_actors": default_actors}).items()
    other = names[1 - names.index(name)]
    if num_envs % number:
        raise ConfigError(
            f"{flag(name)}: {number} does not divide the {num_envs} environments of {owner}; use a divisor, or give "
            f"{flag(other)} too"
        )
    return {name: number, other: num_envs // number}


def _largest_divisor(number: int, limit: int) -> int:
    return max(n for n in range(1, limit + 1) if number % n == 0)


def _check_requested(values: Mapping[str, Any]) -> None:
    """Checks each value by itself, except automatic ones."""
    for name, field in SETTINGS.items():
        if values[name] != DEFAULTS[name]:
            check_setting(field, values[name])
