"""What a person sees: plain lines in a pipe, a live display on a terminal."""

import io
import logging

import pytest
from rich.console import Console

from common.resolution import resolve
from learner.reporting.progress import Progress, score_line

CONFIG = resolve("lab", {"num_actors": 2, "envs_per_actor": 2, "unroll_length": 16, "total_frames": 640})
SCORE = {
    "policy_version": 4, "frames": 256, "skipped": 1,
    "train": {"mean": 6.5, "interval": [5.25, 7.75], "episodes": 20},
    "held_out": {"mean": 5.5, "interval": None, "episodes": 20},
}  # fmt: skip
SCORE_LINE = "train 6.50 [5.25, 7.75], held-out 5.50 (20 + 20 episodes, frames 256), older checkpoints skipped: 1"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def row(version, **values):
    return {
        "policy_version": version, "frames": 64 * version, "policy_lag": 0.5, "episode_return": None,
        "value_loss": 0.25, "entropy": 2.5, "approx_kl": 0.001, "actors_ready": 1, **values,
    }  # fmt: skip


@pytest.fixture
def new_progress(monkeypatch):
    """Returns (progress, what is on the screen so far); an update takes two seconds."""
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("learner.reporting.progress.time.monotonic", lambda: float(next(now)))

    def new(terminal, **environment):
        screen = Terminal() if terminal else io.StringIO()
        return Progress(CONFIG, Console(file=screen, width=120, _environ={"TERM": "xterm", **environment})), screen

    return new


def test_pipe_gets_a_line_per_update_and_score(new_progress):
    progress, screen = new_progress(terminal=False)
    progress.start(0)
    progress.update(row(1))
    progress.update(row(2, episode_return=7.126))
    progress.scored(SCORE)
    progress.set_status("the disk is full")  # the log record of the cause is printed, not the status
    progress.stop()
    assert screen.getvalue().splitlines() == [
        "update 1/10  frames 64  32 frames/s  left 18 s  lag 0.5  return -  loss 0.250  entropy 2.50  kl 0.0010  "
        "actors 1/2",
        "update 2/10  frames 128  32 frames/s  left 16 s  lag 0.5  return 7.13  loss 0.250  entropy 2.50  kl 0.0010  "
        "actors 1/2",
        f"score of policy_version 4: {SCORE_LINE}",
    ]


def test_speed_of_a_resumed_run_counts_from_its_start(new_progress):
    progress, screen = new_progress(terminal=False)
    progress.start(128)
    progress.update(row(3))
    assert "32 frames/s  left 14 s" in screen.getvalue()


def test_terminal_shows_the_newest_update_score_and_what_fails_now(new_progress):
    progress, _ = new_progress(terminal=True)

    def displayed():
        console = Console(file=io.StringIO(), width=120)
        console.print(progress._display())
        return console.file.getvalue()

    assert "0 of 640 frames" in displayed() and "last score  -" in displayed()
    progress.update(row(2, episode_return=7.126))
    progress.scored(SCORE)
    progress.set_status("the disk is full")
    for text in ("coinrun easy", "128 of 640 frames", "2 of 10", "7.13", "actors ready", "1 of 2", SCORE_LINE):
        assert text in displayed()
    assert "warning: the disk is full" in displayed()
    progress.set_status("")
    assert "warning" not in displayed()


def test_live_display_ends_with_its_last_state(new_progress):
    progress, screen = new_progress(terminal=True)
    progress.start(0)
    progress.update(row(5))
    progress.stop()
    assert "320 of 640 frames" in screen.getvalue() and "update 5/10" not in screen.getvalue()


def test_note_is_printed_and_logged_once(new_progress, caplog):
    progress, screen = new_progress(terminal=False)
    with caplog.at_level(logging.INFO, "learner"):
        progress.note("run directory /x")
    assert screen.getvalue() == "run directory /x\n" and caplog.messages == ["run directory /x"]


def test_score_without_skipped_checkpoints_says_nothing_about_them():
    assert score_line({**SCORE, "skipped": 0}).endswith("frames 256)")


@pytest.mark.parametrize(
    ("terminal", "environment"),
    [(True, {"TERM": "dumb"}), (False, {"FORCE_COLOR": "1"}), (True, {"TTY_INTERACTIVE": "0"})],
)
def test_where_no_display_can_be_drawn_each_update_is_a_line(new_progress, terminal, environment):
    progress, screen = new_progress(terminal, **environment)
    progress.start(0)
    progress.update(row(1))
    progress.update(row(2))
    progress.stop()
    assert [line[:12] for line in screen.getvalue().splitlines()] == ["update 1/10 ", "update 2/10 "]
