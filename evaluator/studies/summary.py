"""What `aggregate` says about a study: one dictionary, from which the tables, the JSON and the page are made.

A score is a run's mean return on the levels of one split; it is normalized before it is averaged over games.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from common.cli import UsageError
from evaluator.levels.level_sets import PLAYABLE_SPLITS, Split
from evaluator.studies import statistics
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import published_curve, published_scores
from evaluator.studies.ranges import Ranges, normalized
from evaluator.studies.runs import ScoredRun, by_variant, evaluation_differences
from evaluator.studies.statistics import Interval, Scores

_CURVE_POINTS = 60
# A score that is further before the frames asked for is named.
_NEAR = 0.9
_THRESHOLDS = np.linspace(0.0, 1.0, 51)


@dataclass(frozen=True, slots=True)
class Score:
    """One run's mean raw return at `frames`."""

    value: float
    frames: int


# By variant, game and seed.
Table = dict[str, dict[str, dict[int, Score]]]
Grouped = Mapping[str, Mapping[str, Mapping[int, ScoredRun]]]


@dataclass(slots=True)
class Selection:
    """The scores to summarize. `runs` has the run of every score; `notes` says what was left out and why."""

    split: Split
    at: int
    mode: str
    games: list[str]
    scores: Table
    runs: Grouped
    notes: list[str] = field(default_factory=list)


def select(
    runs: Sequence[ScoredRun], split: Split | None, at: int | None, require_equal_evaluations: bool
) -> Selection:
    """The scores of all runs at the same frames.

    Args:
        split: the levels; None: test levels if every run has scores on them, else its other held-out levels.
        at: frames; the newest evaluation at or before them counts. None: what all finished runs have reached, or all
            runs if none is finished.
        require_equal_evaluations: refuse runs of one game that were scored on other levels or with other episodes.

    Raises:
        UsageError: runs cannot be compared, or none reached `at`.
    """
    grouped = by_variant(runs)
    notes: list[str] = []
    scored = [run for run in runs if run.rows]
    if not scored:
        raise UsageError("no run has a score yet")
    chosen = _split(scored, split)
    scored = [run for run in scored if run.scored(chosen)]
    reached = [run.scored(chosen)[-1]["frames"] for run in scored if run.is_finished]
    frames = at if at is not None else min(reached or [run.scored(chosen)[-1]["frames"] for run in scored])
    # A run's last evaluation may be before its last update; training is what counts for "beyond".
    if all(run.frames < frames for run in runs):
        raise UsageError(f"--at: {frames:,} frames are beyond what was trained, {max(run.frames for run in runs):,}")
    table: Table = {}
    for variant, by_game in grouped.items():
        for game, seeds in by_game.items():
            for seed, run in sorted(seeds.items()):
                row = run.at(chosen, frames) if run.frames >= frames else None
                if row is None:
                    reason = f"trained {run.frames:,} frames" if run.frames < frames else f"no {chosen} score yet"
                    notes.append(f"{run.run.path} is left out: {reason}")
                    continue
                if row["frames"] < _NEAR * frames:
                    notes.append(f"{run.run.path}: its nearest score is of {row['frames']:,} frames")
                table.setdefault(variant, {}).setdefault(game, {})[seed] = Score(row[chosen]["mean"], row["frames"])
    games = _common_games(table, notes)
    if require_equal_evaluations:
        for game in games:
            own = [grouped[variant][game][seed] for variant in table for seed in table[variant][game]]
            if difference := evaluation_differences(own, chosen, frames):
                raise UsageError(f"{game}: runs were scored differently: {difference}; --rescore scores all anew")
    table = {variant: {game: own[game] for game in games} for variant, own in table.items()}
    mode = runs[0].config.distribution_mode
    return Selection(chosen, frames, mode, games, table, grouped, notes)


def add_published(selection: Selection) -> None:
    """Adds OpenAI's runs as one more variant where the settings match, or a note that says why not."""
    found: dict[str, dict[int, Score]] = {}
    for game in selection.games:
        runs = [run for by_game in selection.runs.values() for run in by_game.get(game, {}).values()]
        for run in runs:
            answer = published_scores(run.config, selection.split, selection.at)
            if isinstance(answer, str):
                selection.notes.append(f"no published scores: {answer}")
                return
            frames, values = answer
            found[game] = {seed: Score(value, frames) for seed, value in enumerate(values)}
    selection.scores[PUBLISHED] = found
    note = f"{PUBLISHED}: each run's last 100 episodes while it was trained, not a checkpoint on fixed levels"
    if selection.split in ("validation", "test"):
        note += (
            "; on all levels, training levels and look-alikes included, which these runs' levels exclude: "
            "--rescore --split all plays levels like theirs"
        )
    selection.notes.append(note)


def summarize(selection: Selection, ranges: Ranges) -> dict[str, Any]:
    """All numbers, as JSON: tables, comparisons, curves and the performance profile."""
    variants = list(selection.scores)
    scores = {variant: normalized_scores(selection, variant, ranges) for variant in variants}
    notes = list(selection.notes)
    single = [variant for variant in variants if min(statistics.sizes(scores[variant])) < 2]
    if single:
        notes.append(
            f"{', '.join(single)}: one seed in at least one game, so no interval over seeds; another seed could score "
            "quite differently"
        )
    return {
        "split": selection.split,
        "at": selection.at,
        "distribution_mode": selection.mode,
        "ranges": ranges,
        "games": selection.games,
        "notes": notes,
        "variants": {variant: _variant(selection, variant, scores[variant], ranges) for variant in variants},
        "comparisons": [_comparison(selection, first, second, ranges) for first, second in combinations(variants, 2)],
        "curves": _all_curves(selection, ranges),
        "profile": {
            "thresholds": _THRESHOLDS.tolist(),
            "variants": {variant: _profile(scores[variant]) for variant in variants},
        },
    }


def normalized_scores(selection: Selection, variant: str, ranges: Ranges) -> list[np.ndarray]:
    """The variant's normalized scores, one float64 `[seeds]` for each game of the selection."""
    return [
        np.array([normalized(score.value, game, selection.mode, ranges) for score in seeds.values()])
        for game, seeds in selection.scores[variant].items()
    ]


def _variant(selection: Selection, variant: str, scores: Scores, ranges: Ranges) -> dict[str, Any]:
    runs = [run for seeds in selection.runs.get(variant, {}).values() for run in seeds.values()]
    speeds = [run.fps for run in runs if run.fps is not None]
    return {
        "games": {
            game: _game(seeds, own, game, selection.mode, ranges)
            for (game, seeds), own in zip(selection.scores[variant].items(), scores, strict=True)
        },
        "runs": int(sum(statistics.sizes(scores))),
        "mean": _with_interval(statistics.mean, scores),
        "iqm": _with_interval(statistics.interquartile_mean, scores),
        "optimality_gap": _with_interval(statistics.optimality_gap, scores, low=0.0),
        "frames_per_second": fmean(speeds) if speeds else None,
        "parameters": next((number for run in runs if (number := run.num_parameters()) is not None), None),
    }


def _game(seeds: Mapping[int, Score], scores: np.ndarray, game: str, mode: str, ranges: Ranges) -> dict[str, Any]:
    raw = np.array([score.value for score in seeds.values()])
    frames = [score.frames for score in seeds.values()]
    return {
        "seeds": {str(seed): score.value for seed, score in seeds.items()},
        "frames": [min(frames), max(frames)],
        "mean": float(raw.mean()),
        "interval": _as_list(statistics.statistic_interval(statistics.mean, [raw], -np.inf, np.inf)),
        "normalized": float(scores.mean()),
        "normalized_interval": _as_list(statistics.statistic_interval(statistics.mean, [scores], -np.inf, np.inf)),
    }


def _with_interval(statistic: statistics.Statistic, scores: Scores, low: float = -np.inf) -> dict[str, Any]:
    ends = statistics.statistic_interval(statistic, scores, low, np.inf)
    return {"value": float(statistic(scores)), "interval": _as_list(ends)}


def _comparison(selection: Selection, first: str, second: str, ranges: Ranges) -> dict[str, Any]:
    """`second` against `first`: by differences of the same seeds where both have at least the same two."""
    seeds = {
        game: sorted(selection.scores[first][game].keys() & selection.scores[second][game].keys())
        for game in selection.games
    }
    paired = PUBLISHED not in (first, second) and all(len(own) > 1 for own in seeds.values())
    sides = [normalized_scores(selection, variant, ranges) for variant in (first, second)]
    if paired:
        sides = [_of_seeds(selection, variant, seeds, ranges) for variant in (first, second)]
    one, other = sides
    iqm = float(statistics.interquartile_mean(other) - statistics.interquartile_mean(one))
    iqm_interval = statistics.difference_interval(statistics.interquartile_mean, one, other, paired)
    result = {
        "first": first,
        "second": second,
        "paired": paired,
        "runs": [int(sum(statistics.sizes(side))) for side in sides],
        "mean_difference": {
            "value": float(statistics.mean(other) - statistics.mean(one)),
            "interval": _as_list(statistics.difference_interval(statistics.mean, one, other, paired)),
        },
        "iqm_difference": {"value": iqm, "interval": _as_list(iqm_interval)},
        "probability_of_improvement": {
            "value": float(statistics.probability_of_improvement(one, other)),
            "interval": _as_list(statistics.improvement_interval(one, other, paired)),
        },
        "games": {
            game: {
                "value": float(b.mean() - a.mean()),
                "interval": _as_list(statistics.difference_interval(statistics.mean, [a], [b], paired)),
            }
            for game, a, b in zip(selection.games, one, other, strict=True)
        },
    }
    return result | {"says": sentence(first, second, iqm, iqm_interval, paired)}


def sentence(first: str, second: str, difference: float, interval: Interval | None, paired: bool) -> str:
    """What a comparison by IQM says, for people."""
    how = "the same seeds compared in pairs" if paired else "seeds not paired"
    if interval is None:
        return f"{second} minus {first}: IQM {difference:+.3f}; one seed says nothing about other seeds"
    low, high = interval
    ends = f"{difference:+.3f} [{low:+.3f}, {high:+.3f}], {how}"
    if low == high == 0:
        return f"{second} and {first} have the same scores with every seed"
    if low > 0:
        return f"{second} is better than {first}: IQM {ends}"
    if high < 0:
        return f"{second} is worse than {first}: IQM {ends}"
    return f"{second} and {first} cannot be told apart: IQM {ends}, so they differ by at most {max(-low, high):.3f}"


def _of_seeds(
    selection: Selection, variant: str, seeds: Mapping[str, Sequence[int]], ranges: Ranges
) -> list[np.ndarray]:
    table = selection.scores[variant]
    return [
        np.array([normalized(table[game][seed].value, game, selection.mode, ranges) for seed in seeds[game]])
        for game in selection.games
    ]


def _all_curves(selection: Selection, ranges: Ranges) -> dict[str, Any]:
    """The curves of every variant; none if runs were scored on other levels, or other splits, during training."""
    variants = [variant for variant in selection.scores if variant != PUBLISHED]
    for game in selection.games:
        runs = [selection.runs[variant][game][seed] for variant in variants for seed in selection.scores[variant][game]]
        if not all(_curve_rows(run, selection.split) for run in runs):
            return {}
        if evaluation_differences(runs, selection.split, selection.at):
            return {}
    curves = {variant: _curves(selection, variant, ranges) for variant in variants}
    if PUBLISHED in selection.scores:
        curves[PUBLISHED] = _published_curves(selection, ranges)
    return curves


def _curve_rows(run: ScoredRun, split: Split) -> list[dict[str, Any]]:
    return [row for row in run.curve if split in row]


def _curves(selection: Selection, variant: str, ranges: Ranges) -> dict[str, Any]:
    """Mean return of each game, and the IQM of all, against frames: over the seeds that the tables have."""
    split = selection.split
    rows = {
        game: [_curve_rows(selection.runs[variant][game][seed], split) for seed in selection.scores[variant][game]]
        for game in selection.games
    }

    def returns(game: str, frames: int) -> list[float]:
        return [_mean_at(own, split, frames) for own in rows[game]]

    points = {game: _points(rows[game]) for game in selection.games}
    return _curves_of(selection, ranges, points, _points([own for game in rows.values() for own in game]), returns)


def _published_curves(selection: Selection, ranges: Ranges) -> dict[str, Any]:
    """The same curves of OpenAI's runs, at the points of their logs."""
    variants = [own for variant, own in selection.runs.items() if variant in selection.scores]
    tables = {
        game: published_curve(next(iter(variants[0][game].values())).config, selection.split, selection.at)
        for game in selection.games
    }
    points = list(tables[selection.games[0]])  # the same in the logs of all games
    by_game = dict.fromkeys(selection.games, points)
    return _curves_of(selection, ranges, by_game, points, lambda game, frames: tables[game][frames])


def _curves_of(
    selection: Selection,
    ranges: Ranges,
    points: Mapping[str, Sequence[int]],
    common: Sequence[int],
    returns: Callable[[str, int], list[float]],
) -> dict[str, Any]:
    """Curves from `returns`, the raw returns of a game's seeds: each game at its `points`, the IQM at `common`."""

    def scores(frames: int) -> list[np.ndarray]:
        return [
            np.array([normalized(value, game, selection.mode, ranges) for value in returns(game, frames)])
            for game in selection.games
        ]

    games = {
        game: _curve(own, statistics.mean, [[np.array(returns(game, frames))] for frames in own])
        for game, own in points.items()
    }
    return {"games": games, "iqm": _curve(common, statistics.interquartile_mean, [scores(frames) for frames in common])}


def _curve(points: Sequence[int], statistic: statistics.Statistic, scores: Sequence[Scores]) -> dict[str, Any]:
    """A statistic of the `scores` at each of `points`, with intervals over seeds."""
    ends = [statistics.statistic_interval(statistic, own, -np.inf, np.inf) for own in scores]
    return {
        "frames": list(points),
        "value": [float(statistic(own)) for own in scores],
        "low": [None if own is None else own[0] for own in ends],
        "high": [None if own is None else own[1] for own in ends],
    }


def _points(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[int]:
    """The frames at which one of the runs was scored, between the first and the last that all have; at most 60."""
    begin, end = max(own[0]["frames"] for own in runs), min(own[-1]["frames"] for own in runs)
    points = sorted({row["frames"] for own in runs for row in own if begin <= row["frames"] <= end})
    if len(points) > _CURVE_POINTS:
        points = [points[i] for i in np.unique(np.linspace(0, len(points) - 1, _CURVE_POINTS).round().astype(int))]
    return points


def _mean_at(rows: Sequence[dict[str, Any]], split: Split, frames: int) -> float:
    """The newest score at or before `frames`."""
    value: float = next(row[split]["mean"] for row in reversed(rows) if row["frames"] <= frames)
    return value


def _profile(scores: Scores) -> dict[str, Any]:
    """The performance profile and its pointwise band."""
    value = statistics.performance_profile(scores, _THRESHOLDS)
    # In parts: all resamples of many runs at once would not fit in memory.
    parts = [
        statistics.performance_profile(statistics.resample(scores), _THRESHOLDS[i : i + 10])
        for i in range(0, len(_THRESHOLDS), 10)
    ]
    ends = statistics.interval(value, np.concatenate(parts, axis=-1), statistics.sizes(scores))
    band = [None, None] if ends is None else np.clip(ends, 0.0, 1.0).tolist()
    return {"share": value.tolist(), "low": band[0], "high": band[1]}


def _split(runs: Sequence[ScoredRun], split: Split | None) -> Split:
    """The split to use; UsageError if runs have no scores on it."""
    candidates: tuple[Split, ...] = ("test", "validation") if split is None else (split,)
    for candidate in candidates:
        if all(run.scored(candidate) for run in runs):
            return candidate
    for candidate in candidates:
        without = [run for run in runs if not run.scored(candidate)]
    scored = sorted({name for row in without[0].rows for name in PLAYABLE_SPLITS if name in row})
    raise UsageError(
        f"{without[0].run.path} has no {candidates[-1]} scores, only {', '.join(scored)}; choose another --split, or "
        "score all runs anew with --rescore"
    )


def _common_games(table: Table, notes: list[str]) -> list[str]:
    """The games that every variant has; a note for each of the others."""
    games = list(dict.fromkeys(game for own in table.values() for game in own))
    common = [game for game in games if all(game in own for own in table.values())]
    if not common:
        first, *others = table.items()
        other = next(item for item in others if not item[1].keys() & first[1].keys())
        raise UsageError(
            f"runs of different games cannot be compared: {first[0]} has {', '.join(first[1])}, {other[0]} has "
            f"{', '.join(other[1])}"
        )
    for game in sorted(set(games) - set(common)):
        missing = [variant for variant, own in table.items() if game not in own]
        notes.append(f"{game} is left out: {', '.join(missing)} has no score of it at these frames")
    return common


def _as_list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval]
