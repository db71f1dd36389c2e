"""What commands share: playing checkpoints on the same levels, and logging each use of the test levels."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from common.cli import UsageError
from common.process import prepare_process
from common.storage.checkpoints import Checkpoint
from evaluator.commands.files import run_of
from evaluator.levels.level_file import audited_level_sets, flags, stored_flags, stored_level_sets
from evaluator.levels.level_sets import LevelSets, Split
from evaluator.output.uses_of_test_levels import log_test_use
from evaluator.scores.evaluation import Evaluation, evaluate


def evaluate_all(
    checkpoints: Sequence[Checkpoint], options: argparse.Namespace
) -> tuple[list[Evaluation], dict[str, Any]]:
    """Plays each checkpoint on the levels of `options.split` that all of them have, with the same random numbers.

    Returns one evaluation per checkpoint, and how they were played: policy, seed, episodes_per_level.

    Raises:
        UsageError: the checkpoints have no levels of a split in common, or a use of the test levels cannot be logged.
    """
    group_readable = all(checkpoint.config.group_readable for checkpoint in checkpoints)  # levels.json, test_uses.jsonl
    prepare_process(num_threads=1, sees_gpu=False, group_readable=group_readable)
    available = [level_sets_of(checkpoint, stores=False).slots(options.split) for checkpoint in checkpoints]
    common = set(available[0]).intersection(*available[1:])
    slots = [slot for slot in available[0] if slot in common]
    if missing := [split for split in options.split if split not in {split for split, _ in slots}]:
        raise UsageError(f"A and B have no {missing[0]} levels in common: they were trained with different level sets")
    for checkpoint in checkpoints:
        level_sets_of(checkpoint)  # stores them
    config = checkpoints[0].config
    seed = config.seed if options.seed is None else options.seed
    episodes = options.episodes_per_level or config.eval_episodes_per_level
    if "test" in options.split:
        log_uses_of_test_levels(checkpoints, options.command, episodes)
    evaluations = [evaluate(each, slots, episodes, seed, options.policy == "greedy") for each in checkpoints]
    return evaluations, {"policy": options.policy, "seed": seed, "episodes_per_level": episodes}


def level_sets_of(checkpoint: Checkpoint, stores: bool = True) -> LevelSets:
    """The level sets of the checkpoint's run, audited now if they have not been; newly drawn outside of a run.

    With `stores`, a run without levels.json gets it.

    Raises:
        ConfigError: the settings leave too few levels, or levels.json is damaged.
    """
    run = run_of(checkpoint)
    if run is None or not (stores or run.level_sets.exists()):
        return audited_level_sets(checkpoint.config)[0]
    return stored_level_sets(run, checkpoint.config)


def flags_of(checkpoint: Checkpoint) -> dict[tuple[Split, int], str]:
    """Why levels of the checkpoint's level sets are unfit, by split and level."""
    run = run_of(checkpoint)
    return flags(audited_level_sets(checkpoint.config)[1]) if run is None else stored_flags(run.level_sets)


def log_uses_of_test_levels(checkpoints: Sequence[Checkpoint], command: str, episodes_per_level: int) -> None:
    """Logs a use of the test levels for each checkpoint before any is played; UsageError if a log cannot be written."""
    runs = [run_of(checkpoint) for checkpoint in checkpoints]
    paths = [
        checkpoint.path.resolve().parent / "test_uses.jsonl" if run is None else run.test_uses
        for checkpoint, run in zip(checkpoints, runs, strict=True)
    ]
    for path in paths:  # all of them before the first line is written
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise UsageError(f"cannot log the use of the test levels in {path}: it is not writable")
    for checkpoint, path in zip(checkpoints, paths, strict=True):
        try:
            uses = log_test_use(path, checkpoint, command, episodes_per_level)
        except OSError as error:
            raise UsageError(f"cannot log the use of the test levels in {path}: {error.strerror}") from error
        print(f"evaluator: use number {uses} of the test levels; logged in {path}", file=sys.stderr)
