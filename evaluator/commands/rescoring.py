"""`aggregate --rescore`: scores the checkpoints of runs again, on the same levels with the same number of episodes.

Nothing is written into the runs, except that each use of the test levels is logged, as by `score`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from common.cli import UsageError
from common.storage.checkpoints import MANIFEST_FILE, Checkpoint, CheckpointError, list_checkpoints, load_checkpoint
from evaluator.commands.playing import level_sets_of, log_use_of_test_levels
from evaluator.levels.level_sets import Split
from evaluator.scores.evaluation import evaluate
from evaluator.studies.runs import ScoredRun


def rescore(
    runs: Sequence[ScoredRun], split: Split, at: int | None, episodes_per_level: int | None
) -> tuple[list[ScoredRun], int]:
    """The runs with one new score each, of their newest checkpoint at or before `at`, and `at`.

    `at` None: what all runs have trained that have trained all their frames, or all runs if none has. Runs that have
    not trained `at` frames are returned without scores.

    Raises:
        UsageError: a run that has trained `at` frames has no complete checkpoint, or runs of a game have no levels in
            common.
    """
    if at is None:
        at = min([run.frames for run in runs if run.is_trained] or [run.frames for run in runs])
    chosen = {id(run): _checkpoint(run, at) for run in runs if run.frames >= at}
    episodes = episodes_per_level or max(run.config.eval_episodes_per_level for run in runs)
    levels = _common_levels(list(chosen.values()), split)
    scored = []
    for run in runs:
        checkpoint = chosen.get(id(run))
        if checkpoint is None:
            scored.append(replace(run, rows=[]))
            continue
        own = levels[run.config.env_name]
        print(
            f"evaluator: {run.run.path}: policy_version {checkpoint.policy_version}, {len(own)} {split} levels x "
            f"{episodes} episodes",
            file=sys.stderr,
        )
        if split == "test":
            log_use_of_test_levels(checkpoint, "aggregate", episodes)
        evaluation = evaluate(checkpoint, [(split, level) for level in own], episodes, run.config.seed)
        row = {"frames": checkpoint.frames, split: asdict(evaluation.splits[split])}
        scored.append(replace(run, rows=[row]))
    return scored, at


def _checkpoint(run: ScoredRun, at: int) -> Checkpoint:
    """The newest complete checkpoint at or before `at` frames; a line for each damaged one."""
    for path in reversed(list_checkpoints(run.run.checkpoints)):
        try:
            if json.loads((path / MANIFEST_FILE).read_bytes())["frames"] > at:
                continue
            return load_checkpoint(path, policy_only=True)
        except (CheckpointError, OSError, ValueError, KeyError, TypeError) as error:
            print(f"evaluator: {path} is skipped: {error}", file=sys.stderr)
    raise UsageError(f"{run.run.path} has no complete checkpoint of at most {at:,} frames to score")


def _common_levels(checkpoints: Sequence[Checkpoint], split: Split) -> dict[str, list[int]]:
    """The levels of `split` that all checkpoints of a game have, by game."""
    levels: dict[str, list[int]] = {}
    for checkpoint in checkpoints:
        game, own = checkpoint.config.env_name, level_sets_of(checkpoint).of(split)
        levels[game] = [level for level in levels.get(game, own) if level in set(own)]
        if not levels[game]:
            raise UsageError(f"{game}: the runs have no {split} levels in common; compare runs of the same levels")
    return levels
