"""`python -m evaluator score`: plays a checkpoint on its levels."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from common.cli import UsageError
from common.process import prepare_process
from common.text import format_interval, format_score
from evaluator.commands.files import open_checkpoint, open_run
from evaluator.commands.playing import evaluate_all, flags_of
from evaluator.levels.level_file import stored_level_sets
from evaluator.levels.level_sets import Split
from evaluator.output.text import print_table
from evaluator.scores.evaluation import Evaluation
from evaluator.service import EvaluationFailed, EvaluationService


def run(options: argparse.Namespace) -> None:
    """Prints the scores; UsageError if the checkpoint cannot be scored."""
    if options.backfill:
        _backfill(options)
        return
    checkpoint = open_checkpoint(options.path)
    (evaluation,), settings = evaluate_all([checkpoint], options)
    held_out: Split = "validation" if "validation" in options.split else "test"
    row = evaluation.row(held_out)
    flags = flags_of(checkpoint)
    if options.json:
        levels = {"levels": [asdict(level) for level in evaluation.levels]} if options.levels else {}
        print(json.dumps(row | {"path": str(checkpoint.path), **settings, **levels}))
    else:
        _print_tables(evaluation, row, flags, options.levels)


def _backfill(options: argparse.Namespace) -> None:
    """Scores what has no scores yet; UsageError if the run cannot be scored or written."""
    directory = open_run(options.path)
    config = directory.read_config()
    directory.require_writable()
    prepare_process(num_threads=1, sees_gpu=False, group_readable=config.group_readable)
    stored_level_sets(directory, config)  # a damaged levels.json is refused here, not by the service's thread
    service = EvaluationService(directory, config)
    before = service.num_scored
    service.backfill()
    try:
        while service.finish(timeout=1.0) is None and not service.is_idle:
            pass
    except EvaluationFailed as error:
        if isinstance(error.__cause__, UsageError):
            raise error.__cause__ from error
        raise
    if service.num_scored == 0:  # each damaged one was named
        raise UsageError(f"no complete checkpoint in {directory.checkpoints}")
    print(f"{directory.path}: {service.num_scored - before} checkpoints scored, {service.num_scored} in total")
    service.close()


def _print_tables(
    evaluation: Evaluation, row: dict[str, Any], flags: dict[tuple[Split, int], str], with_levels: bool
) -> None:
    config = evaluation.checkpoint.config
    print(
        f"{config.env_name} {config.distribution_mode}, policy_version {evaluation.checkpoint.policy_version}, "
        f"{evaluation.checkpoint.frames:,} frames (played in {evaluation.seconds:.0f} s)"
    )
    print_table(
        ("split", "levels", "episodes", "mean", "95 % interval", "normalized", "success", "time-outs"),
        [
            (
                split,
                str(score.levels),
                str(score.episodes),
                f"{score.mean:.2f}",
                format_interval(score.interval),
                f"{score.normalized:.2f}",
                f"{score.success_rate:.0%}",
                f"{score.timeout_rate:.0%}",
            )
            for split, score in evaluation.splits.items()
        ],
    )
    for split, score in evaluation.splits.items():
        print(
            f"{split}: {f'no interval, {score.no_interval}' if score.no_interval else f'interval about {score.about}'}"
        )
    if row["generalization_gap"] is not None:
        gap = format_score({"mean": row["generalization_gap"], "interval": row["generalization_gap_interval"]})
        print(f"generalization gap, training minus {row['held_out_split']}: {gap}")
    flagged = [(level.split, level.level) for level in evaluation.levels if (level.split, level.level) in flags]
    for split in dict.fromkeys(split for split, _ in flagged):
        levels = [f"{level} {flags[split, level]}" for other, level in flagged if other == split]
        print(
            f"{split}: the audit flagged {len(levels)} of {evaluation.splits[split].levels} levels: {', '.join(levels)}"
        )
    if with_levels:
        print_table(
            ("split", "level", "episodes", "return", "success", "time-outs", "length", "audit"),
            [
                (
                    level.split,
                    str(level.level),
                    str(level.episodes),
                    f"{level.mean_return:.2f}",
                    f"{level.success_rate:.0%}",
                    f"{level.timeout_rate:.0%}",
                    f"{level.mean_length:.0f}",
                    flags.get((level.split, level.level), ""),
                )
                for level in evaluation.levels
            ],
            left=("split", "audit"),
        )
