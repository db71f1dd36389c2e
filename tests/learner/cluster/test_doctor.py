"""The doctor's table can be read on a narrow terminal, and searched in a pipe."""

import subprocess
import sys
from pathlib import Path

import pytest

from learner.cluster import doctor
from learner.cluster.doctor import lines_of, show
from learner.cluster.machine_checks import Check

LONG = Check("run directory", "fatal", "/a/path " + "of many words " * 20, "choose another with --run-dir")


@pytest.mark.parametrize("width", [60, 80, 132])
def test_lines_fit_the_terminal_and_lose_nothing(width):
    lines = lines_of(LONG, width)
    assert max(map(len, lines)) <= width
    assert " ".join(" ".join(lines).split()) == f"{LONG.name} fatal {LONG.found.strip()} -> {LONG.remedy}"


def test_name_of_a_node_has_its_own_line():
    lines = lines_of(Check("node 10.0.0.1 (a-host)", "ok", "2 CPUs"), 80)
    assert lines[0] == "node 10.0.0.1 (a-host) ok" and lines[1].strip() == "2 CPUs"


def test_empty_address_is_refused_and_not_taken_for_no_cluster(capsys):
    with pytest.raises(SystemExit) as end:
        doctor.main(["--address", ""])
    assert end.value.code == 2
    assert "--address: expected auto or HOST:PORT, got an empty text" in capsys.readouterr().err


def test_pipe_gets_whole_lines(capsys):
    show([LONG, Check("path", "ok", "two\nlines")])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and out[0].endswith(LONG.found.strip()) and out[2].endswith("two lines")
    assert out[3] == "2 checks; fatal: 1, warnings: 0"


PROGRAM = """
from common.output import run_as_process
from learner.cluster import doctor
from learner.cluster.machine_checks import Check
doctor.check_local = lambda *arguments, **options: [Check("a", "ok", "b" * 99_999)]
run_as_process(lambda: doctor.main([]))
"""


@pytest.mark.parametrize(("redirection", "code"), [("> /dev/full", 1), ("| true", 141)])
def test_table_that_nobody_can_read_fails(redirection, code):
    shell = ["bash", "-c", f'"{sys.executable}" -c "$0" {redirection}; exit ${{PIPESTATUS[0]}}', PROGRAM]
    result = subprocess.run(shell, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=60)
    assert result.returncode == code, result.stderr
    assert ("cannot write to standard output" in result.stderr) == (code == 1) and "Traceback" not in result.stderr
