"""Level scores over time: which levels are solved, newly solved, forgotten or never solved, and which are worth seeing.

`LevelHistory` is read from levels.csv and grows with every scored version.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from evaluator.levels.level_sets import SPLITS, Split
from evaluator.scores.statistics import LevelScore

SOLVED_RATE = 0.5


@dataclass(frozen=True, slots=True)
class SplitBoard:
    """Level seeds of one split at one version, in the split's order, compared with the version before it."""

    solved: tuple[int, ...]
    newly_solved: tuple[int, ...]
    forgotten: tuple[int, ...]
    never_solved: tuple[int, ...]  # in no scored version so far

    def counts(self) -> dict[str, int]:
        """The number of levels under each name, as stored in evaluations.jsonl."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}


def is_solved(level: LevelScore) -> bool:
    """Whether at least half of the episodes were completed, as reported by the game."""
    return level.success_rate >= SOLVED_RATE


class LevelHistory:
    """Scores by split, level and policy_version."""

    def __init__(self) -> None:
        self._scores: dict[Split, dict[int, dict[int, LevelScore]]] = {split: {} for split in SPLITS}

    @classmethod
    def read(cls, path: Path, versions: Collection[int]) -> "LevelHistory":
        """The rows of `versions` in levels.csv; empty if the file is missing. Damaged and torn lines are skipped."""
        history = cls()
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            return history
        # Not with the csv module, where a stray quote would swallow the lines after it.
        for line in text.splitlines(keepends=True)[1:]:
            try:
                version, split, level, episodes, *numbers = line.split(",")
                rates = [float(number) for number in numbers]
                score = LevelScore(cast(Split, split), int(level), int(episodes), *rates)
                is_whole = line.endswith("\n")  # else its last number may be cut off
                if is_whole and all(map(math.isfinite, rates)) and int(version) in versions:
                    history.add(int(version), [score])
            except (TypeError, ValueError, KeyError):
                continue
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

    def at(self, split: Split, version: int) -> dict[int, LevelScore]:
        """The scores of one version, by level."""
        return {level: scores[version] for level, scores in self._scores[split].items() if version in scores}

    def before(self, split: Split, version: int) -> list[dict[int, LevelScore]]:
        """The scores of every earlier version that played `split`, by level; oldest version first."""
        return [self.at(split, earlier) for earlier in self.versions(split) if earlier < version]


def scoreboards(history: LevelHistory) -> dict[int, dict[Split, SplitBoard]]:
    """The boards of every version, by version and the splits that it played."""
    boards: dict[int, dict[Split, SplitBoard]] = {}
    for split in SPLITS:
        previous: set[int] = set()
        ever: set[int] = set()
        for version in history.versions(split):
            scores = history.at(split, version)
            solved = tuple(level for level, score in scores.items() if is_solved(score))
            unsolved = tuple(level for level, score in scores.items() if not is_solved(score))
            boards.setdefault(version, {})[split] = SplitBoard(
                solved=solved,
                newly_solved=tuple(level for level in solved if level not in previous),
                forgotten=tuple(level for level in unsolved if level in previous),
                never_solved=tuple(level for level in unsolved if level not in ever),
            )
            previous = set(solved)
            ever |= previous
    return boards


def worst(history: LevelHistory, version: int, split: Split) -> int:
    """The level with the lowest mean return; among equals the one unsolved for longest, then the lowest seed."""
    last_solved: dict[int, int] = {}
    scores = history.at(split, version)
    for index, played in enumerate([*history.before(split, version), scores]):
        last_solved |= {level: index for level, score in played.items() if is_solved(score)}
    return min(scores, key=lambda level: (scores[level].mean_return, last_solved.get(level, -1), level))


def most_forgotten(history: LevelHistory, version: int, split: Split) -> int | None:
    """The level furthest below its best mean return in any earlier version; None if no level fell."""
    earlier = history.before(split, version)
    falls = {
        level: max((e[level].mean_return for e in earlier if level in e), default=score.mean_return) - score.mean_return
        for level, score in history.at(split, version).items()
    }
    deepest = max(falls, key=lambda level: falls[level], default=None)
    return deepest if deepest is not None and falls[deepest] > 0 else None


def typical(history: LevelHistory, version: int, split: Split) -> int:
    """The level with the (lower) median mean return."""
    ordered = sorted(history.at(split, version).values(), key=lambda score: (score.mean_return, score.level))
    return ordered[(len(ordered) - 1) // 2].level


# The levels of a split that are worth a video; the names appear in the videos' file names.
LEVEL_CHOICES: dict[str, Callable[[LevelHistory, int, Split], int | None]] = {
    "worst": worst,
    "forgotten": most_forgotten,
    "typical": typical,
}
