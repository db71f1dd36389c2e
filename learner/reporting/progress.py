"""What a person sees while a run goes on: a live display on a terminal, a plain line per update elsewhere."""

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.config import Config

# Updates over which frames/s and time left are averaged.
RECENT_UPDATES = 20


@dataclass(slots=True)
class Progress:
    """Shows updates and scores. Warnings and notes stay above the live display."""

    config: Config
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    console: Console = field(init=False)
    live: Live | None = field(init=False, default=None)
    times: deque[tuple[float, int]] = field(init=False)
    started: float = field(init=False, default=0.0)
    score: dict[str, Any] | None = field(init=False, default=None)
    warning: str | None = field(init=False, default=None)
    problem: str = field(init=False, default="")
    row: dict[str, Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.console = Console(file=self.stream, highlight=False)
        self.times = deque(maxlen=RECENT_UPDATES + 1)

    def start(self, frames: int) -> None:
        """Begins to measure speed from `frames`, and the live display where there is a terminal."""
        self.started = time.monotonic()
        self.times.append((self.started, frames))
        if self.console.is_terminal:
            self.live = Live(get_renderable=self._display, console=self.console, refresh_per_second=2)
            self.live.start()

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(Text(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """A line that stays, and stands in the live display until the run ends."""
        self.warning = text
        self.note(f"warning: {text}")

    def standing(self, problem: str) -> None:
        """What is wrong now: told once as a warning, taken out of the live display when it has passed ("")."""
        if problem == self.problem:
            return
        if problem:
            self.warn(problem)
        elif self.warning == self.problem:
            self.warning = None
        self.problem = problem

    def update(self, row: dict[str, Any]) -> None:
        """Shows the metrics of one completed update."""
        self.row = row
        self.times.append((time.monotonic(), row["frames"]))
        if not self.live:
            self.note(self._line())

    def evaluated(self, row: dict[str, Any]) -> None:
        """Shows a new score."""
        self.score = row
        if not self.live:
            self.note(f"evaluation of policy_version {row['policy_version']}: {scores_text(row)}{skipped_text(row)}")

    def stop(self) -> None:
        """Ends the live display; what it showed last stays on the screen."""
        if self.live:
            self.live.stop()
            self.live = None

    def frames_per_second(self) -> float:
        """Over the recent updates."""
        (then, frames_then), (now, frames_now) = self.times[0], self.times[-1]
        return (frames_now - frames_then) / (now - then) if now > then else 0.0

    def _time_left(self) -> str:
        speed = self.frames_per_second()
        if not speed or self.row is None:
            return "-"
        return duration((self.config.num_updates - self.row["policy_version"]) * self.config.batch_size / speed)

    def _line(self) -> str:
        row = self.row
        assert row is not None
        return (
            f"update {row['policy_version']}/{self.config.num_updates}  frames {row['frames']:,}  "
            f"{self.frames_per_second():,.0f} frames/s  left {self._time_left()}  lag {row['policy_lag']:.1f}  "
            f"return {_number(row['episode_return'])}  loss {row['value_loss']:.3f}  entropy {row['entropy']:.2f}  "
            f"kl {row['approx_kl']:.4f}  actors {row['actors_alive']}/{self.config.num_actors}"
        )

    def _display(self) -> Group:
        config, row = self.config, self.row or {}
        frames = row.get("frames", self.times[-1][1])
        total = config.num_updates * config.batch_size
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"{config.env_name} {config.distribution_mode}", style="bold"),
            ProgressBar(total=total, completed=frames, width=40),
            f"{frames:,} of {total:,} frames, {duration(time.monotonic() - self.started)}",
        )
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(style="dim")
            table.add_column(min_width=14)
        alive = f"{row.get('actors_alive', '-')} of {config.num_actors}"
        table.add_row(
            "frames/s", f"{self.frames_per_second():,.0f}", "time left", self._time_left(), "update",
            f"{row.get('policy_version', '-')} of {config.num_updates}",
        )  # fmt: skip
        table.add_row(
            "episode return", _number(row.get("episode_return")), "policy lag", _number(row.get("policy_lag")),
            "actors alive", alive,
        )  # fmt: skip
        lines: list[RenderableType] = [
            head,
            table,
            Text(f"last score  {scores_text(self.score)}{skipped_text(self.score)}" if self.score else "last score  -"),
        ]
        if self.warning:
            lines.append(Text(f"warning: {self.warning}", style="yellow"))
        return Group(*lines)


def scores_text(row: dict[str, Any]) -> str:
    """`train 6.50 +- 0.90, held-out 5.50 +- 1.00 (20 + 20 episodes, frames 163,840)`."""
    train, held_out = row["train"], row["held_out"]
    return (
        f"train {_score(train)}, held-out {_score(held_out)} "
        f"({train['episodes']} + {held_out['episodes']} episodes, frames {row['frames']:,})"
    )


def skipped_text(row: dict[str, Any]) -> str:
    """How many checkpoints were passed over to score this one, if any."""
    return f", {row['skipped']} skipped before it" if row.get("skipped") else ""


def duration(seconds: float) -> str:
    """`1h02m`, `3m20s` or `12s`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def _score(split: dict[str, Any]) -> str:
    stderr = split.get("stderr")
    return f"{split['mean']:.2f}" + (f" +- {stderr:.2f}" if stderr is not None else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
