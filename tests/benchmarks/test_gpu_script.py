"""The script of the GPU session, with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_paths_are_relative_to_the_callers_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$0 $PWD $PYTHONPATH $LD_LIBRARY_PATH" >>"$CALLS"\necho "$@"\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": "bin/python", "SITE": "site", "CALLS": str(tmp_path / "calls")}
    environment.pop("LD_LIBRARY_PATH", None)
    script = PROJECT / "benchmarks" / "gpu.sh"
    done = subprocess.run(["bash", script, "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "-m pytest" in (tmp_path / "out" / "tests.log").read_text()
    call = f"{python} {PROJECT} {PROJECT}:{tmp_path}/site {tmp_path}/site/.lib"
    assert (tmp_path / "calls").read_text().splitlines() == [call] * 2
