"""Writes what was scored into the run directory: levels.csv, evaluations.jsonl, TensorBoard, plots, videos, `best`.

A row in evaluations.jsonl is what says that a policy version is scored. It is written after that version's rows in
levels.csv, so a crash between the two leaves rows in levels.csv that no evaluation vouches for; the next start moves
them away, and the version can be scored again. Everything else is drawn from these two.
"""

import csv
import io
import os
from dataclasses import astuple, fields
from typing import Any

from common.cli import UsageError
from common.config import Config
from common.storage.atomic_files import write_atomically
from common.storage.checkpoints import checkpoint_name
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.jsonl import append_jsonl, read_jsonl
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import EventFile
from evaluator.levels.level_sets import SPLITS, Split
from evaluator.output.plot import draw_levels, draw_scores
from evaluator.output.scoreboard import LevelHistory, counts, most_forgotten, scoreboard, typical, worst
from evaluator.output.video import Film, encode_gif
from evaluator.scores.evaluation import Evaluation
from evaluator.scores.ranking import best_row
from evaluator.scores.statistics import LevelScore

CSV_COLUMNS = ("policy_version", *(field.name for field in fields(LevelScore)))
_TENSORBOARD_NAMES: dict[str, str] = {
    "mean": "return",
    "normalized": "normalized_return",
    "success_rate": "success_rate",
    "timeout_rate": "timeout_rate",
}


class RunIsBeingScored(UsageError):
    """Another evaluator writes this run's scores."""


class Report:
    """The evaluator's files of one run. A lock file sees to it that only one process writes them.

    Raises:
        RunIsBeingScored: another process holds the lock; it falls with that process.
    """

    def __init__(self, run: RunDirectory, config: Config):
        self.run = run
        self.config = config
        try:
            self._lock = FileLock(run.evaluator_lock)
        except FileIsLocked as error:
            raise RunIsBeingScored(f"another evaluator is scoring {run.path} ({error})") from error
        self._events = EventFile(run.tensorboard / "evaluator")
        try:
            self.rows = sorted(read_jsonl(run.evaluations), key=lambda row: row["policy_version"])
            self._set_aside_unscored_levels()
            self._history = LevelHistory.read(run.levels, {row["policy_version"] for row in self.rows})
            self._point_to_best()
        except BaseException:
            self.close()
            raise

    def is_scored(self, policy_version: int) -> bool:
        """Whether evaluations.jsonl has this version."""
        return any(row["policy_version"] == policy_version for row in self.rows)

    def add(self, evaluation: Evaluation, **circumstances: Any) -> dict[str, Any]:
        """Writes one evaluation and returns its row; `circumstances` (skipped, eval_seconds, ...) go into the row.

        Raises:
            ValueError: this version is scored already.
        """
        version = evaluation.checkpoint.policy_version
        if self.is_scored(version):
            raise ValueError(f"policy version {version} is scored already")
        self._append_levels(version, evaluation.levels)
        self._history.add(version, evaluation.levels)
        row = {
            **evaluation.row(held_out=self._live_split),
            "scoreboard": counts(scoreboard(self._history, version)),
            **circumstances,
        }
        append_jsonl(self.run.evaluations, row)
        self.rows = sorted([*self.rows, row], key=lambda row: row["policy_version"])
        self._write_scalars(evaluation, row)
        scores, levels = draw_scores(self.rows, self.config), draw_levels(self._history, self.config)
        write_atomically(self.run.scores_plot, scores)
        write_atomically(self.run.levels_plot, levels)
        self._events.add_pictures({"evaluation/scores": scores, "evaluation/levels": levels}, row["frames"])
        self._point_to_best()
        return row

    def levels_to_film(self, policy_version: int) -> dict[str, int]:
        """Held-out levels of a scored version worth seeing: {"worst": level, "forgotten": ..., "typical": ...}."""
        split = self._live_split
        chosen = {
            "worst": worst(self._history, policy_version, split),
            "forgotten": most_forgotten(self._history, policy_version, split),
            "typical": typical(self._history, policy_version, split),
        }
        films: dict[str, int] = {}
        for kind, level in chosen.items():
            if level is not None and level not in films.values():
                films[kind] = level
        return films

    def add_film(self, policy_version: int, kind: str, film: Film) -> None:
        """Writes videos/VERSION-KIND-levelN.gif."""
        self.run.videos.mkdir(exist_ok=True)
        name = f"{checkpoint_name(policy_version)}-{kind}-level{film.level}.gif"
        write_atomically(self.run.videos / name, encode_gif(film))

    def close(self) -> None:
        """Closes the TensorBoard file and gives the lock back."""
        self._events.close()
        self._lock.close()

    @property
    def _live_split(self) -> Split:
        return next(split for split in SPLITS if split == self.config.live_split)

    def _append_levels(self, version: int, levels: list[LevelScore]) -> None:
        is_new = not self.run.levels.exists()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if is_new:
            writer.writerow(CSV_COLUMNS)
        writer.writerows((version, *astuple(level)) for level in levels)
        with open(self.run.levels, "a") as file:
            file.write(text.getvalue())

    def _set_aside_unscored_levels(self) -> None:
        """Moves rows of levels.csv whose version has no evaluation, and a torn last line, to levels.csv.abandoned."""
        if not self.run.levels.exists():
            return
        header, *lines = self.run.levels.read_text(errors="replace").splitlines(keepends=True) or [""]
        scored = {str(row["policy_version"]) for row in self.rows}
        kept = [line for line in lines if line.endswith("\n") and line.split(",", 1)[0] in scored]
        if len(kept) == len(lines) and header.endswith("\n"):
            return
        with open(self.run.levels.with_name("levels.csv.abandoned"), "a") as file:
            file.writelines(line.rstrip("\n") + "\n" for line in lines if line not in kept)
        write_atomically(self.run.levels, (",".join(CSV_COLUMNS) + "\n" + "".join(kept)).encode())

    def _point_to_best(self) -> None:
        """checkpoints/best: the version whose validation interval has the highest lower end; never by test levels."""
        best = best_row(row for row in self.rows if (self.run.checkpoints / row["checkpoint"]).is_dir())
        if best is None:
            self.run.best.unlink(missing_ok=True)
            return
        temporary = self.run.best.with_name(f".best.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(best["checkpoint"])
        os.replace(temporary, self.run.best)

    def _write_scalars(self, evaluation: Evaluation, row: dict[str, Any]) -> None:
        scalars: dict[str, float | None] = {
            f"evaluation/{split}_{name}": row[split][key]
            for split in evaluation.splits
            for key, name in _TENSORBOARD_NAMES.items()
        }
        for split, board in row["scoreboard"].items():
            scalars |= {f"scoreboard/{split}_{name}": count for name, count in board.items()}
        for name in ("generalization_gap", "seconds", "eval_seconds", "updates_behind"):
            scalars[f"evaluation/{name}"] = row.get(name)
        written = {tag: value for tag, value in scalars.items() if value is not None}
        self._events.add_scalars(written, row["frames"])
