"""What the commands take: checkpoints, counts, levels; wrong ones become one line for the user."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.games import MAX_LEVEL_SEED

# torch, Procgen and matplotlib are imported where they are used: `--help` answers at once.
if TYPE_CHECKING:
    from common.storage.checkpoints import Checkpoint
    from common.storage.run_directory import RunDirectory


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line for them."""


def add_playing_arguments(parser: argparse.ArgumentParser) -> None:
    """How episodes are played: --episodes-per-level, --policy, --seed."""
    parser.add_argument(
        "--episodes-per-level",
        type=count,
        metavar="N",
        help="episodes on every level (default: the run's --eval-episodes-per-level)",
    )
    add_policy_arguments(parser)


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """How actions are chosen: --policy, --seed."""
    parser.add_argument(
        "--policy",
        choices=("sample", "greedy"),
        default="sample",
        help="draw actions from the policy, or take the most probable one (default: sample)",
    )
    parser.add_argument(
        "--seed",
        type=level_or_seed,
        metavar="N",
        help="of the sampled actions (default: the run's, which repeats the scores in evaluations.jsonl)",
    )


def load(path: Path) -> "Checkpoint":
    """The policy of the checkpoint at `path`, or of the newest complete one of the run there.

    Raises:
        UsageError: there is none, or the one named is damaged.
    """
    from common.storage.checkpoints import MANIFEST_FILE, CheckpointError, load_checkpoint, load_newest_complete
    from common.storage.run_directory import RunDirectory

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
        return load_checkpoint(path.resolve(), policy_only=True)  # checkpoints/best is a link
    except CheckpointError as error:
        raise UsageError(str(error)) from error


def require_run(path: Path) -> "RunDirectory":
    """The run at `path`.

    Raises:
        UsageError: there is none.
    """
    from common.storage.run_directory import RunDirectory

    run = RunDirectory(path)
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if not run.config.exists():
        raise UsageError(f"{path} is no run directory (it has no config.json)")
    return run


def run_of(checkpoint: "Checkpoint") -> "RunDirectory | None":
    """The run that the checkpoint lies in, or None where it was copied out of one."""
    from common.storage.run_directory import RunDirectory

    run = RunDirectory(checkpoint.path.resolve().parent.parent)
    return run if run.config.exists() and run.checkpoints == checkpoint.path.resolve().parent else None


def require_new_file(option: str, path: Path) -> None:
    """Refuses early what would fail after minutes of playing."""
    if os.path.lexists(path):
        raise UsageError(f"{option} {path} exists already and is not overwritten")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: {path.parent} is no directory")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{option} {path}: {path.parent} is not writable")


def write_new_file(option: str, path: Path, data: bytes) -> None:
    """Writes `path`, which must not exist.

    Raises:
        UsageError: it does, or cannot be written.
    """
    try:
        with open(path, "xb") as file:
            file.write(data)
    except OSError as error:
        raise UsageError(f"{option} {path} cannot be written: {error.strerror}") from error


def count(text: str) -> int:
    """argparse type: a whole number from 1."""
    number = _integer(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def level_or_seed(text: str) -> int:
    """argparse type: a level, or a seed."""
    number = _integer(text)
    if not 0 <= number < MAX_LEVEL_SEED:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to {MAX_LEVEL_SEED - 1}")
    return number


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
