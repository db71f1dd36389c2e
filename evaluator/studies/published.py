"""OpenAI's published PPO as one more variant: three seeds of every game.

A score is the mean of the last 100 training episodes of a worker on the training levels (train) or on all levels
(test), stochastic policy, raw return. The numbers and their source are in evaluator/output/published.json.
"""

from typing import Any

from common.config import Config, differs_from_preset
from evaluator.levels.level_sets import Split
from evaluator.output.published import PublishedRuns, published_runs

NAME = "PPO (OpenAI)"
# Our scores and theirs may be this far apart in frames.
_MAX_DISTANCE = 0.05


def published_scores(config: Config, split: Split, frames: int) -> tuple[int, list[float]] | str:
    """The frames and raw returns of the three published runs nearest to `frames`, or why there are none.

    `config` is that of a run to compare with, `frames` those of its score.
    """
    runs = published_runs(config)
    if runs is None:
        return (
            "the published runs have 200 easy or 500 hard training levels from 0 and are tested on all levels, these "
            f"runs have {config.num_levels} {config.distribution_mode} levels from {config.start_level} and --held-out "
            f"{config.held_out}"
        )
    nearest = min(runs.frames, key=lambda point: abs(point - frames))
    if abs(nearest - frames) > _MAX_DISTANCE * nearest:
        points = ", ".join(f"{point / 1e6:g}M" for point in runs.frames)
        return (
            f"the logs have {points} frames, none within {_MAX_DISTANCE:.0%} of a score at {frames:,}; choose with --at"
        )
    return nearest, _scores(runs, split, nearest)


def published_curve(config: Config, split: Split, frames: int) -> dict[int, list[float]]:
    """The raw returns of the three published runs at every number of frames in the logs, up to about `frames`.

    `config` is that of a run for which `published_scores` has an answer.
    """
    runs = published_runs(config)
    assert runs is not None
    points = [point for point in runs.frames if point <= frames * (1 + _MAX_DISTANCE)]
    return {point: _scores(runs, split, point) for point in points}


def unlike_published(config: Config) -> dict[str, tuple[Any, Any]]:
    """How training by `config` differs from that of the published runs on its levels: {setting: (its value, theirs)}.

    Includes the mode, which may have been chosen for the machine, but not the precision.
    """
    runs = published_runs(config)
    assert runs is not None
    mode = {} if config.mode == "sync" else {"mode": (config.mode, "sync")}
    return {**mode, **differs_from_preset(config, runs.preset)}


def _scores(runs: PublishedRuns, split: Split, frames: int) -> list[float]:
    table = runs.train if split == "train" else runs.test
    return [float(score) for score in table[list(runs.frames).index(frames)]]
