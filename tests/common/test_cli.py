import argparse
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.cli import (
    USAGE_EXIT_CODE,
    OneLineParser,
    UsageError,
    at_least_one,
    directory_path,
    import_module,
    level_seed,
    number,
    require_current_directory,
    seconds,
    whole_number,
)
from common.config import ConfigError
from tests.conftest import wait_until

PROJECT = Path(__file__).parents[2]
# What each program is asked to do.
ARGUMENTS = {"learner": ["doctor"], "evaluator": ["score", "."]}


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole_number, "-3", -3),
        (whole_number, "10e6", 10_000_000),
        (whole_number, "200_000", 200_000),
        (whole_number, "2.0", 2),
        (whole_number, "1e23", 10**23),  # as a float it is 99999999999999991611392
        (at_least_one, "1", 1),
        (level_seed, "0", 0),
        (level_seed, "2147483646", 2147483646),
        (number, "-0.5", -0.5),
        (seconds, "0.1", 0.1),
        (seconds, "86400", 86400.0),
    ],
)
def test_number_is_read(read: Any, text: str, value: float) -> None:
    assert read(text) == value and type(read(text)) is type(value)


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (whole_number, "2.5", "expected a whole number, got '2.5'"),
        (whole_number, "4.00000000000000000001", "expected a whole number, got '4.00000000000000000001'"),
        (whole_number, "1e-400", "expected a whole number, got '1e-400'"),
        (whole_number, "1e-99999999999999999999", "expected a whole number, got '1e-99999999999999999999'"),
        (whole_number, "2__0", "expected a whole number, got '2__0'"),
        (whole_number, "inf", "expected a whole number, got 'inf'"),
        (whole_number, "", "expected a whole number, got ''"),
        (whole_number, "nan", "expected a whole number, got 'nan'"),
        (whole_number, "1e999", "expected a whole number, got '1e999'"),
        (at_least_one, "0", "expected a whole number of at least 1, got '0'"),
        (level_seed, "x", "expected a whole number from 0 to 2147483646, got 'x'"),
        (level_seed, "2147483647", "expected a whole number from 0 to 2147483646, got '2147483647'"),
        (number, "much", "expected a number, got 'much'"),
        (seconds, "0", "expected a number of seconds from 0.1 to 86400, got '0'"),
        (seconds, "nan", "expected a number of seconds from 0.1 to 86400, got 'nan'"),
        (seconds, "inf", "expected a number of seconds from 0.1 to 86400, got 'inf'"),
    ],
)
def test_wrong_number_is_named_with_what_was_expected(read: Any, text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as raised:
        read(text)
    assert str(raised.value) == message


def test_parser_reports_an_error_in_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="program")
    parser.add_argument("--seed", type=level_seed)
    with pytest.raises(SystemExit) as raised:
        parser.parse_args(["--seed", "x"])
    assert raised.value.code == USAGE_EXIT_CODE == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "program: --seed: expected a whole number from 0 to 2147483646, got 'x'\n"


def test_config_error_is_a_usage_error() -> None:
    assert issubclass(ConfigError, UsageError)


def test_path_that_cannot_be_written_in_utf8_is_refused() -> None:
    assert directory_path("läuf 'a'\n%s") == Path("läuf 'a'\n%s")
    with pytest.raises(argparse.ArgumentTypeError, match=r"expected a path in UTF-8, got 'l\\udce4uf'"):
        directory_path(b"l\xe4uf".decode("utf-8", "surrogateescape"))


def test_empty_text_is_not_the_current_directory() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a path, got an empty text"):
        directory_path("")


def test_deleted_current_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> str:
        raise FileNotFoundError(2, "No such file or directory")

    require_current_directory()
    monkeypatch.setattr(os, "getcwd", gone)
    with pytest.raises(UsageError, match="current directory no longer exists"):
        require_current_directory()


@pytest.mark.parametrize(
    ("error", "variable", "line"),
    [
        (ImportError("No module named 'ray'"), None, "install them"),
        (ImportError("No module named 'ray'"), "PYTHONPATH", "unset any of these that you do not need: PYTHONPATH"),
        (ValueError("\nInvalid log settings\nand more"), "TORCH_LOGS", "Invalid log settings; unset any of these"),
        (ValueError("a bug"), None, None),
    ],
)
def test_failed_import_names_the_reason_and_suspicious_variables(
    error: Exception, variable: str | None, line: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(os, "environ", {} if variable is None else {variable: "x"})
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(type(error) if line is None else UsageError) as raised:
        import_module("learner.main")
    assert raised.value is error if line is None else line in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("program", ["learner", "evaluator"])
def test_program_whose_libraries_cannot_be_imported_says_so_in_one_line(program: str, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('not the real torch')\n")
    result = subprocess.run(
        [sys.executable, "-m", program, *ARGUMENTS[program]],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == USAGE_EXIT_CODE and len(result.stderr.splitlines()) == 1, result.stderr
    assert "not the real torch" in result.stderr and "PYTHONPATH" in result.stderr


SLOW_TORCH = """
import time
open({marker!r}, "w").close()
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise ImportError("No module named 'torch'")
"""


@pytest.mark.parametrize("program", ["learner", "evaluator"])
def test_ctrl_c_ends_a_program_that_imports_its_libraries(
    program: str, tmp_path: Path, popen: Callable[..., subprocess.Popen[str]]
) -> None:
    marker = tmp_path / "importing"
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(SLOW_TORCH.format(marker=str(marker)))
    process = popen(
        [sys.executable, "-m", program, *ARGUMENTS[program]],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(marker.exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
