"""`aggregate --rescore`: scores the checkpoints of runs again, on the same levels with the same number of episodes.

As by `score`, nothing is written into the runs, except that each use of the test levels is logged and that a run
without levels.json gets it.
"""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace

from common.cli import UsageError
from common.process import prepare_process
from common.storage.checkpoints import MANIFEST_FILE, Checkpoint, CheckpointError, list_checkpoints, load_checkpoint
from common.text import format_count
from evaluator.commands.playing import level_sets_of, log_uses_of_test_levels
from evaluator.levels.level_sets import Split
from evaluator.scores.evaluation import evaluate
from evaluator.studies.runs import ScoredRun
from evaluator.studies.selection import Score, Selection, default_split, select


def rescore(
    runs: Sequence[ScoredRun], split: Split | None, at: int | None, episodes_per_level: int | None
) -> Selection:
    """As `select`, but with new scores: of every run's newest checkpoint at or before `at`.

    `at` None: what all runs have trained that have trained all their frames, or if none has, all that have trained at
    all. Whatever can be refused is checked before anything is played or logged.

    Raises:
        UsageError: as for `select`; a run that has trained `at` frames has no complete checkpoint; or runs of a game
            have no levels in common.
    """
    split = split or default_split(runs)
    if at is None:
        trained = [run for run in runs if run.frames]
        at = min([run.frames for run in trained if run.is_trained] or [run.frames for run in trained] or [0])
    newest = {run.run.path: _checkpoint(run, at) for run in runs if run.frames >= at}
    selection = select(
        [_planned(run, newest.get(run.run.path), split) for run in runs], split, at, require_equal_evaluations=False
    )
    selected = [
        (selection.runs[variant][game][seed], seeds, newest[selection.runs[variant][game][seed].run.path])
        for variant, games in selection.scores.items()
        for game, seeds in games.items()
        for seed in seeds
    ]
    checkpoints = [checkpoint for _, _, checkpoint in selected]
    group_readable = all(run.config.group_readable for run, _, _ in selected)  # levels.json, test_uses.jsonl
    prepare_process(num_threads=1, sees_gpu=False, group_readable=group_readable)
    levels = _common_levels(checkpoints, split, selection.notes)
    for checkpoint in checkpoints:
        level_sets_of(checkpoint)  # stores them
    episodes = episodes_per_level or max(run.config.eval_episodes_per_level for run, _, _ in selected)
    if split == "test":
        log_uses_of_test_levels(checkpoints, "aggregate", episodes)
    for run, scores, checkpoint in selected:
        slots = [(split, level) for level in levels[run.config.env_name]]
        print(
            f"evaluator: {run.run.path}: policy_version {checkpoint.policy_version}, "
            f"{format_count(len(slots), f'{split} level')} x {format_count(episodes, 'episode')}",
            file=sys.stderr,
        )
        evaluation = evaluate(checkpoint, slots, episodes, run.config.seed)
        scores[run.config.seed] = Score(evaluation.splits[split].mean, checkpoint.frames)
    selection.played = {game: (len(levels[game]), episodes) for game in selection.games}
    return selection


def _planned(run: ScoredRun, checkpoint: Checkpoint | None, split: Split) -> ScoredRun:
    """The run as if only `checkpoint` had been scored; its score is not known yet."""
    return replace(run, rows=[] if checkpoint is None else [{"frames": checkpoint.frames, split: {"mean": math.nan}}])


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


def _common_levels(checkpoints: Sequence[Checkpoint], split: Split, notes: list[str]) -> dict[str, list[int]]:
    """The levels of `split` that all checkpoints of a game have, by game; a note where these are not all levels."""
    levels: dict[str, list[int]] = {}
    most: dict[str, int] = {}
    for checkpoint in checkpoints:
        game, own = checkpoint.config.env_name, level_sets_of(checkpoint, stores=False).of(split)
        available = set(own)
        most[game] = max(most.get(game, 0), len(own))
        levels[game] = [level for level in levels.get(game, own) if level in available]
        if not levels[game]:
            raise UsageError(f"{game}: the runs have no {split} levels in common; compare runs of the same levels")
    notes += [
        f"{game}: {len(own)} of {format_count(most[game], f'{split} level')} in common; only these were played"
        for game, own in levels.items()
        if len(own) < most[game]
    ]
    return levels
