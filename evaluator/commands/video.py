"""`python -m evaluator video`: one episode as a gif."""

import argparse
import json
import sys
from typing import Any

from common.cli import UsageError
from common.process import prepare_process
from common.storage.checkpoints import Checkpoint, checkpoint_name
from common.storage.run_directory import RunDirectory
from evaluator.commands.files import open_checkpoint, require_new_path, run_of, write_new_file
from evaluator.output.scoreboard import LEVEL_CHOICES, LevelHistory
from evaluator.output.video import encode_gif, record_episode
from evaluator.scores.play import load_policy


def run(options: argparse.Namespace) -> None:
    """Writes the gif and prints what happens in it; UsageError if there is nothing to play or no place to write."""
    if options.split is not None and options.level is not None:
        raise UsageError("--split and --level cannot be combined: --split chooses a scored level, --level names one")
    require_new_path(options.output)
    checkpoint = open_checkpoint(options.path)
    config = checkpoint.config
    level = options.level
    if level is None:
        checkpoint, level = _scored_level(checkpoint, options)
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
    write_new_file(options.output, encode_gif(video))
    if options.json:
        shown = ("level", "episode", "length", "episode_return", "completed", "timed_out")
        facts = {name: getattr(video, name) for name in shown}
        print(json.dumps({"file": str(options.output), "policy_version": checkpoint.policy_version, **facts}))
        return
    outcome = "completed" if video.completed else "timed out" if video.timed_out else "not completed"
    print(f"{options.output}: level {level}, {video.length} steps, episode return {video.episode_return:g}, {outcome}")


def _scored_level(checkpoint: Checkpoint, options: argparse.Namespace) -> tuple[Checkpoint, int]:
    """The level that --which names among the scored levels of --split, and the checkpoint with these scores.

    That is `checkpoint`, unless a run was named whose newest checkpoint has no scores, as after Ctrl-C: then the newest
    one that has.
    """
    split: Any = options.split or checkpoint.config.live_split
    history = LevelHistory()
    if (run := run_of(checkpoint)) is not None:
        history = LevelHistory.read(run.levels, {row["policy_version"] for row in run.read_evaluations()})
        if not history.at(split, checkpoint.policy_version) and RunDirectory(options.path).config.exists():
            checkpoint = _newest_scored(run, history.versions(split)) or checkpoint
    version = checkpoint.policy_version
    if not history.at(split, version):
        raise UsageError(f"{checkpoint.path} has no scores on {split} levels; name a level with --level")
    level = LEVEL_CHOICES[options.which or "worst"](history, version, split)
    if level is None:
        raise UsageError(f"{checkpoint.path} has not forgotten any {split} level; name a level with --level")
    return checkpoint, level


def _newest_scored(run: RunDirectory, scored: list[int]) -> Checkpoint | None:
    paths = [run.checkpoints / checkpoint_name(version) for version in reversed(scored)]
    if (newest := next((path for path in paths if path.exists()), None)) is None:
        return None
    print(f"evaluator: the newest checkpoint has no scores yet; using {newest}", file=sys.stderr)
    return open_checkpoint(newest)
