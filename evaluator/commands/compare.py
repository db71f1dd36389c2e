"""`python -m evaluator compare A B`: is B better, on the same levels with the same random numbers?"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluator.commands.arguments import UsageError, add_playing_arguments, load
from evaluator.commands.playing import level_sets_of, note_test_use
from evaluator.output.text import print_table

_PLACES = {"train": "training levels", "validation": "held-out levels", "test": "test levels"}


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "compare",
        help="say whether checkpoint B is better than checkpoint A",
        description="Plays two checkpoints on the same levels with the same random numbers and compares them in pairs.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a run directory (its newest checkpoint) or a checkpoint")
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "validation", "test"),
        default=("train", "validation"),
        help="levels to play, those that both have in the split (default: train validation)",
    )
    add_playing_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Raises UsageError where the two cannot be compared."""
    from common.process import prepare_process
    from evaluator.levels.level_sets import SPLITS
    from evaluator.scores.comparison import compare, sentence
    from evaluator.scores.evaluation import evaluate
    from evaluator.scores.statistics import by_split

    first, second = load(options.A), load(options.B)
    games = [f"{side.config.env_name} {side.config.distribution_mode}" for side in (first, second)]
    if games[0] != games[1]:
        raise UsageError(f"A plays {games[0]} and B plays {games[1]}: they have no levels in common")
    prepare_process(num_threads=1, sees_gpu=False)
    sets = [level_sets_of(side) for side in (first, second)]
    slots = [slot for slot in sets[0].slots(options.split) if slot in set(sets[1].slots(options.split))]
    if missing := [split for split in options.split if split not in {played for played, _ in slots}]:
        raise UsageError(f"A and B have no {missing[0]} levels in common: they were trained on other sets of levels")
    seed = first.config.seed if options.seed is None else options.seed
    episodes = options.episodes_per_level or first.config.eval_episodes_per_level
    for side in (first, second):
        note_test_use(side, options.split, "compare", episodes)
    played = [
        by_split(evaluate(side, slots, episodes, seed, options.policy == "greedy").episodes) for side in (first, second)
    ]
    results = {split: compare(played[0][split], played[1][split]) for split in SPLITS if split in played[0]}
    sentences = {split: sentence(result, _PLACES[split]) for split, result in results.items()}
    if options.json:
        print(
            json.dumps(
                {
                    "A": str(first.path),
                    "B": str(second.path),
                    "policy": options.policy,
                    "seed": seed,
                    **{split: asdict(result) | {"says": sentences[split]} for split, result in results.items()},
                }
            )
        )
        return
    print(f"{games[0]}: A is {first.path}, B is {second.path}")
    print_table(
        ("split", "levels", "episodes a level", "A", "B", "B minus A", "95 % interval"),
        [
            (
                split,
                str(result.levels),
                str(result.episodes_per_level),
                *(f"{_mean([e.episode_return for e in side[split]]):.2f}" for side in played),
                f"{result.difference:+.2f}",
                "?" if result.interval is None else f"{result.interval[0]:+.2f} to {result.interval[1]:+.2f}",
            )
            for split, result in results.items()
        ],
    )
    for line in sentences.values():
        print(line)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
