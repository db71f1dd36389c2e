"""`python -m evaluator film`: one episode as a gif."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluator.commands.arguments import (
    UsageError,
    add_policy_arguments,
    level_or_seed,
    load,
    require_new_file,
    run_of,
    write_new_file,
)

if TYPE_CHECKING:
    from common.storage.checkpoints import Checkpoint

_LAST_EPISODE = 9999


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "film",
        help="film one episode, with what the policy thought",
        description="Plays one episode and writes a gif: frame, step, reward, value and action probabilities.",
    )
    parser.add_argument("path", type=Path, metavar="RUN_DIR_OR_CHECKPOINT")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the gif, which must not exist")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--level", type=level_or_seed, metavar="N", help="the level to play")
    which.add_argument(
        "--which",
        choices=("worst", "forgotten", "typical"),
        help="choose the level by the scores in the run (default: worst)",
    )
    parser.add_argument(
        "--split",
        choices=("train", "validation", "test"),
        help="among the levels of this split (default: the held-out levels that the run shows)",
    )
    parser.add_argument("--resolution", type=int, choices=(64, 512), default=64, help="512: the sharp picture (64)")
    parser.add_argument("--episode", type=_episode, default=0, metavar="N", help="which episode on the level (0)")
    add_policy_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises UsageError where there is nothing to film, or nowhere to put it."""
    if options.split is not None and options.level is not None:
        raise UsageError("--split chooses among scored levels; --level names one: give one of them")
    require_new_file("--output", options.output)
    from common.process import prepare_process
    from evaluator.output.video import encode_gif, record_episode
    from evaluator.scores.play import load_policy

    checkpoint = load(options.path)
    config = checkpoint.config
    level = options.level
    if level is None:
        level = _scored_level(checkpoint, options.which or "worst", options.split)
    prepare_process(num_threads=1, sees_gpu=False)
    video = record_episode(
        load_policy(checkpoint),
        config.game,
        level,
        config.seed if options.seed is None else options.seed,
        options.episode,
        options.policy == "greedy",
        options.resolution,
    )
    write_new_file("--output", options.output, encode_gif(video))
    if options.json:
        print(
            json.dumps(
                {
                    "file": str(options.output),
                    "policy_version": checkpoint.policy_version,
                    "level": level,
                    "episode": options.episode,
                    "length": video.length,
                    "episode_return": video.episode_return,
                    "completed": video.completed,
                    "timed_out": video.timed_out,
                }
            )
        )
        return
    outcome = "completed" if video.completed else "timed out" if video.timed_out else "not completed"
    print(f"{options.output}: level {level}, {video.length} steps, episode return {video.episode_return:g}, {outcome}")


def _scored_level(checkpoint: "Checkpoint", which: str, split: Any) -> int:
    from common.storage.jsonl import read_jsonl
    from evaluator.output.scoreboard import LEVEL_CHOICES, LevelHistory

    run = run_of(checkpoint)
    rows = [] if run is None else read_jsonl(run.evaluations)
    own = next((row for row in reversed(rows) if row["policy_version"] == checkpoint.policy_version), None)
    if run is None or own is None:
        raise UsageError(f"{checkpoint.path} has no scores to choose a level by; give --level N")
    split = split or own["held_out_split"]
    history = LevelHistory.read(run.levels, {row["policy_version"] for row in rows})
    if not history.at(split, checkpoint.policy_version):
        raise UsageError(f"{checkpoint.path} has no scores on {split} levels; give --level N")
    level = LEVEL_CHOICES[which](history, checkpoint.policy_version, split)
    if level is None:
        raise UsageError(f"{checkpoint.path} has forgotten no {split} level; give --level N")
    return level


def _episode(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_EPISODE:
        raise argparse.ArgumentTypeError(f"{text!r} must be from 0 to {_LAST_EPISODE}")
    return int(text)
