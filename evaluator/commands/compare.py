"""`python -m evaluator compare A B`: is B better, on the same levels with the same random numbers?"""

import argparse
import json
from dataclasses import asdict

from common.cli import UsageError
from common.text import format_interval
from evaluator.commands.files import open_checkpoint
from evaluator.commands.playing import evaluate_all
from evaluator.output.text import print_table
from evaluator.scores.comparison import compare, sentence
from evaluator.scores.statistics import by_split, whole_splits


def run(options: argparse.Namespace) -> None:
    """Prints the comparison; UsageError if the two cannot be compared."""
    checkpoints = [open_checkpoint(path) for path in (options.A, options.B)]
    games = [f"{each.config.env_name} {each.config.distribution_mode}" for each in checkpoints]
    if games[0] != games[1]:
        raise UsageError(f"A plays {games[0]} and B plays {games[1]}: they have no levels in common")
    (first, second), settings = evaluate_all(checkpoints, options)
    episodes = by_split(first.episodes), by_split(second.episodes)
    whole = whole_splits(checkpoints[0].config) & whole_splits(checkpoints[1].config)
    game = checkpoints[0].config.game
    results = {split: compare(episodes[0][split], episodes[1][split], game, split in whole) for split in first.splits}
    sentences = {
        split: sentence(result, f"{'training' if split == 'train' else split} levels")
        for split, result in results.items()
    }
    paths = {name: str(checkpoint.path) for name, checkpoint in zip("AB", checkpoints, strict=True)}
    if options.json:
        comparisons = {split: asdict(result) | {"says": sentences[split]} for split, result in results.items()}
        print(json.dumps(paths | settings | comparisons))
        return
    print(f"{games[0]}: A is {paths['A']}, B is {paths['B']}")
    print_table(
        ("split", "levels", "episodes per level", "A", "B", "B minus A", "95 % interval"),
        [
            (
                split,
                str(result.levels),
                str(result.episodes_per_level),
                f"{first.splits[split].mean:.2f}",
                f"{second.splits[split].mean:.2f}",
                f"{result.difference:+.2f}",
                format_interval(result.interval, "+.2f"),
            )
            for split, result in results.items()
        ],
    )
    print("\n".join(sentences.values()))
