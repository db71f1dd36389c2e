"""`python -m evaluator watch`: a run's progress and scores as they come, read from its files alone."""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from evaluator.commands.arguments import UsageError, require_run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from common.config import Config

SHOWN_EVALUATIONS = 15
# The columns that only a wide terminal has room for.
WIDE = 108
# Without an update for so many usual ones, and for at least so many seconds, a run may be dead.
_STALE_UPDATES = 5
_STALE_SECONDS = 60.0
_RECENT_UPDATES = 20
_TERMINATED_EXIT_CODE = 143


def add_parser(subparsers: Any) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "watch",
        help="follow a run's scores in the terminal, also from another machine",
        description="Shows a run's progress and newest scores until Ctrl-C. Reads the run directory, changes nothing.",
    )
    parser.add_argument("path", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS", help="between looks at the files (default: 2)"
    )
    parser.add_argument("--once", action="store_true", help="show what there is now and end")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Goes on until KeyboardInterrupt; raises UsageError where there is no run."""
    directory = require_run(options.path)
    from rich.console import Console

    from common.config import ConfigError

    try:
        config = directory.read_config()
    except ConfigError as error:
        raise UsageError(str(error)) from error
    watched = Watched(Rows(directory.metrics), Rows(directory.evaluations))
    console = Console(highlight=False)
    if console.is_terminal:
        _show(watched, config, console, options.interval, options.once)
    else:
        _print_lines(watched, config, options.interval, options.once)


@dataclass(slots=True)
class Rows:
    """The rows of a growing JSON-lines file. `refresh` reads it again only when it has changed."""

    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    _stamp: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Whether there was something new to read."""
        from common.storage.jsonl import read_jsonl

        try:
            status = os.stat(self.path)
            stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            stamp = None
        if stamp == self._stamp:
            return False
        # The stamp is older than what is read: what comes in between is read again, not missed.
        self._stamp = stamp
        self.rows = sorted(read_jsonl(self.path), key=lambda row: row["policy_version"])
        return True


@dataclass(slots=True)
class Watched:
    """What is known of a run, and since when."""

    metrics: Rows
    evaluations: Rows
    _has_looked: bool = False
    _seen: float | None = None  # when an update came while watching, by this machine's clock

    def refresh(self) -> None:
        """Looks at the files."""
        before = self.metrics.rows[-1:]
        self.metrics.refresh()
        self.evaluations.refresh()
        if self._has_looked and self.metrics.rows[-1:] != before:
            self._seen = time.time()
        self._has_looked = True

    def age(self, now: float) -> float | None:
        """Seconds since the newest update; None before the first. The learner's clock may differ from ours."""
        if not self.metrics.rows:
            return None
        written = self.metrics.rows[-1].get("time") if self._seen is None else self._seen
        return None if written is None else max(0.0, now - written)


def header(config: "Config", metrics: Sequence[dict[str, Any]], age: float | None) -> list[str]:
    """What a run is doing, in two lines; a third one where it seems to have stopped."""
    title = f"{config.env_name} {config.distribution_mode}, preset {config.preset}"
    if not metrics:
        return [title, "no update yet"]
    row = metrics[-1]
    total = config.num_updates * config.batch_size
    fps = row.get("fps")
    words = [
        f"{row['frames']:,} of {total:,} frames ({row['frames'] / total:.0%})",
        f"update {row['policy_version']} of {config.num_updates}",
        f"{fps:,.0f} frames/s" if fps is not None else "",
    ]
    is_finished = row["policy_version"] >= config.num_updates
    if is_finished:
        words.append("training has finished")
    elif age is not None:
        words.append(f"last update {duration(age)} ago")
    lines = [title, ", ".join(word for word in words if word)]
    if not is_finished and age is not None and age > stale_after(metrics):
        lines.append(f"no update for {duration(age)}: is the run still alive?")
    return lines


def stale_after(metrics: Sequence[dict[str, Any]]) -> float:
    """Seconds without an update after which one should look: some of the run's usual updates."""
    times = [row["time"] for row in metrics[-_RECENT_UPDATES:] if row.get("time") is not None]
    between = sorted(later - earlier for earlier, later in pairwise(times))
    usual = between[len(between) // 2] if between else _STALE_SECONDS
    return max(_STALE_SECONDS, _STALE_UPDATES * usual)


def evaluation_table(rows: Sequence[dict[str, Any]], best: dict[str, Any] | None, width: int) -> "Table":
    """The newest evaluations, the newest at the bottom; a star marks the best. Narrow terminals get fewer columns."""
    from evaluator.output.text import make_table

    shown = rows[-SHOWN_EVALUATIONS:]
    held_out = shown[-1].get("held_out_split", "held-out")
    columns = ["version", "frames", "train [95 %]", f"{held_out} [95 %]", "gap", "solved"]
    extra = ["seconds", "behind", "skipped"] if width >= WIDE else []
    cells = [
        [
            f"{'* ' if row is best else ''}{row['policy_version']}",
            f"{row['frames']:,}",
            score_text(row.get("train")),
            score_text(row.get("held_out")),
            _gap(row.get("generalization_gap")),
            board_text(row),
            *(
                [f"{row['seconds']:.0f}", _count(row.get("updates_behind")), _count(row.get("skipped"))]
                if extra
                else []
            ),
        ]
        for row in shown
    ]
    return make_table([*columns, *extra], cells, left=())


def score_text(score: dict[str, Any] | None) -> str:
    """`7.83 [6.5, 9.0]`."""
    if score is None:
        return "-"
    interval = score.get("interval")
    return f"{score['mean']:.2f}" + (f" [{interval[0]:.1f}, {interval[1]:.1f}]" if interval else "")


def board_text(row: dict[str, Any]) -> str:
    """Held-out levels that are solved, newly solved and forgotten: `15/20 +2 -1`."""
    board = row.get("scoreboard", {}).get(row.get("held_out_split"))
    if board is None:
        return "-"
    return f"{board['solved']}/{row['held_out']['levels']} +{board['newly_solved']} -{board['forgotten']}"


def evaluation_line(row: dict[str, Any], is_best: bool) -> str:
    """One evaluation as a plain line, for pipes and log files."""
    words = [
        f"train {score_text(row.get('train'))}",
        f"{row.get('held_out_split', 'held-out')} {score_text(row.get('held_out'))}",
    ]
    if row.get("generalization_gap") is not None:
        words.append(f"gap {row['generalization_gap']:.2f}")
    if (board := row.get("scoreboard", {}).get(row.get("held_out_split"))) is not None:
        words.append(
            f"solved {board['solved']} of {row['held_out']['levels']} "
            f"({board['newly_solved']} newly, {board['forgotten']} forgotten)"
        )
    words.append(f"{row['seconds']:.0f} s")
    if row.get("updates_behind"):
        words.append(f"{row['updates_behind']} update{'s' if row['updates_behind'] > 1 else ''} behind")
    if row.get("skipped"):
        words.append(f"{row['skipped']} skipped before it")
    if is_best:
        words.append("best so far")
    return f"evaluation of policy_version {row['policy_version']}, {row['frames']:,} frames: {', '.join(words)}"


def duration(seconds: float) -> str:
    """`12 s`, `5 min` or `2 h 10 min`."""
    if seconds < 60:
        return f"{int(seconds)} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _show(watched: Watched, config: "Config", console: Any, interval: float, once: bool) -> None:
    """A live table, or what it shows now."""
    from rich.live import Live

    watched.refresh()
    if once:
        console.print(_display(watched, config, console.width))
        return
    with _ends_on_sigterm(), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_display(watched, config, console.width), refresh=True)
            time.sleep(interval)
            watched.refresh()


def _display(watched: Watched, config: "Config", width: int) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    from evaluator.scores.ranking import best_row

    first, *others = header(config, watched.metrics.rows, watched.age(time.time()))
    lines: list[Any] = [Text(first, style="bold"), Text(others[0])]
    lines += [Text(line, style="yellow") for line in others[1:]]
    rows = watched.evaluations.rows
    if not rows:
        return Group(*lines, Text("no evaluations yet", style="dim"))
    best = best_row(rows)
    lines.append(evaluation_table(rows, best, width))
    if best is not None:
        text = f"* best: the highest lower end of validation's interval, version {best['policy_version']}"
        lines.append(Text(text, style="dim"))
    return Group(*lines)


def _print_lines(watched: Watched, config: "Config", interval: float, once: bool) -> None:
    """Every evaluation once, and what a person should hear of."""
    from evaluator.scores.ranking import best_row

    printed: set[tuple[int, str | None]] = set()
    is_stale = False
    watched.refresh()
    print("\n".join(header(config, watched.metrics.rows, watched.age(time.time()))[:2]))
    if not watched.evaluations.rows:
        print("no evaluations yet")
    while True:
        rows = watched.evaluations.rows
        best = best_row(rows)
        for row in rows:
            # A resumed run scores a version again, with other weights.
            key = (row["policy_version"], row.get("policy_sha256"))
            if key not in printed:
                printed.add(key)
                print(evaluation_line(row, row is best))
        warnings = header(config, watched.metrics.rows, watched.age(time.time()))[2:]
        if warnings and not is_stale:
            print(warnings[0])
        is_stale = bool(warnings)
        sys.stdout.flush()
        if once:
            return
        time.sleep(interval)
        watched.refresh()


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C does, so that the terminal gets its cursor back."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(_TERMINATED_EXIT_CODE)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0.1 <= seconds <= 86_400 or not math.isfinite(seconds):
        raise argparse.ArgumentTypeError(f"{text} must be from 0.1 to 86400")
    return seconds


def _gap(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)
