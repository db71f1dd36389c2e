"""Which variant of a study each run is: named by the settings that somebody asked for and in which the runs differ.

What runs differ in beyond their names is said in notes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from common.cli import UsageError
from common.config import PRESETS, SETTINGS, algorithm, describe_differences, flag
from common.resolution import WITHOUT_EFFECT
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import unlike_published
from evaluator.studies.runs import ScoredRun

ONLY_VARIANT = "default"
# Settings that tell runs of one variant apart, or say how and for how long a run is carried out. They make variants
# only where a study varies them or where they change the algorithm.
_NOT_A_VARIANT = frozenset(
    {
        *("seed", "env_name", "total_frames", "checkpoint_interval", "keep_checkpoints", "keep_every", "device"),
        *("group_readable", "num_actors", "min_actors", "envs_per_actor", "actor_gpus", "actor_timeout"),
        *("cluster_timeout", "compression", "micro_batch", "compile", "learner_threads", "evaluator"),
        *("eval_episodes_per_level", "live_split", "backfill", "eval_timeout"),
    }
)
# What a setting follows from if nobody asks for it.
_FOLLOWS_FROM: dict[str, set[str]] = {
    **{name: {"preset"} for values in PRESETS.values() for name in values},
    "num_envs": {"preset", "num_actors", "envs_per_actor"},
    "max_policy_lag": {"mode"},
    "objective": {"mode", "max_policy_lag"},
    "repeatable": {"num_actors", "min_actors"},
}
Difference = TypeVar("Difference")  # how a setting differs
# For each setting in which runs differ, one run with each of its values.
Differences = dict[str, dict[Any, ScoredRun]]


def varied_settings(runs: Sequence[ScoredRun]) -> list[str]:
    """The settings that somebody asked for and in which the runs differ, in the order of their declaration.

    Instead of --num-actors and --envs-per-actor their product counts, num_envs, unless a study varies them.
    """
    differing = _differences(runs)
    asked = {name for run in runs for name in run.requested}
    varied = {name for run in runs for name in run.varied}
    if "num_actors" in varied and any(run.config.min_actors < run.config.num_actors for run in runs):
        varied.add("min_actors")  # --num-actors LOW:HIGH
    candidates = asked & (SETTINGS.keys() - _NOT_A_VARIANT | differing.keys()) | varied
    names = [name for name in SETTINGS if name in candidates and len({getattr(run.config, name) for run in runs}) > 1]
    shares = {"num_actors", "envs_per_actor"}
    if "num_envs" in differing and shares & asked and not shares & set(names):
        names.append("num_envs")
    return names


def by_variant(runs: Sequence[ScoredRun]) -> dict[str, dict[str, dict[int, ScoredRun]]]:
    """The runs by variant, game and seed. A variant is named by the settings in which the runs differ.

    Raises:
        UsageError: runs of easy and hard levels, or two runs of the same game, variant and seed.
    """
    modes = {run.config.distribution_mode: run for run in runs}
    if len(modes) > 1:
        named = ", ".join(f"{mode}: {run.run.path}" for mode, run in modes.items())
        raise UsageError(f"easy and hard levels cannot be compared ({named})")
    names = varied_settings(runs)
    grouped: dict[str, dict[str, dict[int, ScoredRun]]] = {}
    for run in runs:
        pairs = [setting_text(name, getattr(run.config, name)) for name in names]
        seeds = grouped.setdefault(" ".join(pairs) or ONLY_VARIANT, {}).setdefault(run.config.env_name, {})
        other = seeds.setdefault(run.config.seed, run)
        if other is not run:
            differing = _describe(_causes(_differences([other, run])))
            raise UsageError(
                f"{other.run.path} and {run.run.path} have the same game, variant and seed ({run.config.seed})"
                f"{f', although {differing}' if differing else ''}; give one of them"
            )
    return grouped


def unnamed_differences(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """A line for each variant whose runs differ in what they train with, and one if variants differ in more than their
    names say.

    Nobody asked for such a difference: `auto` means something else on another machine, or a preset has changed.
    """
    notes: list[str] = []
    found: set[str] = set()
    for variant, runs in variants.items():
        if differing := _causes(_differences(runs)):
            found |= differing.keys()
            notes.append(f"{variant}: its runs differ in settings that are not in its name: {_describe(differing)}")
    runs = [run for own in variants.values() for run in own]
    differing = _causes(_differences(runs), varied_settings(runs))
    if between := {name: values for name, values in differing.items() if name not in found}:
        notes.append(f"variants differ in settings that are not in their names: {_describe(between)}")
    return notes


def differences_from_published(variants: Mapping[str, Sequence[ScoredRun]]) -> list[str]:
    """A line for each way in which training of a variant's runs differs from that of the published runs.

    Without what the variants are named by and what follows from that.
    """
    named = varied_settings([run for own in variants.values() for run in own])
    notes: dict[str, None] = {}
    for variant, runs in variants.items():
        for run in runs:
            if differing := _causes(unlike_published(run.config), named):
                notes[f"{variant}: not the settings of {PUBLISHED}: {describe_differences(differing)}"] = None
    return list(notes)


def _differences(runs: Sequence[ScoredRun]) -> Differences:
    """How runs differ in what they train with: preset, training levels and algorithm.

    A setting counts for the runs in which it has an effect.
    """
    found: Differences = {}
    for run in runs:
        config = run.config
        trains_with = {name: getattr(config, name) for name in ("preset", "start_level", "num_levels")}
        for name, value in {**trains_with, **algorithm(config)}.items():
            if name not in WITHOUT_EFFECT or not WITHOUT_EFFECT[name][0](config):
                found.setdefault(name, {}).setdefault(value, run)
    return {name: values for name, values in found.items() if len(values) > 1}


def _causes(differing: Mapping[str, Difference], named: Sequence[str] = ()) -> dict[str, Difference]:
    """The differences that are not `named` and follow neither from another one nor from a named setting."""
    causes = {*differing, *named}
    return {
        name: values
        for name, values in differing.items()
        if name not in named and not causes & _FOLLOWS_FROM.get(name, set())
    }


def _describe(differing: Differences) -> str:
    """`mode is sync in runs/a and overlap in runs/b`."""
    return ", ".join(
        f"{name} is {' and '.join(f'{value} in {run.run.path}' for value, run in values.items())}"
        for name, values in differing.items()
    )


def setting_text(name: str, value: Any) -> str:
    """As in the name of a variant: `max-policy-lag=4`, `repeatable=no`."""
    shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    return f"{flag(name)[2:]}={shown}"
