"""Output that nobody can read: training goes on, a command whose output is its result fails."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.output import GuardedStream, OutputError, checked_output, harmless_output, make_console

PROJECT = Path(__file__).parents[2]
PROGRAM = """
import logging, sys
from common.output import CONTEXT, run_as_process
logging.basicConfig(filename=sys.argv[1], level=logging.INFO, format="%(message)s")
def main():
    with CONTEXT():
        print("x" * 200_000)
        print("a line", file=sys.stderr)
        sys.stdout.flush()
    logging.info("went on")
    return 3
run_as_process(main)
"""
BROKEN = {
    "full disk": ("> /dev/full 2> /dev/full", "No space left on device"),
    "closed pipe": ("2>&1 | true", "Broken pipe"),
    "closed descriptors": (">&- 2>&- <&-", None),
    # It ends when the program has ended, or after a minute.
    "reader that does not read": (
        '2>&1 | for _ in {1..600}; do grep -qs "went on" "$1" && break; sleep 0.1; done',
        "nobody reads it",
    ),
}


def run_program(context, redirections, log):
    program = PROGRAM.replace("CONTEXT", context)
    command = f'"{sys.executable}" -c "$0" "$1" {redirections}; exit ${{PIPESTATUS[0]}}'
    shell = ["bash", "-c", command, program, log]
    return subprocess.run(shell, cwd=PROJECT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("case", BROKEN)
def test_harmless_output_changes_neither_course_nor_exit_code(case, tmp_path):
    redirections, logged = BROKEN[case]
    result = run_program("harmless_output", redirections, tmp_path / "log")
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[-1] == "went on"
    expected = [f"standard {name} cannot be written to and is ignored: {logged}" for name in ("output", "error")]
    assert lines[:-1] == (expected if logged else [])


@pytest.mark.parametrize("case", ["full disk", "closed pipe", "closed descriptors"])
def test_checked_output_is_an_error_if_it_was_not_written(case, tmp_path):
    result = run_program("checked_output", BROKEN[case][0], tmp_path / "log")
    assert result.returncode == 1 and (tmp_path / "log").read_text() == ""


def test_closed_descriptors_are_not_taken_by_files(tmp_path):
    program = (
        "from common.output import harmless_output\n"
        f"with harmless_output(), open({str(tmp_path / 'file')!r}, 'w') as file: assert file.fileno() > 2"
    )
    subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$0" >&- 2>&- <&-', program], cwd=PROJECT, check=True)


def test_characters_that_cannot_be_encoded_are_escaped():
    raw = io.BytesIO()
    stream = GuardedStream(io.TextIOWrapper(raw, encoding="ascii"), pytest.fail, can_drop=True)
    print("─ é", file=stream)
    assert raw.getvalue() == b"\\u2500 \\xe9\n"


def test_lines_are_written_again_when_the_reader_reads_again(monkeypatch):
    reader, writer = os.pipe()
    errors = []
    with open(writer, "w") as file:
        monkeypatch.setattr(sys, "__stdout__", file)
        stream = GuardedStream(file, errors.append, can_drop=True)
        while not errors:
            print("x" * 5000, file=stream)
        os.read(reader, 1 << 20)
        print("the newest line", file=stream)
        assert os.read(reader, 1 << 20).endswith(b"the newest line\n") and len(errors) == 1
    os.close(reader)


def test_the_streams_of_a_caller_are_given_back(monkeypatch):
    for context in (harmless_output, checked_output):
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        with context():
            print("a line")
            sys.stdout.write("no end of line")
        assert sys.stdout is out and out.getvalue() == "a line\nno end of line"


def test_a_stream_that_was_closed_is_an_output_error(monkeypatch):
    out = io.StringIO()
    out.close()
    monkeypatch.setattr(sys, "stdout", out)
    with pytest.raises(OutputError, match="closed file"), checked_output():
        print("a line")


@pytest.mark.parametrize("variables", [{"COLUMNS": "0"}, {"COLUMNS": "1", "LINES": "0"}, {"COLUMNS": "garbage"}])
def test_size_of_the_terminal_that_makes_no_sense_hides_no_line(variables, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_console().print("a line of text")
    assert capsys.readouterr().out == "a line of text\n"
