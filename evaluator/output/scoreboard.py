"""Levels over time: which are solved, newly solved, forgotten, never solved. From levels.csv, or as it grows."""

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from evaluator.levels.level_sets import SPLITS, Split
from evaluator.scores.statistics import LevelScore

SOLVED_RATE = 0.5


@dataclass(frozen=True, slots=True)
class SplitBoard:
    """Level seeds of one split at one version, in the split's order, against the version scored before it."""

    solved: tuple[int, ...]
    newly_solved: tuple[int, ...]
    forgotten: tuple[int, ...]
    never_solved: tuple[int, ...]  # in no scored version so far


def is_solved(level: LevelScore) -> bool:
    """Whether at least half of the episodes were completed, by the game's own word."""
    return level.success_rate >= SOLVED_RATE


class LevelHistory:
    """Scores by split, level and policy_version."""

    def __init__(self) -> None:
        self._scores: dict[Split, dict[int, dict[int, LevelScore]]] = {split: {} for split in SPLITS}

    @classmethod
    def read(cls, path: Path, versions: Collection[int]) -> "LevelHistory":
        """Of levels.csv, the rows of `versions`; empty where there is no file. Torn lines are skipped."""
        history = cls()
        names = [field.name for field in fields(LevelScore)]
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return history
        for row in csv.DictReader(io.StringIO(text)):
            try:
                version = int(row["policy_version"])
                split = next(split for split in SPLITS if split == row["split"])
                level, episodes = int(row["level"]), int(row["episodes"])
                score = LevelScore(split, level, episodes, *(float(row[name]) for name in names[3:]))
            except (KeyError, TypeError, ValueError, StopIteration):
                continue
            if version in versions:
                history.add(version, [score])
        return history

    def add(self, version: int, levels: Sequence[LevelScore]) -> None:
        """Adds one version's scores; versions may come in any order."""
        for score in levels:
            self._scores[score.split].setdefault(score.level, {})[version] = score

    def versions(self, split: Split) -> list[int]:
        """The versions that played `split`, ascending."""
        return sorted({version for scores in self._scores[split].values() for version in scores})

    def levels(self, split: Split) -> list[int]:
        """Level seeds of `split`, in the order in which they first appeared."""
        return list(self._scores[split])

    def score(self, split: Split, level: int, version: int) -> LevelScore | None:
        """None where that version did not play the level."""
        return self._scores[split].get(level, {}).get(version)

    def at(self, split: Split, version: int) -> dict[int, LevelScore]:
        """The scores of one version, by level."""
        return {level: scores[version] for level, scores in self._scores[split].items() if version in scores}


def scoreboard(history: LevelHistory, version: int) -> dict[Split, SplitBoard]:
    """The board of every split that `version` played."""
    boards: dict[Split, SplitBoard] = {}
    for split in SPLITS:
        now = history.at(split, version)
        if not now:
            continue
        earlier = [other for other in history.versions(split) if other < version]
        before = history.at(split, earlier[-1]) if earlier else {}
        solved_before = {level for level, score in before.items() if is_solved(score)}
        ever = {level for other in earlier for level, score in history.at(split, other).items() if is_solved(score)}
        solved = [level for level, score in now.items() if is_solved(score)]
        unsolved = [level for level in now if level not in set(solved)]
        boards[split] = SplitBoard(
            solved=tuple(solved),
            newly_solved=tuple(level for level in solved if level not in solved_before),
            forgotten=tuple(level for level in unsolved if level in solved_before),
            never_solved=tuple(level for level in unsolved if level not in ever),
        )
    return boards


def counts(boards: dict[Split, SplitBoard]) -> dict[str, dict[str, int]]:
    """How many levels, as it stands in evaluations.jsonl."""
    names = [field.name for field in fields(SplitBoard)]
    return {split: {name: len(getattr(board, name)) for name in names} for split, board in boards.items()}


def worst(history: LevelHistory, version: int, split: Split) -> int:
    """The level with the lowest mean return; of equals the one unsolved for longest, then the lowest seed."""

    def rank(item: tuple[int, LevelScore]) -> tuple[float, int, int]:
        level, score = item
        solved = [v for v in history.versions(split) if (s := history.score(split, level, v)) and is_solved(s)]
        return score.mean_return, max((v for v in solved if v <= version), default=-1), level

    return min(history.at(split, version).items(), key=rank)[0]


def most_forgotten(history: LevelHistory, version: int, split: Split) -> int | None:
    """The level that fell furthest below its best of any earlier version; None where none fell."""
    earlier = [other for other in history.versions(split) if other < version]
    falls: dict[int, float] = {}
    for level, score in history.at(split, version).items():
        best = [past.mean_return for other in earlier if (past := history.score(split, level, other)) is not None]
        falls[level] = max(best, default=score.mean_return) - score.mean_return
    deepest = max(falls, key=lambda level: falls[level], default=None)
    return deepest if deepest is not None and falls[deepest] > 0 else None


def typical(history: LevelHistory, version: int, split: Split) -> int:
    """The level whose mean return is the (lower) median."""
    ordered = sorted(history.at(split, version).values(), key=lambda score: (score.mean_return, score.level))
    return ordered[(len(ordered) - 1) // 2].level
