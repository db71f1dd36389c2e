"""`python -m evaluator watch`: follows a run's progress and scores by reading its files."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from common.config import Config
from common.output import is_live_terminal, make_console
from evaluator.commands.files import open_run
from evaluator.commands.watch_view import evaluation_line, evaluation_table, status, why_no_interval
from evaluator.output.text import other_weights_warning
from evaluator.scores.ranking import best_row

_TERMINATED_EXIT_CODE = 143


def run(options: argparse.Namespace) -> None:
    """Shows the run until KeyboardInterrupt, or once; UsageError if there is no run."""
    directory = open_run(options.path)
    config = directory.read_config()
    if warning := other_weights_warning(directory):
        print(f"evaluator: {warning}", file=sys.stderr)
    run = WatchedRun(
        RowsFile(directory.metrics, directory.read_metrics), RowsFile(directory.evaluations, directory.read_evaluations)
    )
    looks = run.looks(options.interval, options.once)
    console = make_console()
    if not is_live_terminal(console):
        _print_lines(run, config, looks)
    elif options.once:
        next(looks)
        console.print(_view(run, config, console.width))
    else:
        # Unwinds like Ctrl-C, so that Live shows the cursor again.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_TERMINATED_EXIT_CODE))
        with Live(console=console, auto_refresh=False) as live:
            for _ in looks:
                live.update(_view(run, config, console.width), refresh=True)


@dataclass(slots=True)
class RowsFile:
    """The rows of a growing JSON-lines file, by policy_version. `refresh` reads it only if it has changed."""

    path: Path
    read: Callable[[], list[dict[str, Any]]]
    rows: list[dict[str, Any]] = field(default_factory=list)
    _stamp: tuple[int, int, int] | None = None

    def refresh(self) -> bool:
        """Whether the file has changed since the last call."""
        try:
            stat = os.stat(self.path)
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            stamp = None
        if stamp == self._stamp:
            return False
        self._stamp = stamp  # taken before reading: rows appended in between are read again, not missed
        self.rows = self.read()
        return True


@dataclass(slots=True)
class WatchedRun:
    """The rows of a run, and when its newest update was seen."""

    metrics: RowsFile
    evaluations: RowsFile
    _has_looked: bool = False
    _seen: float | None = None  # by this machine's clock; None until an update arrives while watching

    def refresh(self) -> None:
        """Reads what has changed."""
        if self.metrics.refresh() and self._has_looked:
            self._seen = time.time()
        self.evaluations.refresh()
        self._has_looked = True

    def looks(self, interval: float, once: bool) -> Iterator[None]:
        """Refreshes and yields, every `interval` seconds or once."""
        while True:
            self.refresh()
            yield
            if once:
                return
            time.sleep(interval)

    def age(self, now: float) -> float | None:
        """Seconds since the newest update; None before the first. The learner's clock may differ from this one."""
        if not self.metrics.rows:
            return None
        return max(0.0, now - (self._seen or self.metrics.rows[-1]["time"]))


def _view(run: WatchedRun, config: Config, width: int) -> RenderableType:
    now = status(config, run.metrics.rows, run.age(time.time()))
    lines: list[RenderableType] = [Text(now.title, style="bold"), Text(now.progress)]
    if now.warning:
        lines.append(Text(now.warning, style="yellow"))
    if not run.evaluations.rows:
        return Group(*lines, Text("no evaluations yet", style="dim"))
    best = best_row(run.evaluations.rows)
    lines.append(evaluation_table(run.evaluations.rows, best, width))
    if best is not None:
        lines.append(Text(f"* best: version {best['policy_version']}, by its validation interval's lower end", "dim"))
    if reason := why_no_interval(run.evaluations.rows[-1]):
        lines.append(Text(reason, "dim"))
    return Group(*lines)


def _print_lines(run: WatchedRun, config: Config, looks: Iterable[None]) -> None:
    """Prints the status first, then every evaluation once and a warning each time the run seems to have stopped.

    Why an interval is missing is said once, not in each evaluation's line.
    """
    printed: set[tuple[int, str]] = set()
    explained = ""
    was_stale = False
    for look, _ in enumerate(looks):
        now = status(config, run.metrics.rows, run.age(time.time()))
        rows = run.evaluations.rows
        if look == 0:
            print(now.title, now.progress, *([] if rows else ["no evaluations yet"]), sep="\n")
        best = best_row(rows)
        for row in rows:
            # After a resume a version can be scored again, with other weights.
            if (key := (row["policy_version"], row["policy_sha256"])) not in printed:
                printed.add(key)
                print(evaluation_line(row, row is best))
                reason = why_no_interval(row)
                if reason and reason != explained:
                    print(reason)
                explained = reason or explained
        if now.warning and not was_stale:
            print(now.warning)
        was_stale = now.warning is not None
        sys.stdout.flush()
