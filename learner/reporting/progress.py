"""What a person sees during a run: a live display on a terminal, a plain line per update in a pipe."""

import logging
import time
from collections import deque
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.config import Config
from common.output import is_live_terminal
from common.text import MISSING, format_duration, format_number, format_score

logger = logging.getLogger(__name__)

# Frames/s and the time left are means over this many updates.
RECENT_UPDATES = 20

Row = dict[str, Any]


class Progress:
    """Shows updates, scores and what is failing now. Called by the main thread; a thread of rich draws the display.

    Warnings are log records: `learner.reporting.logs` prints them on the same console.
    """

    def __init__(self, config: Config, console: Console):
        self._config = config
        self._console = console
        self._live: Live | None = None
        self._started = time.monotonic()
        self._times: deque[tuple[float, int]] = deque([(self._started, 0)], maxlen=RECENT_UPDATES + 1)
        self._row: Row = {}
        self._score: Row | None = None
        self._status = ""

    def start(self, frames: int) -> None:
        """Starts to measure the speed, at `frames`, and the live display if it can be drawn."""
        self._started = time.monotonic()
        self._times[0] = (self._started, frames)
        if is_live_terminal(self._console):
            self._live = Live(get_renderable=self._display, console=self._console, refresh_per_second=2)
            self._live.start()

    def note(self, text: str) -> None:
        """Prints a line that stays above the live display, and logs it."""
        logger.info(text)
        self._print(text)

    def set_status(self, last_errors: str) -> None:
        """Sets what is failing now, for the live display; "" clears it."""
        self._status = last_errors

    def update(self, row: Row) -> None:
        """Shows the metrics of one update."""
        self._row = row
        self._times.append((time.monotonic(), row["frames"]))
        if not self._live:
            self._print(self._line())

    def scored(self, row: Row) -> None:
        """Shows and logs a new score."""
        self._score = row
        line = f"score of policy_version {row['policy_version']}: {score_line(row)}"
        logger.info(line)
        if not self._live:
            self._print(line)

    def stop(self) -> None:
        """Ends the live display; its last state stays on the screen."""
        if self._live:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _frames_per_second(self) -> float:
        (then, frames_then), (now, frames_now) = self._times[0], self._times[-1]
        return (frames_now - frames_then) / (now - then) if now > then else 0.0

    def _time_left(self) -> str:
        speed, total = self._frames_per_second(), self._config.num_updates * self._config.batch_size
        return format_duration((total - self._times[-1][1]) / speed) if speed else MISSING

    def _line(self) -> str:
        row, config = self._row, self._config
        return (
            f"update {row['policy_version']}/{config.num_updates}  frames {row['frames']:,}  "
            f"{self._frames_per_second():,.0f} frames/s  left {self._time_left()}  lag {row['policy_lag']:.1f}  "
            f"return {format_number(row['episode_return'])}  loss {row['value_loss']:.3f}  "
            f"entropy {row['entropy']:.2f}  kl {row['approx_kl']:.4f}  "
            f"actors {row['actors_ready']}/{config.num_actors}"
        )

    def _display(self) -> Group:
        config, row, frames = self._config, self._row, self._times[-1][1]
        total = config.num_updates * config.batch_size
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"{config.env_name} {config.distribution_mode}", style="bold"),
            ProgressBar(total=total, completed=frames, width=40),
            f"{frames:,} of {total:,} frames, {format_duration(time.monotonic() - self._started)}",
        )
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(style="dim")
            table.add_column(min_width=14)
        table.add_row(
            *("frames/s", f"{self._frames_per_second():,.0f}", "time left", self._time_left()),
            *("update", f"{row.get('policy_version', MISSING)} of {config.num_updates}"),
        )
        table.add_row(
            *("episode return", format_number(row.get("episode_return"))),
            *("policy lag", format_number(row.get("policy_lag"))),
            *("actors ready", f"{row.get('actors_ready', MISSING)} of {config.num_actors}"),
        )
        lines: list[RenderableType] = [
            head,
            table,
            Text(f"last score  {score_line(self._score) if self._score else MISSING}"),
        ]
        if self._status:
            lines.append(Text(f"warning: {self._status}", style="yellow"))
        return Group(*lines)


def score_line(row: Row) -> str:
    """`train 6.50 [5.60, 7.40], held-out 5.50 [4.50, 6.50] (20 + 20 episodes, frames 163,840)`."""
    train, held_out = row["train"], row["held_out"]
    skipped = f", older checkpoints skipped: {row['skipped']}" if row.get("skipped") else ""
    return (
        f"train {format_score(train)}, held-out {format_score(held_out)} "
        f"({train['episodes']} + {held_out['episodes']} episodes, frames {row['frames']:,}){skipped}"
    )
