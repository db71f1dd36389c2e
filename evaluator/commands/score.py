"""`python -m evaluator score`: plays a checkpoint on its levels. Nothing of the run is changed, but by --backfill."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluator.commands.arguments import UsageError, add_playing_arguments, load, require_run
from evaluator.commands.playing import level_sets_of, note_test_use
from evaluator.output.text import print_table

if TYPE_CHECKING:
    from evaluator.scores.evaluation import Evaluation


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "score",
        help="play a checkpoint on training and validation levels",
        description="Plays a checkpoint on its training levels and on levels it was never trained on.",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="RUN_DIR_OR_CHECKPOINT",
        help="a run directory (its newest complete checkpoint) or one directory below its checkpoints/",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "validation", "test"),
        default=("train", "validation"),
        help="levels to play (default: train validation); each use of test is logged in the run's test_uses.jsonl",
    )
    add_playing_arguments(parser)
    parser.add_argument("--levels", action="store_true", help="also print every level's score")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--backfill",
        action="store_true",
        help="instead: score every checkpoint of the run that lacks scores, into the run's own files",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises UsageError where that cannot be done."""
    if options.backfill:
        _backfill(options)
        return
    from common.process import prepare_process
    from evaluator.scores.evaluation import evaluate

    checkpoint = load(options.path)
    config = checkpoint.config
    prepare_process(num_threads=1, sees_gpu=False)
    sets = level_sets_of(checkpoint)
    seed = config.seed if options.seed is None else options.seed
    episodes = options.episodes_per_level or config.eval_episodes_per_level
    note_test_use(checkpoint, options.split, "score", episodes)
    evaluation = evaluate(checkpoint, sets.slots(options.split), episodes, seed, options.policy == "greedy")
    held_out: Any = "validation" if "validation" in options.split else "test"
    if options.json:
        row = evaluation.row(held_out) | {"path": str(checkpoint.path), "policy": options.policy, "seed": seed}
        row["episodes_per_level"] = episodes
        if options.levels:
            row["levels"] = [asdict(level) for level in evaluation.levels]
        print(json.dumps(row))
    else:
        _print_tables(evaluation, evaluation.row(held_out), options.levels)


def _backfill(options: argparse.Namespace) -> None:
    from common.config import ConfigError
    from common.process import prepare_process
    from evaluator.output.score_files import RunIsBeingScored
    from evaluator.service import EvaluationService

    directory = require_run(options.path)
    try:
        config = directory.read_config()
        directory.require_writable()
        prepare_process(num_threads=1, sees_gpu=False)
        service = EvaluationService(directory, config)
    except (ConfigError, RunIsBeingScored) as error:
        raise UsageError(str(error)) from error
    before = service.num_scored
    service.backfill()
    while service.finish(timeout=1.0) is None and not service.is_idle:
        pass
    print(f"{directory.path}: {service.num_scored - before} checkpoints scored, {service.num_scored} in all")
    service.close()


def _print_tables(evaluation: "Evaluation", row: dict[str, Any], with_levels: bool) -> None:
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
                "?" if score.interval is None else f"{score.interval[0]:.2f} to {score.interval[1]:.2f}",
                f"{score.normalized:.2f}",
                f"{score.success_rate:.0%}",
                f"{score.timeout_rate:.0%}",
            )
            for split, score in evaluation.splits.items()
        ],
    )
    if row["generalization_gap"] is not None:
        interval = row["generalization_gap_interval"]
        between = "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"
        print(f"generalization gap, training minus {row['held_out_split']}: {row['generalization_gap']:.2f}{between}")
    if with_levels:
        print_table(
            ("split", "level", "episodes", "return", "success", "time-outs", "length"),
            [
                (
                    level.split,
                    str(level.level),
                    str(level.episodes),
                    f"{level.mean_return:.2f}",
                    f"{level.success_rate:.0%}",
                    f"{level.timeout_rate:.0%}",
                    f"{level.mean_length:.0f}",
                )
                for level in evaluation.levels
            ],
        )
