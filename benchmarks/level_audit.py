"""`python -m benchmarks.level_audit`: what the audit finds in each game, confirmed by other action sequences.

The audit's level sets are drawn as for a run of preset `easy` or `hard`. Then 24 sequences that the audit does not use
are played: a removed level must behave like the training level it is said to be, and a level that was kept must not
behave like the training level whose picture is nearest. Kept levels on which the sequences reach nothing, as in large
mazes, match trivially and are counted as silent. Prints the table of docs/results/levels.md.
"""

import argparse
from collections.abc import Sequence

import numpy as np

from common.cli import OneLineParser
from common.games import DISTRIBUTION_MODES, GAMES, Game
from common.process import prepare_process
from common.resolution import resolve
from evaluator.levels.behavior import PLAIN, action_sequences, batches, first_frames, nothing_happens, play
from evaluator.levels.level_file import audited_level_sets

_BIASES = tuple(np.linspace(0.15, 0.95, 24))
_SEED = 71
_NUM_KEPT = 40


def main() -> None:
    """Prints one line of the table per game and mode."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-name", nargs="+", choices=GAMES, default=list(GAMES), metavar="GAME")
    parser.add_argument("--distribution-mode", nargs="+", choices=DISTRIBUTION_MODES, default=DISTRIBUTION_MODES)
    parser.add_argument("--held-out-levels", type=int, default=200, metavar="N", help="levels of each held-out split")
    options = parser.parse_args()
    prepare_process(num_threads=1, sees_gpu=False)
    print(
        "| game | mode | examined | same level | same layout | ends immediately "
        "| confirmed | kept that match | silent |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for mode in options.distribution_mode:
        for env_name in options.env_name:
            print(_line(Game(env_name, mode), options.held_out_levels), flush=True)


def _line(game: Game, held_out_levels: int) -> str:
    settings = {"env_name": game.env_name, "distribution_mode": game.distribution_mode}
    config = resolve(game.distribution_mode, {**settings, "held_out_levels": held_out_levels})
    sets, contents = audited_level_sets(config)
    audit = contents["audit"]
    reasons = [finding["reason"] for finding in audit["removed"]]
    pairs = [(each["level"], each["same_as"]) for each in audit["removed"] if each["same_as"] is not None]
    kept = [*sets.validation[: _NUM_KEPT // 2], *sets.test[: _NUM_KEPT // 2]]
    training = range(config.start_level, config.start_level + config.num_levels)
    matching = behave_alike(game, nearest_pairs(game, kept, training))
    sequences = action_sequences(game, _BIASES, _SEED)
    behaviors = play(game, [level for level, _ in matching], sequences)
    silent = behaviors.count(nothing_happens(game, sequences))
    return (
        f"| {game.env_name} | {game.distribution_mode} | {audit['judged']:,} "
        + "".join(f"| {_share(reasons.count(reason), audit['judged'])} " for reason in _REASONS)
        + f"| {len(behave_alike(game, pairs))} of {len(pairs)} "
        + f"| {len(matching) - silent} of {len(kept)} | {silent} |"
    )


_REASONS = ("same_level", "same_layout", "ends_at_once")


def _share(count: int, examined: int) -> str:
    return f"{count} ({count / examined:.1%})" if count else "0"


def behave_alike(game: Game, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs of levels that give the same rewards and ends under sequences that the audit does not use."""
    sequences = action_sequences(game, _BIASES, _SEED)
    for part in (sequences[-1:], sequences[-4:-1], sequences[:-4]):  # few pairs that differ remain for the last part
        levels = list(dict.fromkeys(level for pair in pairs for level in reversed(pair)))
        behaviors = dict(zip(levels, play(game, levels, part), strict=True))
        pairs = [(one, other) for one, other in pairs if behaviors[one] == behaviors[other]]
    return list(pairs)


def nearest_pairs(game: Game, levels: Sequence[int], training: Sequence[int]) -> list[tuple[int, int]]:
    """Each level with the training level whose plain picture of the whole level differs least."""
    pictures = [
        np.concatenate([first_frames(game, batch, center_agent=False, **PLAIN) for batch in batches(group)])
        for group in (levels, training)
    ]
    own, others = (each.reshape(len(each), -1).astype(np.float32) for each in pictures)
    distances = (own**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * own @ others.T
    return [(level, training[int(i)]) for level, i in zip(levels, distances.argmin(1), strict=True)]


if __name__ == "__main__":
    main()
