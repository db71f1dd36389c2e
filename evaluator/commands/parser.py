"""The arguments of all commands. This module imports nothing slow, so that every --help is immediate.

Each command has a module of the same name in this folder, whose `run(options)` executes it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.cli import (
    OneLineParser,
    at_least_one,
    directory_path,
    level_seed,
    number_type,
    parse_whole_number,
    seconds,
    whole_number,
)
from common.games import DISTRIBUTION_MODES, GAMES
from common.storage.run_directory import follow_best

# As in evaluator/levels/level_sets.py, which needs numpy.
_SPLITS = ("train", "validation", "test")
_PLAYABLE_SPLITS = (*_SPLITS, "all")
_CHECKPOINT = "a checkpoint, or a run directory for its newest complete checkpoint"
_episode = number_type(parse_whole_number, "a whole number", 0, 9999)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads a command line; `command` is the name of the command. Exits with one line and code 2 if it is wrong."""
    parser = OneLineParser(
        prog="evaluator",
        usage="python -m evaluator COMMAND ...",
        description="Scores, compares and shows what runs of python -m learner have learned. "
        "python -m evaluator PATH is short for python -m evaluator score PATH.",
        epilog="See python -m evaluator COMMAND --help. Wrong usage is reported in one line, with exit code 2.",
    )
    commands = parser.add_subparsers(
        prog="python -m evaluator", title="commands", metavar="COMMAND", required=True, dest="command"
    )
    for add_command in (_add_score, _add_compare, _add_video, _add_levels, _add_report, _add_watch, _add_aggregate):
        add_command(commands)
    if arguments and arguments[0] not in commands.choices and not arguments[0].startswith("-"):
        if not follow_best(Path(arguments[0])).exists():
            parser.error(f"{arguments[0]} is neither a command ({', '.join(commands.choices)}) nor an existing path")
        arguments = ["score", *arguments]
    options = parser.parse_args(arguments)
    if options.command == "aggregate" and options.episodes_per_level is not None and not options.rescore:
        parser.error("aggregate: --episodes-per-level has no effect without --rescore")
    if options.command == "score" and options.backfill:
        _require_effect_with_backfill(options, commands.choices["score"])
    return options


def _require_effect_with_backfill(options: argparse.Namespace, score: argparse.ArgumentParser) -> None:
    """--backfill scores as the evaluator beside the run does, so nothing about playing or printing can be chosen."""
    names = ("split", "episodes_per_level", "policy", "seed", "json", "levels")
    # --split is a list if it is given; its default is a tuple.
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(options, name) != score.get_default(name)]
    if given:
        score.error(f"--backfill: scores as during training; leave {', '.join(given)} out")


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="play a checkpoint on training and validation levels",
        description="Plays a checkpoint on its training levels and on levels it never trained on. "
        "Stores no scores in the run directory, except with --backfill.",
    )
    add = parser.add_argument
    add("path", type=directory_path, metavar="RUN_DIR_OR_CHECKPOINT", help=_CHECKPOINT)
    _add_playing(parser)
    add("--levels", action="store_true", help="also print the score of every level")
    text = (
        "instead, score every checkpoint of the run that has no scores yet, as during training, and store the scores "
        "in the run directory; no other flag applies"
    )
    add("--backfill", action="store_true", help=text)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="test whether checkpoint B is better than checkpoint A",
        description="Plays two checkpoints on the same levels with the same random numbers and compares them in pairs.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=directory_path, help=_CHECKPOINT)
    _add_playing(parser, whose="A's, for both")


def _add_video(commands: Any) -> None:
    parser = commands.add_parser(
        "video",
        help="record one episode with the policy's values and action probabilities",
        description="Plays one episode and writes a gif: frame, step, reward, value and action probabilities.",
    )
    add = parser.add_argument
    text = f"{_CHECKPOINT} (without --level: its newest one with scores)"
    add("path", type=directory_path, metavar="RUN_DIR_OR_CHECKPOINT", help=text)
    add("--output", type=Path, required=True, metavar="FILE", help="the gif to write; must not exist")
    level = parser.add_mutually_exclusive_group()
    text = "the level to play; each use of a test level is logged in the run's test_uses.jsonl"
    level.add_argument("--level", type=level_seed, metavar="N", help=text)
    text = "choose the level by the scores in the run directory (default: worst)"
    level.add_argument("--which", choices=("worst", "forgotten", "typical"), help=text)
    text = "split to choose the level from, logged as above if it is test (default: the run's --live-split)"
    add("--split", choices=_SPLITS, help=text)
    text = "width and height of the image in pixels: 64, as the policy sees it, or 512 (default: 64)"
    add("--resolution", type=whole_number, choices=(64, 512), default=64, help=text)
    add("--episode", type=_episode, default=0, metavar="N", help="which episode on the level, from 0 (default: 0)")
    _add_policy(parser)
    add("--json", action="store_true", help="print one JSON object instead of a line")


def _add_levels(commands: Any) -> None:
    parser = commands.add_parser(
        "levels",
        help="draw and audit training, validation and test levels",
        description="Draws the level sets of a run with these settings and shows what the audit found.",
    )
    add = parser.add_argument
    text = "Procgen games, or all (default: coinrun)"
    add("--env-name", nargs="+", choices=(*GAMES, "all"), default=["coinrun"], metavar="GAME", help=text)
    text = "easy, hard, or both: easy hard (default: easy)"
    add("--distribution-mode", nargs="+", choices=DISTRIBUTION_MODES, default=["easy"], metavar="MODE", help=text)
    add("--start-level", type=level_seed, default=0, metavar="N", help="first training level (default: 0)")
    text = "number of training levels; 0 is all levels (default: 200)"
    add("--num-levels", type=level_seed, default=200, metavar="N", help=text)
    text = "held-out levels: next after the training levels, or a sample of all others (default: sample)"
    add("--held-out", choices=("next", "sample"), default="sample", help=text)
    text = "number of validation levels, and of test levels (default: 200)"
    add("--held-out-levels", type=at_least_one, default=200, metavar="N", help=text)
    add("--json", action="store_true", help="print one JSON object per game and mode instead of tables")


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="write a run's scores, curves, levels and videos as one HTML file",
        description="Writes one self-contained HTML file to open in a browser, mail or print. Plays nothing.",
    )
    parser.add_argument("path", type=directory_path, metavar="RUN_DIR", help="a run directory")
    text = "the file to write; must not exist (default: RUN_DIR/report.html, which is replaced)"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)


def _add_watch(commands: Any) -> None:
    parser = commands.add_parser(
        "watch",
        help="follow a run's scores in the terminal, also from another machine",
        description="Shows a run's progress and newest scores until Ctrl-C. Reads the run directory, changes nothing.",
    )
    add = parser.add_argument
    add("path", type=directory_path, metavar="RUN_DIR", help="a run directory")
    add("--interval", type=seconds, default=2.0, metavar="SECONDS", help="time between updates (default: 2)")
    add("--once", action="store_true", help="show the current state and exit")


def _add_aggregate(commands: Any) -> None:
    parser = commands.add_parser(
        "aggregate",
        help="one table of many runs: games, variants and seeds",
        description="Compares variants over games and seeds: IQM, optimality gap, probability of improvement, with "
        "intervals over seeds (Agarwal et al. 2021). Reads run directories; plays only with --rescore.",
    )
    add = parser.add_argument
    add(
        "paths",
        type=directory_path,
        nargs="+",
        metavar="DIR",
        help="a study, a run, or any directory with runs below it",
    )
    text = "levels whose scores are compared (default: test if all runs have scores on them, else validation); all: "
    add("--split", choices=_PLAYABLE_SPLITS, help=text + "a sample of all levels, with --rescore")
    text = "compare at this many frames, such as 1M (default: what every finished run has reached)"
    add("--at", type=_frames, metavar="FRAMES", help=text)
    add("--published", action="store_true", help="add OpenAI's PPO where the settings match theirs")
    text = "score ranges that normalize returns: those of OpenAI's code, or those printed in later papers "
    text += "(default: openai)"
    add("--ranges", choices=("openai", "paper"), default="openai", help=text)
    add("--rescore", action="store_true", help="play the checkpoints again instead of using the runs' scores")
    text = "episodes on every level with --rescore (default: the runs' --eval-episodes-per-level)"
    add("--episodes-per-level", type=at_least_one, metavar="N", help=text)
    add("--output", type=Path, metavar="PAGE.html", help="also write one HTML file with plots; must not exist")
    text = "also write the plots as PNG files into this directory; must not exist"
    add("--plots", type=Path, metavar="NEW_DIR", help=text)
    add("--json", action="store_true", help="print one JSON object instead of tables")


def _frames(text: str) -> int:
    """A whole number of at least 0; the error shows the suffixes."""
    try:
        frames = parse_whole_number(text)
    except ValueError:
        frames = -1
    if frames < 0:
        raise argparse.ArgumentTypeError(f"expected a number of frames such as 500k, 1M or 1000000, got {text!r}")
    return frames


def _add_playing(parser: argparse.ArgumentParser, whose: str = "the run's") -> None:
    """Which levels are played and how, and --json; `whose` settings are the defaults."""
    text = "levels to play (default: train validation); all: a sample of all levels, training levels and look-alikes "
    text += "included; each use of test is logged in the run's test_uses.jsonl"
    parser.add_argument("--split", nargs="+", choices=_PLAYABLE_SPLITS, default=("train", "validation"), help=text)
    text = f"episodes on every level (default: --eval-episodes-per-level, {whose})"
    parser.add_argument("--episodes-per-level", type=at_least_one, metavar="N", help=text)
    _add_policy(parser, whose)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _add_policy(parser: argparse.ArgumentParser, whose: str = "the run's") -> None:
    """How actions are chosen."""
    text = "sample actions from the policy, or take the most probable one (default: sample)"
    parser.add_argument("--policy", choices=("sample", "greedy"), default="sample", help=text)
    text = f"seed of the sampled actions (default: {whose}, which reproduces the scores in evaluations.jsonl)"
    parser.add_argument("--seed", type=level_seed, metavar="N", help=text)
