"""Scores of OpenAI's published PPO, and a run's scores beside them, like with like.

The published numbers are means of the last 100 episodes while the policy was trained: "train" on the training levels,
"test" by workers that played all levels and whose gradients were not used (docs/published.md). So their "train" is
compared with the run's training episodes. The evaluator's means stand beside: over the training levels, of one
checkpoint, and over held-out levels, which unlike all levels exclude look-alikes of training levels and so are harder.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np

from common.config import Config, differs_from_preset
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory

# Named in the plots: where the Procgen paper ends its runs of the two modes.
PAPER_FRAMES = {"easy": 25_000_000, "hard": 200_000_000}
# Each published number is the mean of this many log rows.
ROWS_OF_A_MEAN = 10


@dataclass(frozen=True, slots=True)
class PublishedRuns:
    """Three runs of one game: scores `[points, 3]` at `frames` `[points]`, ascending."""

    preset: Literal["easy", "hard"]
    frames: Sequence[int]
    train: np.ndarray
    test: np.ndarray

    def at(self, frames: int) -> dict[str, list[float]] | None:
        """Each run's {"train": ..., "test": ...}, interpolated linearly; None outside of the published frames."""
        if not self.frames[0] <= frames <= self.frames[-1]:
            return None
        return {
            split: [float(np.interp(frames, self.frames, scores)) for scores in table.T]
            for split, table in (("train", self.train), ("test", self.test))
        }


@functools.cache
def _all_runs() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(resources.files("evaluator.output").joinpath("published.json").read_bytes())
    return contents


def published_runs(config: Config) -> PublishedRuns | None:
    """The published runs on the levels of `config`; None if there are none."""
    runs = _all_runs()[config.distribution_mode]
    levels = (config.start_level, config.num_levels, config.held_out)
    if levels != (0, runs["num_levels"], "sample"):
        return None
    game = runs["games"][config.env_name]
    preset: Literal["easy", "hard"] = "easy" if config.distribution_mode == "easy" else "hard"
    return PublishedRuns(preset, runs["frames"], np.array(game["train"]), np.array(game["test"]))


def compare_with_published(
    config: Config, row: Mapping[str, Any], training_return: float | None
) -> dict[str, Any] | None:
    """The entry `published` of a row of evaluations.jsonl; None if nothing comparable was published.

    Args:
        row: of evaluations.jsonl.
        training_return: the run's training return at that checkpoint, from the function `training_return`.
    """
    runs = published_runs(config)
    if runs is None or (scores := runs.at(row["frames"])) is None:
        return None
    mean = {split: float(np.mean(values)) for split, values in scores.items()}
    return {
        **{split: {"mean": mean[split], "runs": values} for split, values in scores.items()},
        "training_episodes": training_return,
        "training_levels": row["train"]["mean"] if "train" in row else None,
        "held_out_levels": row["held_out"]["mean"] if "held_out" in row else None,
        "train_difference": None if training_return is None else training_return - mean["train"],
        # The published algorithm has the preset's values.
        "differing_settings": {name: list(values) for name, values in differs_from_preset(config, runs.preset).items()},
    }


def training_return(run: RunDirectory, policy_version: int) -> float | None:
    """The mean `episode_return` of the ten updates up to a version, as the published numbers are means of ten rows.

    None if the learner has no row of that version, or none of the ten has a return yet.
    """
    rows = [row for row in read_jsonl(run.metrics) if row.get("policy_version", math.inf) <= policy_version]
    if not rows or rows[-1]["policy_version"] != policy_version:
        return None
    returns = [row["episode_return"] for row in rows[-ROWS_OF_A_MEAN:] if row.get("episode_return") is not None]
    return float(np.mean(returns)) if returns else None
