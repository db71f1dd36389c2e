"""Writes scores into the run directory: levels.csv, evaluations.jsonl, TensorBoard, plots, videos and `best`.

A row in evaluations.jsonl marks a policy version as scored. It is written after that version's rows in levels.csv, so
a crash between the two leaves rows in levels.csv without an evaluation; the next start moves these rows to
levels.csv.abandoned, and the version can be scored again. So it renames videos of versions without an evaluation, which
are of weights that were set aside. Everything else is derived from these two files, and the boards in evaluations.jsonl
from levels.csv.
"""

import contextlib
import csv
import errno
import io
import logging
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from typing import Any, cast

from common.cli import UsageError
from common.config import Config
from common.storage.atomic_files import write_atomically
from common.storage.checkpoints import checkpoint_name, has_other_weights
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.jsonl import append_jsonl, change_rows, set_aside_rows, set_aside_text
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import EventFile, shown_points
from common.storage.videos import set_aside_videos, video_name
from evaluator.levels.level_sets import SPLITS, Split
from evaluator.output.plot import levels_figure, png, scores_figure
from evaluator.output.published import compare_with_published, training_return
from evaluator.output.scoreboard import LEVEL_CHOICES, LevelHistory, SplitBoard, scoreboards
from evaluator.output.text import other_weights_warning
from evaluator.output.video import Video, encode_gif
from evaluator.scores.evaluation import Evaluation
from evaluator.scores.ranking import best_row
from evaluator.scores.statistics import LevelScore

logger = logging.getLogger(__name__)

CSV_COLUMNS = ("policy_version", *(field.name for field in fields(LevelScore)))
_TENSORBOARD_NAMES = {
    "mean": "return",
    "normalized": "normalized_return",
    "success_rate": "success_rate",
    "timeout_rate": "timeout_rate",
}
_TENSORBOARD_FIELDS = ("generalization_gap", "seconds", "eval_seconds", "updates_behind")


class RunIsBeingScored(UsageError):
    """Another evaluator is writing this run's scores."""


class ScoreFiles:
    """The files one evaluator writes for one run. A lock file ensures that no other process writes them.

    `rows` are the rows of evaluations.jsonl, ordered by policy version.

    Raises:
        RunIsBeingScored: another process holds the lock, which is released when that process ends.
        OSError: the run directory is not there or cannot be used.
    """

    def __init__(self, run: RunDirectory, config: Config):
        run.require_present()  # or its files would be written below the mount point
        self.run = run
        self.config = config
        self.rows: list[dict[str, Any]] = []
        self._pictured: int | None = None  # the version whose plots TensorBoard got last
        self._has_unshown_corrections = False
        self._live_split = cast(Split, config.live_split)
        try:
            self._lock = FileLock(run.evaluator_lock)
        except FileIsLocked as error:
            raise RunIsBeingScored(f"another evaluator is scoring {run.path} ({error})") from error
        self._events = EventFile(run.tensorboard / "evaluator")
        try:
            self._set_aside_rows_of_other_weights()
            self.reload()
        except BaseException:
            self.close()
            raise

    def reload(self) -> None:
        """Reads the files again and repairs what a failed write left behind.

        Raises:
            OSError: the run directory is not there or cannot be used; what was read before is kept.
        """
        self.run.require_present()
        rows = self.run.read_evaluations()
        if self.rows and not rows:  # they are not lost, but away
            raise FileNotFoundError(errno.ENOENT, "no row is left", str(self.run.evaluations))
        self.rows = rows
        self._set_aside_unscored_levels()
        set_aside_videos(self.run.videos, lambda version: not self.is_scored(version))
        self._history = LevelHistory.read(self.run.levels, set(map(_version, self.rows)))
        self._correct_boards()
        self._is_shown = False
        with contextlib.suppress(OSError):  # tried again with the next score
            self._repair_tensorboard()
        self._link_best()

    def is_scored(self, policy_version: int) -> bool:
        """Whether evaluations.jsonl has this version."""
        index = bisect_left(self.rows, policy_version, key=_version)
        return index < len(self.rows) and _version(self.rows[index]) == policy_version

    def add(self, evaluation: Evaluation, *, skipped: int, eval_seconds: float, updates_behind: int) -> dict[str, Any]:
        """Writes one evaluation and returns its row; `draw` writes the rest.

        Args:
            evaluation: of a version that is not scored yet.
            skipped: checkpoints skipped before this one.
            eval_seconds: wall time of loading, playing and scoring.
            updates_behind: updates by which the learner was ahead.

        Raises:
            ValueError: this version is already scored.
            OSError: a file could not be written; call `reload` before the next `add`.
        """
        version = evaluation.checkpoint.policy_version
        if self.is_scored(version):
            raise ValueError(f"policy version {version} is already scored")
        self.run.require_present()
        self._append_levels(version, evaluation.levels)
        self._history.add(version, evaluation.levels)
        scores = evaluation.row(held_out=self._live_split)
        row = {
            **scores,
            "published": compare_with_published(self.config, scores, training_return(self.run, version)),
            "scoreboard": _counts(scoreboards(self._history)[version]),
            "skipped": skipped,
            "eval_seconds": eval_seconds,
            "updates_behind": updates_behind,
        }
        append_jsonl(self.run.evaluations, row)
        self.rows = sorted([*self.rows, row], key=_version)
        if row is not self.rows[-1]:
            self._correct_boards()
        if self._is_shown:
            self._is_shown = False  # until it has been written
            self._events.add_scalars(_scalars(row), row["frames"])
            self._is_shown = True
        return row

    def draw(self, policy_version: int) -> None:
        """Writes what follows from the rows: plots, the link to the best checkpoint, and both plots for TensorBoard.

        `policy_version` is the one that was added. May be called again for it.

        Raises:
            OSError: a file could not be written; call `reload` before the next `draw`.
        """
        if not self._is_shown:
            self._repair_tensorboard()
        curves, levels = png(scores_figure(self.rows, self.config)), png(levels_figure(self._history, self.config))
        write_atomically(self.run.scores_plot, curves)
        write_atomically(self.run.levels_plot, levels)
        self._link_best()
        if policy_version != self._pictured:
            (frames,) = (row["frames"] for row in self.rows if _version(row) == policy_version)
            self._events.add_pictures({"evaluation/scores": curves, "evaluation/levels": levels}, frames)
            self._pictured = policy_version

    def show_corrections(self) -> None:
        """Lets TensorBoard show corrected rows. It gets all later points again: not to be called after every score."""
        if self._has_unshown_corrections:
            with contextlib.suppress(OSError):  # tried again at the next start
                self._repair_tensorboard()

    def levels_to_record(self, policy_version: int) -> dict[str, int]:
        """Levels of the live split worth a video, each at most once: {"worst": level, "forgotten": ...}."""
        levels: dict[str, int] = {}
        for kind, choose in LEVEL_CHOICES.items():
            level = choose(self._history, policy_version, self._live_split)
            if level is not None and level not in levels.values():
                levels[kind] = level
        return levels

    def add_video(self, policy_version: int, kind: str, video: Video) -> None:
        """Writes videos/VERSION-KIND-levelN.gif."""
        self.run.videos.mkdir(exist_ok=True)
        write_atomically(self.run.videos / video_name(policy_version, kind, video.level), encode_gif(video))

    def close(self) -> None:
        """Closes the TensorBoard file and releases the lock."""
        self._events.close()
        self._lock.close()

    def _append_levels(self, version: int, levels: Sequence[LevelScore]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.run.levels.exists():
            writer.writerow(CSV_COLUMNS)
        writer.writerows((version, *astuple(level)) for level in levels)
        with open(self.run.levels, "a") as file:
            file.write(text.getvalue())

    def _set_aside_rows_of_other_weights(self) -> None:
        """A row or a checkpoint came from another run: these versions are scored again."""
        if warning := other_weights_warning(self.run):
            logger.warning("%s; they are set aside and scored again", warning)
            set_aside_rows(self.run.evaluations, lambda row: not has_other_weights(row, self.run.checkpoints))

    def _set_aside_unscored_levels(self) -> None:
        """Moves rows of levels.csv whose version has no evaluation, and a torn last line, to levels.csv.abandoned."""
        if not self.run.levels.exists():
            return
        header, *lines = self.run.levels.read_text(errors="replace").splitlines(keepends=True) or [""]
        scored = {str(_version(row)) for row in self.rows}
        kept: list[str] = []
        abandoned: list[str] = []
        for line in lines:
            belongs = line.endswith("\n") and line.split(",", 1)[0] in scored
            (kept if belongs else abandoned).append(line)
        if not abandoned and header.endswith("\n"):
            return
        set_aside_text(self.run.levels, "".join(line.rstrip("\n") + "\n" for line in abandoned))
        write_atomically(self.run.levels, (",".join(CSV_COLUMNS) + "\n" + "".join(kept)).encode())

    def _correct_boards(self) -> None:
        """Corrects the boards of rows after an older version was scored, or set aside.

        No board if levels.csv lacks levels of a row: then what the rows say is all that is known.
        """
        boards = scoreboards(self._history)
        corrected: dict[int, dict[str, Any]] = {}
        for row in self.rows:
            version = _version(row)
            for split in SPLITS:
                if split in row and len(self._history.at(split, version)) != row[split]["levels"]:
                    return
            board = row["scoreboard"] | _counts(boards.get(version, {}))
            if board != row["scoreboard"]:
                corrected[version] = board

        def correct(row: dict[str, Any]) -> dict[str, Any]:
            version = row.get("policy_version")
            if isinstance(version, int) and version in corrected:
                return row | {"scoreboard": corrected[version]}
            return row

        if corrected:
            change_rows(self.run.evaluations, correct)
            self.rows = [correct(row) for row in self.rows]
            self._has_unshown_corrections = True

    def _link_best(self) -> None:
        """Points checkpoints/best to the best version whose checkpoint still exists."""
        best = best_row(row for row in self.rows if (self.run.checkpoints / checkpoint_name(_version(row))).is_dir())
        if best is None:
            self.run.set_best_checkpoint(None)
        else:
            self.run.set_best_checkpoint(checkpoint_name(_version(best)))

    def _repair_tensorboard(self) -> None:
        """Makes TensorBoard show what every row says, once, and nothing of a version that was set aside."""
        shown = shown_points(self._events.directory)
        rows = {row["frames"]: row for row in self.rows}
        wrong = [step for step, tags in shown.items() if step not in rows or not _shows(tags, _scalars(rows[step]))]
        purged_from = min(wrong, default=math.inf)
        if wrong:
            self._events.purge(min(wrong))
        for step in sorted(rows):
            if step >= purged_from or step not in shown:
                self._events.add_scalars(_scalars(rows[step]), step)
        self._is_shown = True
        self._has_unshown_corrections = False


def _counts(boards: Mapping[Split, SplitBoard]) -> dict[str, dict[str, int]]:
    return {split: board.counts() for split, board in boards.items()}


def _shows(tags: Mapping[str, Sequence[float]], scalars: Mapping[str, float]) -> bool:
    """Whether each scalar is shown once, with this value; TensorBoard has single precision."""
    return all(
        len(points := tags.get(name, ())) == 1 and math.isclose(points[0], value, rel_tol=1e-6, abs_tol=1e-6)
        for name, value in scalars.items()
    )


def _scalars(row: dict[str, Any]) -> dict[str, float]:
    """What TensorBoard shows of a row of evaluations.jsonl."""
    scalars: dict[str, float] = {
        f"evaluation/{split}_{name}": row[split][key]
        for split in SPLITS
        if split in row
        for key, name in _TENSORBOARD_NAMES.items()
    }
    for split, counts in row["scoreboard"].items():
        scalars |= {f"scoreboard/{split}_{name}": count for name, count in counts.items()}
    # Rows of older versions lack some.
    return scalars | {f"evaluation/{name}": row[name] for name in _TENSORBOARD_FIELDS if row.get(name) is not None}


def _version(row: dict[str, Any]) -> int:
    version: int = row["policy_version"]
    return version
