import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.cli import UsageError
from common.config import Config
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.commands import watch, watch_view
from evaluator.commands.parser import parse
from evaluator.commands.watch_view import Status
from tests.conftest import PATIENCE

PROJECT = Path(__file__).parents[3]
PROGRAM = """
import signal, sys
from evaluator.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # children of a background job inherit that it is ignored
sys.exit(main())
"""
Popen = Callable[..., subprocess.Popen[bytes]]
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def score(mean: float, low: float, high: float) -> dict[str, Any]:
    rates = {"normalized": mean / 10, "success_rate": mean / 10, "timeout_rate": 0.0}
    return {"mean": mean, "interval": [low, high], "levels": 20, "episodes": 20, **rates}


def row(version: int, validation: float = 4.0, **others: Any) -> dict[str, Any]:
    held_out = score(validation, validation - 1, validation + 1)
    return {
        "policy_version": version,
        "frames": version * 16384,
        "train": score(6.5, 6.0, 7.04),
        "validation": held_out,
        "held_out": held_out,
        "held_out_split": "validation",
        "generalization_gap": 6.5 - validation,
        "seconds": 22.4,
        "policy_sha256": f"{version}",
        "scoreboard": {"validation": {"solved": 15, "newly_solved": 2, "forgotten": 1, "never_solved": 3}},
        "updates_behind": 3,
        "skipped": 1,
        **others,
    }


def metrics(version: int, moment: float) -> dict[str, Any]:
    return {"policy_version": version, "frames": version * 16384, "fps": 251.4, "time": moment}


@pytest.fixture
def run(config: Config, tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    return run


def run_command(*arguments: object) -> None:
    watch.run(parse(["watch", *map(str, arguments)]))


def shown(table: Any, width: int) -> list[str]:
    stream = StringIO()
    Console(file=stream, width=width).print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines() if line.strip()]


def words(line: str) -> str:
    return " ".join(line.split())


def test_missing_interval_is_explained() -> None:
    once = row(10)
    once["train"] |= {"interval": None, "no_interval": "one episode per level"}
    assert watch_view.why_no_interval(once) == "train: no interval, one episode per level"
    assert "train 6.50, validation 4.00 [3.00, 5.00], gap 2.50" in watch_view.evaluation_line(once, False)
    assert watch_view.why_no_interval(row(10)) == ""


def test_status_shows_how_far_the_run_is(config: Config) -> None:
    assert watch_view.status(config, [], None) == Status("leaper easy, preset lab", "no update yet")
    total = config.num_updates * config.batch_size
    rows = [metrics(version, 100.0 * version) for version in (1, 2, 3)]
    assert watch_view.status(config, rows, 12.4) == Status(
        "leaper easy, preset lab",
        f"49,152 of {total:,} frames (0%), update 3 of {config.num_updates}, 251 frames/s, last update 12 s ago",
    )


def test_status_warns_when_several_usual_updates_are_missing(config: Config) -> None:
    rows = [metrics(version, 100.0 * version) for version in range(1, 9)]
    assert watch_view.stale_after(rows) == 500.0
    assert watch_view.status(config, rows, 499.0).warning is None
    assert watch_view.status(config, rows, 501.0).warning == "no update for 8 min 21 s: is the run still alive?"
    quick = [metrics(version, 0.1 * version) for version in range(1, 9)]
    assert watch_view.stale_after(quick) == 60.0
    assert watch_view.stale_after(rows[:1]) == 300.0


def test_status_of_a_finished_run_has_no_warning(config: Config) -> None:
    status = watch_view.status(config, [metrics(config.num_updates, 0.0)], 1e6)
    assert status.warning is None and status.progress.endswith("training has finished")


def test_table_shows_the_newest_evaluations_and_marks_the_best() -> None:
    rows = [row(version) for version in range(0, 200, 10)]
    lines = shown(watch_view.evaluation_table(rows, rows[-2], 120), 120)
    assert words(lines[0]) == "version frames train [95 %] validation [95 %] gap solved seconds behind skipped"
    assert len(lines) == 2 + watch_view.SHOWN_EVALUATIONS
    assert words(lines[-1]) == "190 3,112,960 6.50 [6.00, 7.04] 4.00 [3.00, 5.00] 2.50 15/20 +2 -1 22 3 1"
    assert [words(line).split()[1] for line in lines if "* " in line] == ["180"]


@pytest.mark.parametrize(
    ("width", "last_column"),
    [(120, "skipped"), (93, "behind"), (80, "seconds"), (76, "solved"), (66, "gap"), (20, "validation [95 %]")],
)
def test_table_leaves_out_the_last_columns_where_the_terminal_is_narrow(width: int, last_column: str) -> None:
    rows = [row(version) for version in (0, 1520)]
    table = watch_view.evaluation_table(rows, rows[1], width)
    lines = shown(table, max(width, 60))
    assert lines[0].endswith(last_column)
    assert words(lines[-1]).startswith("* 1520 24,903,680 6.50 [6.00, 7.04] 4.00 [3.00, 5.00]")
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)


def test_plain_line_has_every_fact() -> None:
    assert watch_view.evaluation_line(row(10), is_best=True) == (
        "evaluation of policy_version 10, 163,840 frames: train 6.50 [6.00, 7.04], validation 4.00 [3.00, 5.00], "
        "gap 2.50, solved 15 of 20 (2 newly, 1 forgotten), 22 s, 3 updates behind, 1 skipped before it, best so far"
    )
    quiet = watch_view.evaluation_line(row(10, updates_behind=0, skipped=0), is_best=False)
    assert quiet.endswith("1 forgotten), 22 s")


def test_rows_file_is_read_only_after_a_change_without_torn_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    path = run.evaluations
    rows = watch.RowsFile(path, run.read_evaluations)
    assert not rows.refresh() and rows.rows == []
    for version in (10, 0):
        append_jsonl(path, row(version))
    with open(path, "a") as file:
        file.write('{"policy_version": 20, "fra')
    assert rows.refresh()
    assert [entry["policy_version"] for entry in rows.rows] == [0, 10]
    with monkeypatch.context() as patch:
        patch.setattr(rows, "read", lambda: pytest.fail("read without need"))
        assert not rows.refresh()
    append_jsonl(path, row(20))
    assert rows.refresh() and len(rows.rows) == 3
    path.unlink()
    assert rows.refresh() and rows.rows == []


def test_age_uses_this_machines_clock_after_an_update_was_seen_to_arrive(run: RunDirectory) -> None:
    watched = watch.WatchedRun(
        watch.RowsFile(run.metrics, run.read_metrics), watch.RowsFile(run.evaluations, run.read_evaluations)
    )
    now = time.time()
    assert watched.age(now) is None
    append_jsonl(run.metrics, metrics(1, now - 30))
    watched.refresh()
    assert watched.age(now) == pytest.approx(30)
    append_jsonl(run.metrics, metrics(2, now + 7200))  # the learner's clock is two hours ahead
    watched.refresh()
    assert watched.age(time.time() + 40) == pytest.approx(40, abs=5)


def test_age_uses_this_machines_clock_for_the_first_update_too(run: RunDirectory) -> None:
    watched = watch.WatchedRun(
        watch.RowsFile(run.metrics, run.read_metrics), watch.RowsFile(run.evaluations, run.read_evaluations)
    )
    watched.refresh()
    append_jsonl(run.metrics, metrics(1, time.time() - 7200))
    watched.refresh()
    assert watched.age(time.time()) == pytest.approx(0, abs=5)


def test_without_a_terminal_each_evaluation_is_a_line_in_order(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    for version, validation in ((10, 5.0), (0, 1.0), (20, 4.0)):
        append_jsonl(run.evaluations, row(version, validation))
    append_jsonl(run.metrics, metrics(20, time.time()))
    run_command(run.path, "--once")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "leaper easy, preset lab" and "update 20 of" in lines[1]
    assert [re.findall(r"policy_version (\d+)", line) for line in lines[2:]] == [["0"], ["10"], ["20"]]
    assert [line.endswith("best so far") for line in lines[2:]] == [False, True, False]


def test_without_a_terminal_new_evaluations_are_printed_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        lambda: None,
        lambda: append_jsonl(run.evaluations, row(0)),
        lambda: None,
        lambda: append_jsonl(run.evaluations, row(10)),
        lambda: None,
    ]
    append_jsonl(run.metrics, metrics(10, 1000.0))
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr("evaluator.commands.watch.time.sleep", sleep)
    with pytest.raises(KeyboardInterrupt):
        run_command(run.path, "--interval", "0.5")
    assert set(slept) == {0.5}
    lines = capsys.readouterr().out.splitlines()
    assert "update 10 of" in lines[1] and lines[2] == "no evaluations yet"
    assert lines[3].startswith("no update for") and lines[3].endswith("is the run still alive?")
    assert [line.split(",")[0] for line in lines[4:]] == [
        "evaluation of policy_version 0",
        "evaluation of policy_version 10",
    ]


def test_lines_say_once_why_an_interval_is_missing(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    for version in (0, 10, 20):
        once = row(version)
        once["train"] |= {"interval": None, "no_interval": "one episode per level"}
        append_jsonl(run.evaluations, once)
    run_command(run.path, "--once")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[-4:]] == [
        "evaluation of policy_version 0",
        "train: no interval",
        "evaluation of policy_version 10",
        "evaluation of policy_version 20",
    ]


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_invalid_interval_is_refused(run: RunDirectory, interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command(run.path, f"--interval={interval}")
    assert "--interval" in capsys.readouterr().err


def test_directory_without_a_run_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run directory \(it has no config.json\)"):
        run_command(tmp_path, "--once")
    (tmp_path / "config.json").write_text(json.dumps({"settings": {}}))
    with pytest.raises(UsageError, match="another version of heldout"):
        run_command(tmp_path, "--once")


class Terminal:
    """`watch` on a pseudo-terminal, with its output so far."""

    def __init__(self, popen: Popen, run: RunDirectory, *arguments: str):
        self.output = ""
        self.master, terminal = pty.openpty()
        self.process = popen(
            [sys.executable, "-c", PROGRAM, "watch", str(run.path), *arguments],
            cwd=PROJECT,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110", "LINES": "30"},
        )
        os.close(terminal)

    def read_until(self, text: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < deadline, f"{text!r} not found in the output:\n{self.output}"
            if select.select([self.master], [], [], 0.2)[0]:
                self.output += os.read(self.master, 65536).decode(errors="replace")

    def read_to_the_end(self) -> int:
        try:
            while data := os.read(self.master, 65536):
                self.output += data.decode(errors="replace")
        except OSError:  # the other end is closed
            pass
        finally:
            os.close(self.master)
        return self.process.wait(timeout=PATIENCE)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_a_terminal_the_table_grows_and_the_cursor_returns(
    run: RunDirectory, popen: Popen, number: signal.Signals, exit_code: int
) -> None:
    terminal = Terminal(popen, run, "--interval", "0.1")
    terminal.read_until("no evaluations yet")
    append_jsonl(run.metrics, metrics(10, time.time()))
    append_jsonl(run.evaluations, row(10))
    terminal.read_until("15/20 +2 -1")
    terminal.read_until("* best")
    assert "update 10 of" in terminal.output
    terminal.process.send_signal(number)
    assert terminal.read_to_the_end() == exit_code
    assert HIDE_CURSOR in terminal.output
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)
    assert "Traceback" not in terminal.output


def test_once_on_a_terminal_shows_the_table_and_exits(run: RunDirectory, popen: Popen) -> None:
    append_jsonl(run.evaluations, row(10))
    terminal = Terminal(popen, run, "--once")
    assert terminal.read_to_the_end() == 0
    assert "15/20 +2 -1" in terminal.output and HIDE_CURSOR not in terminal.output
