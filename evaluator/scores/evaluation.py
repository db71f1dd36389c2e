"""Evaluates a checkpoint; used by the live evaluator and by the command line."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from common.storage.checkpoints import Checkpoint
from evaluator.levels.level_sets import Split
from evaluator.scores.play import load_policy, play
from evaluator.scores.statistics import (
    Episode,
    LevelScore,
    SplitScore,
    generalization_gap,
    level_scores,
    split_scores,
    whole_splits,
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The episodes of one checkpoint and their scores. `seconds` is the time it took to play."""

    checkpoint: Checkpoint
    episodes: list[Episode]
    levels: list[LevelScore]
    splits: dict[Split, SplitScore]
    seconds: float

    def row(self, held_out: Split) -> dict[str, Any]:
        """The evaluation as stored in evaluations.jsonl; splits that were not played are missing.

        `held_out` is the split that the gap and the entry "held_out" refer to.
        """
        splits = self.splits
        gap = generalization_gap(splits["train"], splits[held_out]) if {"train", held_out} <= splits.keys() else None
        interval = None if gap is None else gap.interval
        return {
            "policy_version": self.checkpoint.policy_version,
            "frames": self.checkpoint.frames,
            **{split: _as_json(score) for split, score in self.splits.items()},
            **({"held_out": _as_json(self.splits[held_out])} if held_out in self.splits else {}),
            "held_out_split": held_out if held_out in splits else None,
            "generalization_gap": None if gap is None else gap.value,
            "generalization_gap_interval": None if interval is None else list(interval),
            "generalization_gap_no_interval": None if gap is None else gap.no_interval,
            "seconds": round(self.seconds, 3),
            "checkpoint": self.checkpoint.path.name,
            "policy_sha256": self.checkpoint.policy_sha256,
        }


def _as_json(score: SplitScore) -> dict[str, Any]:
    """JSON has no tuples: with a list, a row is the same before and after it was stored."""
    return asdict(score) | {"interval": None if score.interval is None else list(score.interval)}


def evaluate(
    checkpoint: Checkpoint,
    slots: Sequence[tuple[Split, int]],
    episodes_per_level: int,
    seed: int,
    greedy: bool = False,
) -> Evaluation:
    """Plays `checkpoint` on the levels of `slots`."""
    started = time.perf_counter()
    game = checkpoint.config.game
    episodes = play(load_policy(checkpoint), game, slots, episodes_per_level, seed, greedy)
    return Evaluation(
        checkpoint=checkpoint,
        episodes=episodes,
        levels=level_scores(episodes),
        splits=split_scores(episodes, game, whole_splits(checkpoint.config)),
        seconds=time.perf_counter() - started,
    )
