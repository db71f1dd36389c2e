"""`python -m evaluator RUN_DIR_OR_CHECKPOINT` scores one checkpoint: no Ray, and nothing is written into the run."""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import USAGE_EXIT_CODE, OneLineParser
from common.games import MAX_LEVEL_SEED

# torch, Procgen and matplotlib are imported where they are used: `--help` answers at once.
if TYPE_CHECKING:
    from common.checkpoints import Checkpoint
    from evaluator.evaluation import Evaluation

INTERRUPTED_EXIT_CODE = 130


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line for them."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for what the user must change, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except UsageError as error:
        print(f"evaluator: {error}", file=sys.stderr)
        return USAGE_EXIT_CODE
    except KeyboardInterrupt:
        print("evaluator: interrupted", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="evaluator",
        usage="python -m evaluator RUN_DIR_OR_CHECKPOINT [options]",
        description="Plays a checkpoint on its training levels and on levels it was never trained on.",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="RUN_DIR_OR_CHECKPOINT",
        help="a run directory (its newest complete checkpoint) or one directory below its checkpoints/",
    )
    parser.add_argument(
        "--episodes-per-level",
        type=_count,
        metavar="N",
        help="episodes on every level (default: the run's --eval-episodes-per-level)",
    )
    parser.add_argument(
        "--split", choices=("train", "held_out", "both"), default="both", help="levels to play (default: both)"
    )
    parser.add_argument(
        "--policy",
        choices=("sample", "greedy"),
        default="sample",
        help="draw actions from the policy, or take the most probable one (default: sample)",
    )
    parser.add_argument(
        "--seed",
        type=_level_or_seed,
        metavar="N",
        help="of the sampled actions (default: the run's, which repeats the scores in evaluations.jsonl)",
    )
    parser.add_argument("--levels", action="store_true", help="also print every level's score")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--gif", type=Path, metavar="FILE", help="also film one episode into FILE, which must not exist"
    )
    parser.add_argument(
        "--level", type=_level_or_seed, metavar="N", help="level to film (default: the first held-out level)"
    )
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.level is not None and options.gif is None:
        raise UsageError("--level says which level to film; give --gif FILE too")
    if options.gif is not None:
        _require_new_file(options.gif)

    from common.config import ConfigError
    from common.process import prepare_process
    from evaluator.evaluation import evaluate
    from evaluator.level_sets import SPLITS, level_sets

    checkpoint = _load(options.path)
    config = checkpoint.config
    try:
        sets = level_sets(config)
    except ConfigError as error:
        raise UsageError(str(error)) from error
    prepare_process(num_threads=1, sees_gpu=False)
    seed = config.seed if options.seed is None else options.seed
    greedy = options.policy == "greedy"
    film: dict[str, Any] | None = None
    if options.gif is not None:
        level = sets.held_out[0] if options.level is None else options.level
        film = _film(checkpoint, level, seed, greedy, options.gif)
        if not options.json:
            print(
                f"{options.gif}: level {level}, {film['length']} steps, episode return {film['episode_return']:g}",
                flush=True,
            )
    splits = SPLITS if options.split == "both" else (options.split,)
    episodes = options.episodes_per_level or config.eval_episodes_per_level
    evaluation = evaluate(checkpoint, sets.slots(splits), episodes, seed, greedy)
    if options.json:
        settings = {"policy": options.policy, "seed": seed, "episodes_per_level": episodes}
        _print_json(evaluation, settings, film, options.levels)
    else:
        _print_tables(evaluation, options.levels)


def _load(path: Path) -> "Checkpoint":
    """The checkpoint at `path`, or the newest complete one of the run there.

    Raises:
        UsageError: there is none, or the one named is damaged.
    """
    from common.checkpoints import MANIFEST_FILE, CheckpointError, load_checkpoint, load_newest_complete
    from common.run_directory import RunDirectory

    run = RunDirectory(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if run.checkpoints.is_dir() or run.config.exists():
        damaged: list[str] = []
        newest = load_newest_complete(run.checkpoints, damaged.append, policy_only=True)
        if newest is None:
            reason = f": {damaged[0]}" if damaged else ""
            raise UsageError(f"there is no complete checkpoint in {run.checkpoints}{reason}")
        for line in damaged:
            print(f"evaluator: {line}; taking {newest.path}", file=sys.stderr)
        return newest
    if not (path / MANIFEST_FILE).exists() and not path.name.isdigit():
        raise UsageError(f"{path} is neither a run directory nor a checkpoint")
    try:
        return load_checkpoint(path, policy_only=True)
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def _require_new_file(path: Path) -> None:
    """Refuses early what would fail after minutes of playing."""
    if os.path.lexists(path):
        raise UsageError(f"--gif {path} exists already and is not overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"--gif {path}: {path.parent} is no directory")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"--gif {path}: {path.parent} is not writable")


def _film(checkpoint: "Checkpoint", level: int, seed: int, greedy: bool, path: Path) -> dict[str, Any]:
    """Plays one episode on `level`, writes its gif and returns the episode's record."""
    from evaluator.evaluation import evaluate
    from evaluator.film import encode_gif

    film = evaluate(checkpoint, [("held_out", level)], 1, seed, greedy, film_level=level).film
    assert film is not None
    data = encode_gif(film.frames)
    try:
        with open(path, "xb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"--gif {path} cannot be written: {error.strerror}") from error
    episode = film.episode
    return {"file": str(path), "level": level, "episode_return": episode.episode_return, "length": episode.length}


def _print_json(
    evaluation: "Evaluation", settings: dict[str, Any], film: dict[str, Any] | None, with_levels: bool
) -> None:
    row = {**evaluation.row(), "path": str(evaluation.checkpoint.path), **settings}
    if with_levels:
        row["levels"] = [asdict(level) for level in evaluation.levels]
    if film is not None:
        row["film"] = film
    print(json.dumps(row))


def _print_tables(evaluation: "Evaluation", with_levels: bool) -> None:
    config = evaluation.checkpoint.config
    print(
        f"{config.env_name} {config.distribution_mode}, policy_version {evaluation.checkpoint.policy_version}, "
        f"{evaluation.checkpoint.frames:,} frames (played in {evaluation.seconds:.0f} s)"
    )
    _print_table(
        ("split", "levels", "episodes", "mean ± stderr", "normalized", "success", "time-outs"),
        [
            (
                split,
                str(score.levels),
                str(score.episodes),
                f"{score.mean:.2f} ± " + ("?" if score.stderr is None else f"{score.stderr:.2f}"),
                f"{score.normalized:.2f}",
                f"{score.success_rate:.0%}",
                f"{score.timeout_rate:.0%}",
            )
            for split, score in evaluation.splits.items()
        ],
    )
    gap = evaluation.row()["generalization_gap"]
    if gap is not None:
        print(f"generalization gap {gap:.2f}")
    if with_levels:
        _print_table(
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


def _print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column == "split" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def _count(text: str) -> int:
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def _level_or_seed(text: str) -> int:
    number = _integer(text)
    if not 0 <= number < MAX_LEVEL_SEED:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {MAX_LEVEL_SEED - 1}")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


if __name__ == "__main__":
    sys.exit(main())
