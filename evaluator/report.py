"""Writes what was scored into the run directory: levels.csv, evaluations.jsonl, TensorBoard, scores.png, videos.

A row in evaluations.jsonl is what says that a policy version is scored. It is written after that version's rows in
levels.csv, so a crash between the two leaves rows in levels.csv that no evaluation vouches for; the next start moves
them away, and the version can be scored again.
"""

import csv
import io
from dataclasses import astuple, fields
from typing import Any

from tensorboardX import SummaryWriter

from common.atomic_files import write_atomically
from common.checkpoints import checkpoint_name
from common.config import Config
from common.metrics import append_jsonl, read_jsonl
from common.run_directory import RunDirectory
from evaluator.evaluation import Evaluation, Film
from evaluator.film import encode_gif
from evaluator.level_sets import Split
from evaluator.plot import draw_scores
from evaluator.statistics import LevelScore

CSV_COLUMNS = ("policy_version", *(field.name for field in fields(LevelScore)))
_TENSORBOARD_NAMES: dict[str, str] = {
    "mean": "return",
    "normalized": "normalized_return",
    "success_rate": "success_rate",
    "timeout_rate": "timeout_rate",
}


class Report:
    """The evaluator's files of one run; only one process writes them."""

    def __init__(self, run: RunDirectory, config: Config):
        self.run = run
        self.config = config
        self.rows = read_jsonl(run.evaluations)
        self._tensorboard: SummaryWriter | None = None
        self._set_aside_unscored_levels()

    def is_scored(self, policy_version: int) -> bool:
        """Whether evaluations.jsonl has this version."""
        return any(row["policy_version"] == policy_version for row in self.rows)

    def add(self, evaluation: Evaluation, skipped: int) -> dict[str, Any]:
        """Writes one evaluation everywhere and returns its row; `skipped` checkpoints before it were not scored.

        Raises:
            ValueError: this version is scored already.
        """
        version = evaluation.checkpoint.policy_version
        if self.is_scored(version):
            raise ValueError(f"policy version {version} is scored already")
        self._append_levels(version, evaluation.levels)
        if evaluation.film is not None:
            self._write_film(version, evaluation.film)
        row = {**evaluation.row(), "skipped": skipped}
        append_jsonl(self.run.evaluations, row)
        self.rows.append(row)
        self._write_scalars(evaluation, row)
        ordered = sorted(self.rows, key=lambda scored: scored["frames"])
        write_atomically(self.run.scores_plot, draw_scores(ordered, self.config))
        return row

    def close(self) -> None:
        """Closes the TensorBoard file."""
        if self._tensorboard is not None:
            self._tensorboard.close()

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

    def _write_film(self, version: int, film: Film) -> None:
        self.run.videos.mkdir(exist_ok=True)
        name = f"{checkpoint_name(version)}-level{film.episode.level}.gif"
        write_atomically(self.run.videos / name, encode_gif(film.frames))

    def _write_scalars(self, evaluation: Evaluation, row: dict[str, Any]) -> None:
        if self._tensorboard is None:
            self._tensorboard = SummaryWriter(str(self.run.tensorboard / "evaluator"))
        splits: tuple[Split, ...] = tuple(evaluation.splits)
        scalars = {
            f"evaluation/{split}_{name}": row[split][key]
            for split in splits
            for key, name in _TENSORBOARD_NAMES.items()
        }
        scalars["evaluation/generalization_gap"] = row["generalization_gap"]
        scalars["evaluation/seconds"] = row["seconds"]
        for tag, value in scalars.items():
            self._tensorboard.add_scalar(tag, value, global_step=row["frames"])
        self._tensorboard.flush()
