"""What `aggregate` says about a study: one dictionary, from which the tables, the JSON and the page are made.

A score is a run's mean return on the levels of one split; it is normalized before it is averaged over games.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from statistics import fmean
from typing import Any, Literal

import numpy as np

from common.policy_network import num_parameters
from common.text import format_count, format_ranges
from evaluator.studies import statistics
from evaluator.studies.curves import curves_without_points, learning_curves
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.ranges import Ranges, normalized
from evaluator.studies.selection import Score, Selection, normalized_scores
from evaluator.studies.statistics import Interval, Scores
from evaluator.studies.variants import varied_settings

Verdict = Literal["better", "worse", "cannot be told apart", "one seed", "seeds agree, too few"]

_THRESHOLDS = np.linspace(0.0, 1.0, 51)


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
    notes += _left_out_of_pairs(selection)
    curves = learning_curves(selection, ranges)
    notes += curves_without_points(curves)
    summary = {
        "split": selection.split,
        "at": selection.at,
        "distribution_mode": selection.mode,
        "ranges": ranges,
        "games": selection.games,
        "played": {
            game: {"levels": levels, "episodes_per_level": episodes}
            for game, (levels, episodes) in selection.played.items()
        },
        "notes": notes,
        "variants": {variant: _variant(selection, variant, scores[variant], ranges) for variant in variants},
        "comparisons": [_comparison(selection, first, second, ranges) for first, second in combinations(variants, 2)],
        "curves": curves,
        "profile": {
            "thresholds": _THRESHOLDS.tolist(),
            "variants": {variant: _profile(scores[variant]) for variant in variants},
        },
    }
    if _has_agreeing_seeds(summary, single):
        notes.append("no interval where the seeds agree so closely that all resamples are equal: more seeds are needed")
    return summary


def _has_agreeing_seeds(summary: Mapping[str, Any], single: Sequence[str]) -> bool:
    """Whether a number lacks its interval although no variant in question has a `single` seed."""
    entries: list[Mapping[str, Any]] = []
    for variant, own in summary["variants"].items():
        if variant not in single:
            entries += [own["mean"], own["iqm"], own["optimality_gap"], *own["games"].values()]
    for each in summary["comparisons"]:
        if not {each["first"], each["second"]} & set(single):
            entries += [each["mean_difference"], each["iqm_difference"], each["probability_of_improvement"]]
    return any(entry["interval"] is None for entry in entries)


def _variant(selection: Selection, variant: str, scores: Scores, ranges: Ranges) -> dict[str, Any]:
    runs = selection.scored(variant)
    names = varied_settings(
        [run for games in selection.runs.values() for own in games.values() for run in own.values()]
    )
    speeds = [run.fps for run in runs if run.fps is not None]
    return {
        "settings": {name: getattr(runs[0].config, name) for name in names} if runs else {},
        "games": {
            game: _game(seeds, own, game, selection.mode, ranges)
            for (game, seeds), own in zip(selection.scores[variant].items(), scores, strict=True)
        },
        "runs": int(sum(statistics.sizes(scores))),
        "mean": _with_interval(statistics.mean, scores),
        "iqm": _with_interval(statistics.interquartile_mean, scores),
        "optimality_gap": _with_interval(statistics.optimality_gap, scores, low=0.0),
        "frames_per_second": fmean(speeds) if speeds else None,
        "parameters": num_parameters(runs[0].config.network) if runs else None,
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
    seeds = _common_seeds(selection, first, second)
    paired = seeds is not None
    sides = [normalized_scores(selection, variant, ranges) for variant in (first, second)]
    if seeds is not None:
        sides = [_of_seeds(selection, variant, seeds, ranges) for variant in (first, second)]
    one, other = sides
    iqm = float(statistics.interquartile_mean(other) - statistics.interquartile_mean(one))
    iqm_interval = statistics.difference_interval(statistics.interquartile_mean, one, other, paired)
    runs = [int(sum(statistics.sizes(side))) for side in sides]
    result = {
        "first": first,
        "second": second,
        "paired": paired,
        "runs": runs,
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
    fewest = min(size for side in sides for size in statistics.sizes(side))
    found = verdict(iqm_interval, fewest)
    return result | {
        "verdict": found,
        "says": sentence(first, second, iqm, iqm_interval, runs_text(runs, paired), found),
    }


def _common_seeds(selection: Selection, first: str, second: str) -> dict[str, list[int]] | None:
    """The seeds of each game that both variants have; None if they are less than two, so that there are no pairs."""
    if PUBLISHED in (first, second):  # other seeds with the same numbers
        return None
    one, other = selection.scores[first], selection.scores[second]
    seeds = {game: sorted(one[game].keys() & other[game].keys()) for game in selection.games}
    return seeds if all(len(own) > 1 for own in seeds.values()) else None


def _left_out_of_pairs(selection: Selection) -> list[str]:
    """A line for each variant and game of which seeds are left out of pairs with others."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for variant, other in permutations(selection.scores, 2):
        for game, common in (_common_seeds(selection, variant, other) or {}).items():
            if alone := sorted(selection.scores[variant][game].keys() - set(common)):
                seeds = f"{'seed' if len(alone) == 1 else 'seeds'} {format_ranges(alone)}"
                found.setdefault((variant, game, seeds), []).append(other)
    return [
        f"{variant}: pairs with {', '.join(others)} leave out {seeds} of {game}, so their difference is not that of "
        "the IQMs"
        for (variant, game, seeds), others in found.items()
    ]


def runs_text(runs: Sequence[int], paired: bool) -> str:
    """How many runs a comparison is about: `6 pairs` or `6 and 5 runs`."""
    return format_count(runs[0], "pair") if paired else f"{runs[0]} and {format_count(runs[1], 'run')}"


def frames_text(ends: Sequence[int]) -> str:
    """`1,015,808`, or `983,040 to 1,015,808` where runs differ."""
    return " to ".join(f"{end:,}" for end in dict.fromkeys(ends))


def played_text(summary: Mapping[str, Any]) -> str:
    """`200 levels x 1 episode`, or `coinrun 200 levels x 1 episode, maze ...` where games differ."""
    texts = {
        game: f"{format_count(played['levels'], 'level')} x {format_count(played['episodes_per_level'], 'episode')}"
        for game, played in summary["played"].items()
    }
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{game} {text}" for game, text in texts.items())


def verdict(interval: Interval | None, fewest_seeds: int) -> Verdict:
    """What the interval of a difference allows to say about the second variant, or why there is no interval."""
    if interval is None:
        return "one seed" if fewest_seeds < 2 else "seeds agree, too few"
    low, high = interval
    return "better" if low > 0 else "worse" if high < 0 else "cannot be told apart"


def sentence(first: str, second: str, difference: float, interval: Interval | None, of: str, found: Verdict) -> str:
    """What a comparison by IQM says, for people; `of` is from `runs_text`, and `found` is its verdict."""
    if interval is None:
        more = "one seed says nothing about other seeds" if found == "one seed" else "the same with every seed"
        return f"{second} minus {first}: IQM {difference:+.3f}, {of}; {more}"
    low, high = interval
    ends = f"IQM {difference:+.3f} [{low:+.3f}, {high:+.3f}]"
    if found == "cannot be told apart":
        most = max(-low, high)
        return f"{second} and {first} cannot be told apart: {ends}, {of}, so they differ by at most {most:.3f}"
    return f"{second} is {found} than {first}: {ends}, {of}"


def _of_seeds(
    selection: Selection, variant: str, seeds: Mapping[str, Sequence[int]], ranges: Ranges
) -> list[np.ndarray]:
    table = selection.scores[variant]
    return [
        np.array([normalized(table[game][seed].value, game, selection.mode, ranges) for seed in seeds[game]])
        for game in selection.games
    ]


def _profile(scores: Scores) -> dict[str, Any]:
    """The performance profile and its pointwise band, which has gaps where all resamples are equal."""

    def profile(scores: Scores) -> np.ndarray:
        # In parts: all resamples of many runs at once would not fit in memory.
        parts = [
            statistics.performance_profile(scores, _THRESHOLDS[i : i + 10]) for i in range(0, len(_THRESHOLDS), 10)
        ]
        return np.concatenate(parts, axis=-1)

    ends = statistics.interval(profile, [scores], profile(statistics.resample(scores)))
    if ends is None:
        return {"share": profile(scores).tolist(), "low": None, "high": None}
    bands = [statistics.clipped(each, 0.0, 1.0) or (None, None) for each in ends.T]
    low, high = map(list, zip(*bands, strict=True))
    return {"share": profile(scores).tolist(), "low": low, "high": high}


def _as_list(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval]
