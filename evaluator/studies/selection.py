"""Which scores a study compares: those of every run at the same frames, and what is left out and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from common.cli import UsageError
from evaluator.levels.level_sets import PLAYABLE_SPLITS, Split
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import published_scores
from evaluator.studies.ranges import Ranges, normalized
from evaluator.studies.runs import ScoredRun, evaluation_differences
from evaluator.studies.variants import by_variant, differences_from_published, unnamed_differences

# A score that is further before the frames asked for is named.
_NEAR = 0.9


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
    """The scores to summarize. `runs` has the run of every score; `notes` says what was left out and why.

    `played` has the number of levels, and of episodes on each, by game.
    """

    split: Split
    at: int
    mode: str
    games: list[str]
    scores: Table
    runs: Grouped
    played: dict[str, tuple[int, int]]
    notes: list[str] = field(default_factory=list)

    def scored(self, variant: str, game: str | None = None) -> list[ScoredRun]:
        """The runs whose scores count, of one game or of all; none of the published variant."""
        if variant == PUBLISHED:
            return []
        games = self.games if game is None else [game]
        return [self.runs[variant][each][seed] for each in games for seed in self.scores[variant][each]]


def select(
    runs: Sequence[ScoredRun], split: Split | None, at: int | None, require_equal_evaluations: bool
) -> Selection:
    """The scores of all runs at the same frames.

    Args:
        split: the levels; None: `default_split`.
        at: frames; the newest evaluation at or before them counts. None: what all finished runs have reached, or if
            none is finished, all that have trained and have a score since.
        require_equal_evaluations: refuse runs of one game that were scored on other levels or with other episodes.
            If not, `played` is empty.

    Raises:
        UsageError: runs cannot be compared, or none reached `at`.
    """
    grouped = by_variant(runs)
    # A run's last evaluation may be before its last update; training is what counts for "beyond".
    if at is not None and at > (most := max(run.frames for run in runs)):
        raise UsageError(f"--at: no run has trained {at:,} frames; the most is {most:,}")
    notes: list[str] = []
    splits = [name for name in PLAYABLE_SPLITS if any(run.scored(name) for run in runs)]
    if not splits:
        raise UsageError("no run has a score yet; --rescore plays their newest checkpoints")
    chosen = split or default_split(runs)
    if chosen not in splits:
        raise UsageError(
            f"no run has {chosen} scores, only {', '.join(splits)}; choose another --split, or score all runs again "
            "with --rescore"
        )
    scored = [run for run in runs if run.scored(chosen)]
    newest = [(run.scored(chosen)[-1]["frames"], run.is_finished) for run in scored]
    finished = [frames for frames, is_finished in newest if is_finished]
    # The score of an untrained policy says nothing about how far its run is.
    frames = at if at is not None else min(finished or [frames for frames, _ in newest if frames] or [0])
    table: Table = {}
    for variant, by_game in grouped.items():
        for game, seeds in by_game.items():
            for seed, run in sorted(seeds.items()):
                row = run.at(chosen, frames) if run.frames >= frames else None
                if row is None:
                    reason = f"no {chosen} score at or before {frames:,} frames"
                    if run.frames < frames:
                        reason = f"trained {run.frames:,} frames"
                    notes.append(f"{run.run.path} is left out: {reason}")
                    continue
                if row["frames"] < _NEAR * frames:
                    notes.append(f"{run.run.path}: its nearest score is at {row['frames']:,} frames")
                table.setdefault(variant, {}).setdefault(game, {})[seed] = Score(row[chosen]["mean"], row["frames"])
    if not table:
        raise UsageError(
            f"--at: no run that has trained {frames:,} frames has a {chosen} score by then; choose another --at or "
            "--split"
        )
    games = _common_games(table, notes)
    played: dict[str, tuple[int, int]] = {}
    if require_equal_evaluations:
        unchecked: list[str] = []
        for game in games:
            own = [grouped[variant][game][seed] for variant in table for seed in table[variant][game]]
            if difference := evaluation_differences(own, chosen, frames):
                raise UsageError(f"{game}: runs were scored differently: {difference}; --rescore scores them all again")
            if (counts := own[0].played(chosen, frames)) is not None:  # all runs have it, and the same
                played[game] = counts
            if len(own) > 1:
                unchecked += [str(run.run.path) for run in own if run.levels(chosen) is None]
        if unchecked:
            notes.append(
                f"not checked for the same levels, without a levels.json that can be read: {', '.join(unchecked)}"
            )
    table = {variant: {game: own[game] for game in games} for variant, own in table.items()}
    notes += unnamed_differences(
        {
            variant: [grouped[variant][game][seed] for game, seeds in own.items() for seed in seeds]
            for variant, own in table.items()
        }
    )
    mode = runs[0].config.distribution_mode
    return Selection(chosen, frames, mode, games, table, grouped, played, notes)


def add_published(selection: Selection) -> None:
    """Adds OpenAI's runs as one more variant where the settings match, or a note that says why not."""
    found: dict[str, dict[int, Score]] = {}
    compared: dict[int, int] = {}  # frames in the logs: frames of a score that is compared with them
    for variant, by_game in selection.scores.items():
        for game, score, run in (
            (game, score, selection.runs[variant][game][seed])
            for game, seeds in by_game.items()
            for seed, score in seeds.items()
        ):
            answer = published_scores(run.config, selection.split, score.frames)
            if isinstance(answer, str):
                selection.notes.append(f"no published scores: {answer}")
                return
            frames, values = answer
            compared[frames] = score.frames
            found[game] = {seed: Score(value, frames) for seed, value in enumerate(values)}
    if len(compared) > 1:
        scored = " and ".join(f"{frames:,}" for frames in compared.values())
        selection.notes.append(f"no published scores: the scores are at {scored} frames; choose with --at")
        return
    runs = {variant: selection.scored(variant) for variant in selection.scores}
    selection.notes += differences_from_published(runs)
    selection.scores[PUBLISHED] = found
    note = f"{PUBLISHED}: each run's last 100 episodes while it was trained, not a checkpoint on fixed levels"
    if selection.split in ("validation", "test"):
        note += (
            "; on all levels, training levels and look-alikes included, which these runs' levels exclude: "
            "--rescore --split all plays levels like theirs"
        )
    selection.notes.append(note)


def normalized_scores(selection: Selection, variant: str, ranges: Ranges) -> list[np.ndarray]:
    """The variant's normalized scores, one float64 `[seeds]` for each game of the selection."""
    return [
        np.array([normalized(score.value, game, selection.mode, ranges) for score in seeds.values()])
        for game, seeds in selection.scores[variant].items()
    ]


def default_split(runs: Sequence[ScoredRun]) -> Split:
    """Test levels if all runs that have scores have some on them, else validation levels."""
    scored = [run for run in runs if run.rows]
    return "test" if scored and all(run.scored("test") for run in scored) else "validation"


def _common_games(table: Table, notes: list[str]) -> list[str]:
    """The games that every variant has; a note for each of the others."""
    games = list(dict.fromkeys(game for own in table.values() for game in own))
    common = [game for game in games if all(game in own for own in table.values())]
    if not common:
        found = "; ".join(f"{variant} has {', '.join(own)}" for variant, own in table.items())
        raise UsageError(f"no game has scores of every variant: {found}")
    for game in sorted(set(games) - set(common)):
        missing = [variant for variant, own in table.items() if game not in own]
        notes.append(f"{game} is left out: no score of it at these frames from {', '.join(missing)}")
    return common
