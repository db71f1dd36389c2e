"""Log records reach learner.log and the screen once; a failing disk or a flood of records does no harm."""

import io
import logging
import threading

import pytest
from rich.console import Console

from common.process import set_file_modes
from learner.reporting import logs
from learner.reporting.logs import MAX_PER_MINUTE_IN_FILE, MAX_PER_MINUTE_ON_SCREEN, LogFile, RateLimit, RunLogging

logger = logging.getLogger("learner.somewhere")


@pytest.fixture
def screen():
    return io.StringIO()


@pytest.fixture
def log_file(tmp_path):
    return tmp_path / "learner.log"


def record(message, *args, created=1000.0, name="learner.a"):
    made = logging.LogRecord(name, logging.WARNING, "", 0, message, args, None)
    made.created = created
    return made


def test_warnings_are_one_line_on_the_screen_and_have_tracebacks_in_the_file(screen, log_file):
    set_file_modes()
    with RunLogging(Console(file=screen)) as run_logging:
        run_logging.open(log_file)
        logger.info("joined %s", "a cluster")
        try:
            raise ValueError("broken")
        except ValueError:
            logger.warning("actor %d was replaced", 3, exc_info=True)
    assert screen.getvalue() == "warning: actor 3 was replaced\n"
    text = log_file.read_text()
    assert "INFO learner.somewhere: joined a cluster\n" in text
    assert "WARNING learner.somewhere: actor 3 was replaced\nTraceback" in text and "ValueError: broken" in text
    assert log_file.stat().st_mode & 0o777 == 0o600


def test_details_are_in_the_file_only(screen, log_file):
    with RunLogging(Console(file=screen)) as run_logging:
        run_logging.open(log_file)
        logger.warning("an actor failed", extra={"details": "its\nlog"})
    assert screen.getvalue() == "warning: an actor failed\n"
    assert log_file.read_text().endswith("WARNING learner.somewhere: an actor failed\nits\nlog\n")


def test_records_before_the_run_directory_are_written_when_it_exists(screen, log_file):
    with RunLogging(Console(file=screen)) as run_logging:
        logger.info("first")
        assert not log_file.exists()
        run_logging.open(log_file)
        assert "first" in log_file.read_text()
        logger.info("second")
        assert log_file.read_text().count("\n") == 2
    logger.warning("after the end")
    assert "after the end" not in log_file.read_text() + screen.getvalue()


def test_log_is_appended_to(screen, log_file):
    log_file.write_text("an earlier process\n")
    with RunLogging(Console(file=screen)) as run_logging:
        run_logging.open(log_file)
        logger.info("resumed")
    assert log_file.read_text().startswith("an earlier process\n") and "resumed" in log_file.read_text()


def test_records_that_a_failing_disk_refuses_are_written_later(log_file, monkeypatch, capsys):
    monkeypatch.setattr(logs, "MAX_WAITING", 3)
    handler = LogFile()
    handler.path = log_file
    log_file.mkdir()  # fails for root as well
    for number in range(5):
        handler.handle(record("record %d", number))
    assert handler.lost == 2
    log_file.rmdir()
    handler.handle(record("record 5"))
    lines = log_file.read_text().splitlines()
    assert lines[0] == "3 earlier records could not be written"
    assert [line[-1] for line in lines[1:]] == ["3", "4", "5"] and handler.lost == 0
    assert capsys.readouterr() == ("", "")


def test_records_of_one_template_are_limited_per_minute_and_the_rest_is_counted(log_file):
    handler = LogFile()
    handler.path = log_file
    limit = RateLimit(handler, per_minute=2)
    for number in range(5):
        handler.handle(record("actor %d was replaced", number, created=1000.0 + number))
    handler.handle(record("something else", created=1010.0))
    handler.handle(record("actor %d was replaced", 9, created=1010.0, name="learner.b"))
    handler.handle(record("actor %d was replaced", 7, created=1061.0))
    limit.report_suppressed()
    messages = [line.partition("WARNING ")[2] for line in log_file.read_text().splitlines()]
    assert messages == [
        "learner.a: actor 0 was replaced",
        "learner.a: actor 1 was replaced",
        "learner.a: something else",
        "learner.b: actor 9 was replaced",
        "learner.a: 3 more messages like 'actor %d was replaced' were suppressed",
        "learner.a: actor 7 was replaced",
    ]


def test_flood_is_limited_on_the_screen_and_in_the_file(screen, log_file):
    def flood():
        for number in range(100):
            logger.warning("again %d", number)

    with RunLogging(Console(file=screen)) as run_logging:
        run_logging.open(log_file)
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert screen.getvalue().count("warning: again") == MAX_PER_MINUTE_ON_SCREEN
    assert f"{400 - MAX_PER_MINUTE_ON_SCREEN} more messages like 'again %d' were suppressed" in screen.getvalue()
    assert log_file.read_text().count(": again") == MAX_PER_MINUTE_IN_FILE


def test_unexpected_exception_is_in_the_file_and_not_twice_on_the_screen(screen, log_file):
    def fail():
        with RunLogging(Console(file=screen)) as run_logging:
            run_logging.open(log_file)
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail()
    assert "CRITICAL learner: unexpected error\nTraceback" in log_file.read_text()
    assert screen.getvalue() == ""


def test_terminal_shows_warnings_with_their_time_and_without_tracebacks(screen):
    screen.isatty = lambda: True
    with RunLogging(Console(file=screen, width=100, _environ={"TERM": "xterm"})):
        try:
            raise ValueError("broken")
        except ValueError:
            logger.warning("the evaluator died", exc_info=True)
    assert "WARNING" in screen.getvalue() and "the evaluator died" in screen.getvalue()
    assert "Traceback" not in screen.getvalue()
