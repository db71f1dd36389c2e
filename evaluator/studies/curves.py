"""Learning curves of a study: mean return of each game, and the IQM over games, against frames."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from evaluator.levels.level_sets import Split
from evaluator.studies import statistics
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import published_curve
from evaluator.studies.ranges import Ranges, normalized
from evaluator.studies.runs import ScoredRun, evaluation_differences
from evaluator.studies.selection import Selection
from evaluator.studies.statistics import Scores

_CURVE_POINTS = 60


def learning_curves(selection: Selection, ranges: Ranges) -> dict[str, Any]:
    """The curves of every variant; none if runs were scored on other levels, or other splits, during training."""
    variants = [variant for variant in selection.scores if variant != PUBLISHED]
    for game in selection.games:
        runs = [run for variant in variants for run in selection.scored(variant, game)]
        if not all(_curve_rows(run, selection.split) for run in runs):
            return {}
        if evaluation_differences([replace(run, rows=run.curve) for run in runs], selection.split, selection.at):
            return {}
    curves = {variant: _curves(selection, variant, ranges) for variant in variants}
    if PUBLISHED in selection.scores:
        curves[PUBLISHED] = _published_curves(selection, ranges)
    return curves


def curves_without_points(curves: Mapping[str, Any]) -> list[str]:
    """A line for each variant that lacks a curve because its runs were not scored over the same frames."""
    notes = []
    for variant, own in curves.items():
        empty = [game for game, curve in own["games"].items() if not curve["frames"]]
        if empty:
            notes.append(
                f"{variant}: no learning curve in {', '.join(empty)} and no curve of the IQM: before the first score "
                "of one run, another one had its last"
            )
        elif not own["iqm"]["frames"]:
            notes.append(
                f"{variant}: no curve of the IQM: before the first score of a run, one of another game had its last"
            )
    return notes


def _curve_rows(run: ScoredRun, split: Split) -> list[dict[str, Any]]:
    return [row for row in run.curve if split in row]


def _curves(selection: Selection, variant: str, ranges: Ranges) -> dict[str, Any]:
    """Mean return of each game, and the IQM of all, against frames: over the seeds that the tables have."""
    split = selection.split
    rows = {game: [_curve_rows(run, split) for run in selection.scored(variant, game)] for game in selection.games}

    def returns(game: str, frames: int) -> list[float]:
        return [_mean_at(own, split, frames) for own in rows[game]]

    points = {game: _points(rows[game]) for game in selection.games}
    return _curves_of(selection, ranges, points, _points([own for game in rows.values() for own in game]), returns)


def _published_curves(selection: Selection, ranges: Ranges) -> dict[str, Any]:
    """The same curves of OpenAI's runs, at the points of their logs."""
    variant = next(iter(selection.scores))  # all runs have the settings of the published ones
    tables = {
        game: published_curve(selection.scored(variant, game)[0].config, selection.split, selection.at)
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
