"""What the files of a run say about it: how far it is and whether it is finished, running or failed.

Only files are read, so it works while the run goes on, after a crash, from another machine and on a copy. A finished
run has a metrics row of its last update, with all frames that were planned, and the checkpoint or the score of that
update. All else depends on the time of the newest row and on the note that a study writes when it starts a learner and
when that ends.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.config import Config, ConfigError
from common.staleness import stale_after
from common.storage.atomic_files import write_atomically
from common.storage.jsonl import has_fields, parse_json, read_jsonl
from common.storage.run_directory import RunDirectory

State = Literal["finished", "running", "failed", "stopped", "waiting"]

_RECENT_UPDATES = 20
_TAIL_BYTES = 1 << 16
# From the start of a learner to its first update: Ray, level sets with their audit, the first rollouts. Also what a
# learner needs beside --eval-timeout for its last score: to start, if it was resumed, and to write the checkpoint.
_STARTING_SECONDS = 300.0

Row = dict[str, Any]

_NUMBER = (int, float)
# What a row of metrics.jsonl and a note have, with its type. Who edited a file must not break the commands that read
# it. A note without its second part is of a learner that has not ended; None: the note of its start was lost.
_ROW_FIELDS = {"policy_version": int, "frames": int, "time": _NUMBER}
_START_FIELDS = {"started": (*_NUMBER, type(None))}
_END_FIELDS = {"ended": _NUMBER, "exit_code": int, "reason": str}


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run by its files. `fps` is of the last updates, None before there are two and after the last one.

    `reason` says why it ended or, while it runs, what it does after its last update.
    """

    state: State
    frames: int = 0
    fps: float | None = None
    reason: str = ""


def note_path(run: Path) -> Path:
    """The note of a run, beside its directory."""
    return run.with_name(f"{run.name}.json")


def output_path(run: Path) -> Path:
    """What the run's learner printed, beside its directory."""
    return run.with_name(f"{run.name}.out")


def note_start(run: Path) -> None:
    """Notes that a learner was started; OSError if that cannot be written."""
    _write(note_path(run), {"started": time.time()})


def note_end(run: Path, exit_code: int, reason: str, was_stopped: bool) -> None:
    """Notes how a learner ended, and whether the study stopped it; OSError if that cannot be written."""
    end = {"ended": time.time(), "exit_code": exit_code, "reason": reason, "stopped": was_stopped}
    _write(note_path(run), {"started": _read_note(run).get("started"), **end})


def is_finished(run: RunDirectory, frames: int) -> bool:
    """Whether the run has trained at least `frames` frames and completed every update that its own settings call for.

    If the run has an evaluator, its last update must also be scored. OSError: a file cannot be read.
    """
    rows = recent_rows(run.metrics)
    try:
        return bool(rows) and _is_finished(run, run.read_config(), frames, rows)
    except ConfigError:
        return False


def status(run: RunDirectory, frames: int, now: float | None = None) -> RunStatus:
    """The state of a run that is to train `frames` frames, at the time `now`, by default the present."""
    now = time.time() if now is None else now
    trained, fps, scoring = 0, None, None
    try:
        if rows := recent_rows(run.metrics):
            trained, fps = rows[-1]["frames"], _speed(rows)
            config = run.read_config()
            if _is_finished(run, config, frames, rows):
                return RunStatus("finished", trained, fps)
            if config.evaluator and _is_trained(config, frames, rows):
                scoring = config.eval_timeout
    except ConfigError as error:
        return RunStatus("failed", trained, fps, str(error))
    except OSError as error:
        return RunStatus("failed", trained, fps, describe(error, run))
    note = _read_note(run.path)
    newest = rows[-1]["time"] if rows else 0.0
    ended = note.get("ended")
    if ended is not None and ended >= newest - 1:  # later rows are of a learner that somebody else started
        code = note["exit_code"]
        was_stopped = note.get("stopped", code >= 128) or code == 0  # older notes lack it
        return RunStatus("stopped" if was_stopped else "failed", trained, fps, note["reason"])
    started = note.get("started") or 0.0
    silent = now - max(newest, started)
    if scoring is not None and silent <= scoring + _STARTING_SECONDS:
        return RunStatus("running", trained, None, "waiting for its last score")
    patience = stale_after(rows) if newest > started else max(stale_after(rows), _STARTING_SECONDS)
    if silent <= patience:
        return RunStatus("running", trained, fps)
    if not rows and not started:
        return RunStatus("waiting")
    return RunStatus("stopped", trained, fps, last_line(run.learner_log) or "ended without a message")


def describe(error: OSError, run: RunDirectory) -> str:
    """Which file of a run cannot be read, as far as the error says, and why."""
    return f"{error.filename or run.path} cannot be read: {error.strerror}"


def recent_rows(path: Path) -> list[Row]:
    """The last rows of metrics.jsonl, oldest first, read from its end; empty if there is no file, OSError if it cannot
    be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    rows = []
    for line in lines[1 if size > _TAIL_BYTES else 0 :][-_RECENT_UPDATES - 1 :]:
        try:
            row = parse_json(line)
        except ValueError:
            continue
        if has_fields(row, _ROW_FIELDS):
            rows.append({name: row[name] for name in _ROW_FIELDS})
    return rows


def last_line(path: Path, begin: int = 0) -> str:
    """The last non-blank line of a file, ignoring its first `begin` bytes; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(begin, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _is_trained(config: Config, frames: int, rows: list[Row]) -> bool:
    return rows[-1]["policy_version"] >= config.num_updates and rows[-1]["frames"] >= frames


def _is_finished(run: RunDirectory, config: Config, frames: int, rows: list[Row]) -> bool:
    if not _is_trained(config, frames, rows):
        return False
    version = rows[-1]["policy_version"]
    if config.evaluator:
        return any(row.get("policy_version") == version for row in read_jsonl(run.evaluations))
    return (run.checkpoints / f"{version:08d}" / "manifest.json").exists()


def _speed(rows: list[Row]) -> float | None:
    frames, seconds = rows[-1]["frames"] - rows[0]["frames"], rows[-1]["time"] - rows[0]["time"]
    return frames / seconds if frames > 0 and seconds > 0 else None


def _write(path: Path, contents: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(contents) + "\n").encode())


def _read_note(run: Path) -> Row:
    """The run's note; an empty dictionary if it is missing or invalid."""
    try:
        note = parse_json(note_path(run).read_bytes())
    except (OSError, ValueError):
        return {}
    is_usable = has_fields(note, _START_FIELDS) and ("ended" not in note or has_fields(note, _END_FIELDS))
    return note if is_usable else {}
