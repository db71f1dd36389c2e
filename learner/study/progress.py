"""What a person sees of a study: a live display on a terminal, a plain line for each start and end in a pipe."""

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from common.output import is_live_terminal
from common.storage.run_directory import RunDirectory
from common.text import MISSING, format_count, format_duration
from learner.study import run_files
from learner.study.plan import Plan, PlannedRun
from learner.study.run_files import RunStatus

_REFRESH_SECONDS = 2.0


class StudyProgress:
    """Counts the runs of `plan`, of which up to `jobs` run at a time, and prints what happens to them. Used by one
    thread.
    """

    def __init__(self, directory: Path, plan: Plan, finished: Sequence[PlannedRun], jobs: int, console: Console):
        self._directory = directory
        self._jobs = jobs
        self._plan = plan
        self._console = console
        self._finished = {run.name for run in finished}
        self._running: dict[str, PlannedRun] = {}
        self._begun_at: dict[str, int] = {}  # frames that a run had when its learner was started
        self._failed: dict[str, str] = {}
        self._live = Live(console=console, auto_refresh=False) if is_live_terminal(console) else None
        self._refreshed = 0.0
        # Of the runs that were finished here, start and last score included: what the runs to come will take.
        self._frames, self._seconds = 0, 0.0

    def start(self) -> None:
        """Begins the live display if it can be drawn."""
        if self._live:
            self._live.start()

    def stop(self) -> None:
        """Ends the live display; its last state stays on the screen."""
        if self._live:
            self._live.update(self._display(), refresh=True)
            self._live.stop()

    def note(self, text: str) -> None:
        """Prints a line that stays above the live display."""
        self._refreshed = 0.0  # what it says is shown below it, too
        self._console.print(Text(text), soft_wrap=True)

    def started(self, run: PlannedRun) -> None:
        self._running[run.name] = run
        self._begun_at[run.name] = self._status(run).frames
        self.note(f"started   {run.name}")

    def finished(self, run: PlannedRun, seconds: float) -> None:
        now = self._status(run)
        self._frames += now.frames - self._begun_at.pop(run.name, 0)
        self._seconds += seconds
        self._running.pop(run.name, None)
        self._finished.add(run.name)
        self.note(f"finished  {run.name} in {format_duration(seconds)}, {_speed(now.fps)}; {self._summary()}")

    def stopped(self, run: PlannedRun, reason: str) -> None:
        self._running.pop(run.name, None)
        self.note(f"stopped   {run.name}: {reason}")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self._running.pop(run.name, None)
        self._failed[run.name] = reason
        self.note(f"failed    {run.name}: {reason}; {self._summary()}")

    def stopping(self, signum: int, num_running: int) -> None:
        """Says that a signal has come and what happens now."""
        what = {0: "no run is in progress", 1: "stopping 1 run after a checkpoint"}.get(
            num_running, f"stopping {num_running} runs, each after a checkpoint"
        )
        self.note(f"{signal.Signals(signum).name}: {what}")

    def refresh(self) -> None:
        """Redraws the live display every few seconds."""
        if self._live and time.monotonic() - self._refreshed > _REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._live.update(self._display(), refresh=True)

    def _display(self) -> Group:
        statuses = {name: self._status(run) for name, run in self._running.items()}
        lines = [
            Text(
                f"  {name}  {_percent(now.frames, self._running[name].frames)}  "
                f"{(now.state == 'running' and now.reason) or _speed(now.fps)}"
            )
            for name, now in statuses.items()
        ]
        return Group(Text(self._summary(), style="bold"), *lines)

    def _status(self, run: PlannedRun) -> RunStatus:
        return run_files.status(RunDirectory(run.directory(self._directory)), run.frames)

    def _summary(self) -> str:
        """Runs done, running and failed, frames/s of those that are running, and time left of the whole study."""
        running = [self._status(run) for run in self._running.values()]
        speed = sum(now.fps or 0.0 for now in running)
        to_do = [run for run in self._plan.runs if run.name not in self._finished | self._failed.keys()]
        left = sum(run.frames for run in to_do) - sum(now.frames for now in running)
        of_each = self._frames / self._seconds if self._seconds else 0.0
        return ", ".join(
            [
                f"{len(self._finished)} of {len(self._plan.runs)} done",
                f"{len(running)} running",
                f"{len(self._failed)} failed",
                *([_speed(speed)] if speed else []),
                f"left {time_left(left, of_each * min(self._jobs, len(to_do)) or speed)}",
            ]
        )


def time_left(frames: int, frames_per_second: float) -> str:
    """How long `frames` take at the present speed of all running runs."""
    if frames <= 0:
        return format_duration(0)
    return format_duration(frames / frames_per_second) if frames_per_second else MISSING


def _percent(frames: int, total: int) -> str:
    return f"{frames:,} of {total:,} frames ({min(1.0, frames / total):.0%})"


def _speed(frames_per_second: float | None) -> str:
    return f"{frames_per_second:,.0f} frames/s" if frames_per_second else f"{MISSING} frames/s"


def status_lines(directory: Path, plan: Plan, now: float | None = None) -> list[str]:
    """The state of every run of a study, by its files, and a summary: for --status."""
    statuses = [run_files.status(RunDirectory(run.directory(directory)), run.frames, now) for run in plan.runs]
    width = max(len(run.name) for run in plan.runs)
    lines = []
    for run, each in zip(plan.runs, statuses, strict=True):
        facts = [] if each.state == "waiting" else [_percent(each.frames, run.frames)]
        facts += [each.reason or _speed(each.fps)] if each.state in ("running", "failed", "stopped") else []
        lines.append(f"{each.state:<9} {run.name:<{width}}  {', '.join(facts)}".rstrip())
    counts = [
        f"{number} {state}"
        for state in ("finished", "running", "failed", "stopped", "waiting")
        if (number := sum(each.state == state for each in statuses))
    ]
    running = [each for each in statuses if each.state == "running"]
    speed = sum(each.fps or 0.0 for each in running)
    frames = zip(plan.runs, statuses, strict=True)
    left = sum(max(0, run.frames - each.frames) for run, each in frames if each.state != "finished")
    runs = format_count(len(plan.runs), "run")
    return [*lines, f"{runs}: {', '.join(counts)}; {_speed(speed)}, left {time_left(left, speed)}"]
