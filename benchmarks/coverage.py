"""Simulates how often the evaluator's 95 % intervals contain the truth, and prints the shares.

Each simulated data set draws levels, then episodes, and asks evaluator/scores/intervals.py for intervals: of the
training score (about these levels), of the held-out score (about all levels), of the gap between the two, and of paired
differences to another policy that plays the same episodes with the same random numbers. Its levels' means are drawn
again on all levels (paired) or on half of the levels (close). `-` where the data support no interval.

Success rates come from Beta(2, 1), from Beta(.5, .25), where most levels are solved always or never, and from a real
run: docs/results/lab/levels.csv, each level's rate at the last three checkpoints (nine episodes). In other games,
returns are not all or nothing: `normal`, and `skewed`, gamma-distributed levels (shape 4) with exponential episodes.

A sample can lack levels of a rare kind. In `5 % never` and `1 % never` so many levels are never solved, and all others
with probability .97. In `5 % high`, of another game, so many have a return of 20 on average (gamma, shape 4), and all
others 0, with normally distributed episodes. There, the other policy treats the rare levels like all others.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.report import make_console
from common.cli import OneLineParser, at_least_one
from evaluator.output.text import make_table
from evaluator.scores.intervals import Bounds, Limits, difference_bounds, mean_bounds, paired_bounds

REAL_RUN = Path(__file__).parent.parent / "docs" / "results" / "lab" / "levels.csv"
LEVELS, EPISODES = (20, 200), (1, 3, 10)
KINDS = ("train", "held-out", "gap", "paired train", "paired held-out", "close train", "close held-out")
_REAL_VERSIONS = ("50", "60", "62")

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where level means come from, and how an episode's return follows from its level's mean and a random number."""

    train: Draw
    held_out: Draw
    held_out_mean: float
    noise: Draw
    play: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (means [S, L, 1], noise [S, L, k]) -> returns [S, L, k]
    limits: Limits | None
    other: float | None = None  # the mean of the other policy on all levels that change; None draws them again


def sources() -> dict[str, Source]:
    """Every source by name."""
    train, held_out = _real_rates()
    return {
        "Beta(2, 1)": _all_or_nothing(lambda g, shape: g.beta(2, 1, shape), 2 / 3),
        "Beta(.5, .25)": _all_or_nothing(lambda g, shape: g.beta(0.5, 0.25, shape), 2 / 3),
        "real run": _all_or_nothing(
            lambda g, shape: g.choice(held_out, shape), float(held_out.mean()), lambda g, shape: g.choice(train, shape)
        ),
        "normal": _unlimited(lambda g, shape: g.normal(10, 3, shape), lambda g, shape: g.normal(0, 3, shape), np.add),
        "skewed": _unlimited(
            lambda g, shape: g.gamma(4, 10 / 4, shape), lambda g, shape: g.exponential(size=shape), np.multiply
        ),
        "5 % never": _rarely_never(0.05),
        "1 % never": _rarely_never(0.01),
        "5 % high": _rarely_high(0.05),
    }


def coverage(source: Source, levels: int, episodes: int, data_sets: int, seed: int = 0) -> dict[str, float | None]:
    """The share of intervals that contain the truth, by kind; None without intervals."""
    generator = np.random.Generator(np.random.Philox(key=[seed, levels * 1000 + episodes]))
    shape = (data_sets, levels)
    shares: dict[str, float | None] = {}
    scores: dict[str, tuple[np.ndarray, Bounds]] = {}
    for kind, draw, whole in (("train", source.train, True), ("held-out", source.held_out, False)):
        means, noise = draw(generator, shape), source.noise(generator, (*shape, episodes))
        returns = source.play(means[..., None], noise)
        bounds = mean_bounds(returns, whole, source.limits)
        truth = means.mean(axis=1) if whole else np.full(data_sets, source.held_out_mean)
        scores[kind] = returns.mean(axis=(1, 2)), bounds
        shares[kind] = _share(bounds, truth)
        for pair, changed in (("paired", 1.0), ("close", 0.5)):
            changes = generator.random(shape) < changed
            other = np.where(changes, draw(generator, shape) if source.other is None else source.other, means)
            # Where a return is not all or nothing, two policies soon play different episodes.
            same_noise = source.limits and source.other is None
            other_noise = noise if same_noise else source.noise(generator, noise.shape)
            pairs = paired_bounds(source.play(other[..., None], other_noise) - returns, whole, source.limits)
            expected = 0.0 if source.other is None else changed * (source.other - source.held_out_mean)
            shares[f"{pair} {kind}"] = _share(pairs, (other - means).mean(axis=1) if whole else expected + 0 * truth)
        if kind == "train":
            train_truth = truth
    gap = difference_bounds(*scores["train"], *scores["held-out"])
    shares["gap"] = _share(gap, train_truth - source.held_out_mean)
    return shares


def _share(bounds: Bounds, truth: np.ndarray) -> float | None:
    low, high = bounds
    if np.isnan(low).all():
        return None
    tolerance = 1e-9  # of sums in another order
    return float(((low - tolerance <= truth) & (truth <= high + tolerance))[~np.isnan(low)].mean())


def _all_or_nothing(held_out: Draw, mean: float, train: Draw | None = None) -> Source:
    return Source(
        train or held_out,
        held_out,
        mean,
        noise=lambda g, shape: g.random(shape),
        play=lambda means, noise: (noise < means).astype(np.float64),
        limits=(0.0, 1.0),
    )


def _unlimited(levels: Draw, noise: Draw, play: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Source:
    return Source(levels, levels, 10.0, noise, play, limits=None)


def _rarely_never(share: float) -> Source:
    solved = 0.97
    source = _all_or_nothing(lambda g, shape: solved * (g.random(shape) >= share), solved * (1 - share))
    return replace(source, other=solved)


def _rarely_high(share: float) -> Source:
    source = _unlimited(
        lambda g, shape: (g.random(shape) < share) * g.gamma(4, 5, shape),
        lambda g, shape: g.normal(0, 2, shape),
        np.add,
    )
    return replace(source, held_out_mean=20 * share, other=0.0)


def _real_rates() -> tuple[np.ndarray, np.ndarray]:
    """Success rates of a real run's training levels and of its held-out levels."""
    rates: dict[tuple[bool, str], list[float]] = {}
    with open(REAL_RUN) as file:
        for row in csv.DictReader(file):
            if row["policy_version"] in _REAL_VERSIONS:
                rates.setdefault((row["split"] == "train", row["level"]), []).append(float(row["success_rate"]))
    means = {key: np.mean(values) for key, values in rates.items()}
    train, held_out = (np.array([mean for key, mean in means.items() if key[0] is which]) for which in (True, False))
    return train, held_out


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table on stderr and JSON on stdout."""
    parser = OneLineParser(prog="python -m benchmarks.coverage", description=__doc__.split("\n\n")[0])
    text = "simulated data sets with 20 levels; a tenth of it with 200 (default: 20000)"
    parser.add_argument("--data-sets", type=at_least_one, default=20_000, metavar="N", help=text)
    options = parser.parse_args(arguments)
    results = [
        {"source": name, "levels": levels, "episodes": episodes}
        | coverage(source, levels, episodes, max(1, options.data_sets * 20 // levels))
        for name, source in sources().items()
        for levels in LEVELS
        for episodes in EPISODES
    ]
    rows = [
        [str(result[key]) for key in ("source", "levels", "episodes")]
        + ["-" if result[kind] is None else f"{result[kind]:.3f}" for kind in KINDS]
        for result in results
    ]
    make_console().print(make_table(("source", "levels", "episodes", *KINDS), rows, left=("source",)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
