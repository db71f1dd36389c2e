"""A checkpoint in, an `Evaluation` out: the one procedure behind the live evaluator and the command line."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.checkpoints import Checkpoint
from evaluator.level_sets import Split
from evaluator.scoring import load_policy, play
from evaluator.statistics import Episode, LevelScore, SplitScore, generalization_gap, level_scores, split_scores


@dataclass(frozen=True, slots=True)
class Film:
    """One episode as the policy saw it: uint8 frames `[64, 64, 3]`, the terminal one is never shown."""

    frames: list[np.ndarray]
    episode: Episode


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one checkpoint."""

    checkpoint: Checkpoint
    levels: list[LevelScore]
    splits: dict[Split, SplitScore]
    seconds: float
    film: Film | None

    def row(self) -> dict[str, Any]:
        """As it is stored in evaluations.jsonl. A split that was not scored is missing from it."""
        return {
            "policy_version": self.checkpoint.policy_version,
            "frames": self.checkpoint.frames,
            **{split: asdict(score) for split, score in self.splits.items()},
            "generalization_gap": generalization_gap(self.splits),
            "seconds": round(self.seconds, 3),
            "checkpoint": self.checkpoint.path.name,
            "policy_sha256": self.checkpoint.policy_sha256,
        }


def evaluate(
    checkpoint: Checkpoint,
    slots: Sequence[tuple[Split, int]],
    episodes_per_level: int,
    seed: int,
    greedy: bool = False,
    film_level: int | None = None,
) -> Evaluation:
    """Scores `checkpoint` on the levels of `slots`; films the first episode on `film_level`, one of them."""
    started = time.perf_counter()
    config = checkpoint.config
    frames: list[np.ndarray] = []

    def keep_frame(level: int, episode: int, frame: np.ndarray, action: int) -> None:
        if level == film_level and episode == 0:
            frames.append(frame.copy())

    episodes = play(
        load_policy(checkpoint),
        config.env_name,
        config.distribution_mode,
        slots,
        episodes_per_level,
        seed,
        greedy,
        on_step=None if film_level is None else keep_frame,
    )
    levels = level_scores(episodes)
    filmed = [episode for episode in episodes if episode.level == film_level and episode.episode == 0]
    return Evaluation(
        checkpoint=checkpoint,
        levels=levels,
        splits=split_scores(levels, config.env_name, config.distribution_mode),
        seconds=time.perf_counter() - started,
        film=Film(frames, filmed[0]) if filmed else None,
    )
