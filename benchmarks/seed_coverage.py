"""Simulates how often the 95 % intervals over seeds contain the truth, and prints the shares.

Each simulated study draws a normalized score for every seed of every game. `evaluator/studies/statistics.py` computes
the intervals of the mean and of the IQM, or of their differences between two variants. The true IQM is that of the
distribution from which the scores are drawn: normal, or skewed (gamma of shape 2, with its long tail above the mean).
In paired studies, each seed adds the same random amount to the scores of both variants.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report import make_console
from common.cli import OneLineParser, at_least_one
from evaluator.output.text import make_table
from evaluator.studies import statistics

STATISTICS = {"mean": statistics.mean, "IQM": statistics.interquartile_mean}
_RESAMPLES = 500  # a tenth of the evaluator's, which makes the intervals hardly less precise
_DIFFERENCE = 0.1  # between the variants
_DRAWS = 400_000  # for the IQM's truth

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

SHAPES: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.standard_normal(shape),
    "skewed": lambda generator, shape: (generator.gamma(2, size=shape) - 2) / np.sqrt(2),
}


@dataclass(frozen=True)
class Study:
    """Games with their mean scores, and for each game the standard deviation and number of its seeds.

    With a `second` variant it is about the difference. `shared` is the standard deviation of what a seed adds to both
    variants; these are compared in pairs, and vary equally.
    """

    name: str
    means: Sequence[float]
    first: Sequence[tuple[float, int]]
    second: Sequence[tuple[float, int]] = ()
    shared: float = 0.0


_FOUR = np.linspace(0.1, 0.9, 4).tolist()
_ONE_NOISY = (0.01, 0.01, 0.01, 0.1)

STUDIES = (
    *(Study(f"1 game, {seeds} seeds", [0.5], [(0.15, seeds)]) for seeds in (2, 3, 5, 10)),
    *(Study(f"4 games, {seeds} seeds", _FOUR, [(0.15, seeds)] * 4) for seeds in (2, 3, 5)),
    Study("16 games, 3 seeds", np.linspace(0.1, 0.9, 16).tolist(), [(0.1, 3)] * 16),
    *(
        Study(f"4 games, {n} seeds, one varies 10 times as much", _FOUR, [(sd, n) for sd in _ONE_NOISY])
        for n in (2, 3, 5)
    ),
    Study("2 games, 3 seeds, one varies 5 times as much", [0.3, 0.5], [(0.03, 3), (0.15, 3)]),
    Study("2 games, 3 and 10 seeds", [0.3, 0.5], [(0.1, 3), (0.1, 10)]),
    Study("2 games, 3 and 10 seeds, the first varies 3 times as much", [0.3, 0.5], [(0.3, 3), (0.1, 10)]),
    Study("pairs: 1 game, 3 seeds", [0.5], [(0.05, 3)], [(0.05, 3)], shared=0.15),
    Study(
        "pairs: 4 games, 3 seeds, one varies 10 times as much",
        _FOUR,
        [(sd, 3) for sd in _ONE_NOISY],
        [(sd, 3) for sd in _ONE_NOISY],
        shared=0.1,
    ),
    *(
        Study(f"1 game, {one} and {other} seeds", [0.5], [(0.15, one)], [(0.15, other)])
        for one, other in ((3, 3), (2, 10), (3, 10), (3, 30))
    ),
    Study("1 game, 3 seeds each, the first vary 3 times as much", [0.5], [(0.3, 3)], [(0.1, 3)]),
    Study("1 game, 3 and 10 seeds, the first vary twice as much", [0.5], [(0.3, 3)], [(0.15, 10)]),
    Study("1 game, 3 and 10 seeds, the last vary 3 times as much", [0.5], [(0.1, 3)], [(0.3, 10)]),
    Study("4 games, 3 seeds each", _FOUR, [(0.15, 3)] * 4, [(0.15, 3)] * 4),
)


def coverage(study: Study, shape: str, studies: int, seed: int = 0) -> dict[str, float]:
    """The share of intervals that contain the truth, of the mean and of the IQM."""
    generator = np.random.Generator(np.random.Philox(key=[seed, STUDIES.index(study)]))
    draw, truth = SHAPES[shape], _truth(study, SHAPES[shape])
    covered = dict.fromkeys(STATISTICS, 0)
    before, statistics.RESAMPLES = statistics.RESAMPLES, _RESAMPLES
    try:
        for _ in range(studies):
            first, second = _scores(study, draw, generator)
            for name, statistic in STATISTICS.items():
                if study.second:
                    ends = statistics.difference_interval(statistic, first, second, paired=study.shared > 0)
                else:
                    ends = statistics.statistic_interval(statistic, first, -np.inf, np.inf)
                covered[name] += ends is not None and ends[0] <= truth[name] <= ends[1]
    finally:
        statistics.RESAMPLES = before
    return {name: count / studies for name, count in covered.items()}


def _scores(study: Study, draw: Draw, generator: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The scores of both variants: for each game one for each seed; none of a second variant that is not there."""
    first, second = [], []
    for game, (mean, (deviation, seeds)) in enumerate(zip(study.means, study.first, strict=True)):
        shared = study.shared * draw(generator, (seeds,)) if study.shared else np.zeros(1)
        first.append(mean + shared + deviation * draw(generator, (seeds,)))
        if study.second:
            deviation, seeds = study.second[game]
            second.append(mean + _DIFFERENCE + shared + deviation * draw(generator, (seeds,)))
    return first, second


def _truth(study: Study, draw: Draw) -> dict[str, float]:
    if not study.second:
        return {"mean": float(np.mean(study.means)), "IQM": _true_iqm(study.means, study.first, draw)}
    # In pairs both have the same distribution, apart from the difference.
    apart = [0.0 if study.shared else _true_iqm(study.means, own, draw) for own in (study.first, study.second)]
    return {"mean": _DIFFERENCE, "IQM": _DIFFERENCE + apart[1] - apart[0]}


def _true_iqm(means: Sequence[float], variant: Sequence[tuple[float, int]], draw: Draw) -> float:
    """Of the mixture of all games' distributions, each with the weight of its number of seeds."""
    generator = np.random.default_rng(0)
    runs = sum(seeds for _, seeds in variant)
    scores = [
        mean + deviation * draw(generator, (_DRAWS * seeds // runs,))
        for mean, (deviation, seeds) in zip(means, variant, strict=True)
    ]
    pooled = np.sort(np.concatenate(scores))
    return float(pooled[pooled.size // 4 : -(pooled.size // 4)].mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table on stderr and JSON on stdout."""
    parser = OneLineParser(prog="python -m benchmarks.seed_coverage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--studies", type=at_least_one, default=2000, metavar="N", help="simulated (default: 2000)")
    options = parser.parse_args(arguments)
    results = [
        {"study": study.name, "shape": shape} | coverage(study, shape, options.studies)
        for study in STUDIES
        for shape in SHAPES
    ]
    rows = [
        [
            study.name,
            *(f"{result[name]:.3f}" for result in results if result["study"] == study.name for name in STATISTICS),
        ]
        for study in STUDIES
    ]
    columns = [f"{name}, {shape}" for shape in SHAPES for name in STATISTICS]
    make_console().print(make_table(("study", *columns), rows, left=("study",)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
