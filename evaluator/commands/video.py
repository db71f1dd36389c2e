"""`python -m evaluator video`: one episode as a gif."""

import argparse
import json
import sys

from common.cli import UsageError
from common.process import prepare_process
from common.storage.checkpoints import Checkpoint, checkpoint_name
from common.storage.run_directory import RunDirectory
from evaluator.commands.files import open_checkpoint, require_new_path, run_of, write_new_file
from evaluator.commands.playing import log_uses_of_test_levels
from evaluator.levels.level_file import read_level_sets
from evaluator.levels.level_sets import Split
from evaluator.output.scoreboard import LEVEL_CHOICES, LevelHistory
from evaluator.output.video import encode_gif, record_episode
from evaluator.scores.play import load_policy


def run(options: argparse.Namespace) -> None:
    """Writes the gif and prints what happens in it.

    Raises:
        UsageError: there is nothing to play or no place to write, or a use of the test levels cannot be logged.
    """
    if options.split is not None and options.level is not None:
        raise UsageError("--split and --level cannot be combined: --split chooses a scored level, --level names one")
    require_new_path(options.output)
    checkpoint = open_checkpoint(options.path)
    config = checkpoint.config
    if options.level is None:
        checkpoint, split, level = _scored_level(checkpoint, options)
        is_test_level = split == "test"
    else:
        level = options.level
        is_test_level = level in _stored_test_levels(checkpoint)
    prepare_process(num_threads=1, sees_gpu=False, group_readable=config.group_readable)  # test_uses.jsonl
    if is_test_level:
        log_uses_of_test_levels([checkpoint], options.command, episodes_per_level=1)
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


def _scored_level(checkpoint: Checkpoint, options: argparse.Namespace) -> tuple[Checkpoint, Split, int]:
    """The checkpoint with scores of --split, that split, and the level that --which names among its scored levels.

    The checkpoint is `checkpoint`, unless a run was named whose newest checkpoint has no scores, as after Ctrl-C: then
    the newest one that has.
    """
    split: Split = options.split or checkpoint.config.live_split
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
    return checkpoint, split, level


def _stored_test_levels(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The test levels in the levels.json of the checkpoint's run; none without that file."""
    run = run_of(checkpoint)
    if run is None or not run.level_sets.exists():
        return ()
    return read_level_sets(run.level_sets, checkpoint.config).test


def _newest_scored(run: RunDirectory, scored: list[int]) -> Checkpoint | None:
    paths = [run.checkpoints / checkpoint_name(version) for version in reversed(scored)]
    if (newest := next((path for path in paths if path.exists()), None)) is None:
        return None
    print(f"evaluator: the newest checkpoint has no scores yet; using {newest}", file=sys.stderr)
    return open_checkpoint(newest)
