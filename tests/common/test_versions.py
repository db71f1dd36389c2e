"""Versions of the code and the libraries, and how those of two processes differ."""

import shutil
import subprocess
import sys
from pathlib import Path

from common.versions import PACKAGES, code_version, differences, installed_versions, software

ROOT = Path(__file__).parents[2]


def version_of_copy(directory):
    command = [sys.executable, "-c", "from common.versions import code_version; print(code_version())"]
    return subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": str(directory)}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_code_version_changes_with_one_byte_in_any_package(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of_copy(tmp_path) == code_version()
    seen = {code_version()}
    for package in PACKAGES:
        with open(tmp_path / package / "__init__.py", "a") as file:
            file.write("#")
        seen.add(version_of_copy(tmp_path))
    assert len(seen) == 1 + len(PACKAGES)


def test_differences_name_both_versions_of_what_differs():
    theirs = {**software(), "heldout's code": "other", "numpy": "0.1"}
    code, numpy = differences(theirs, software())
    assert code == f"heldout's code {code_version()} (the learner has other)"
    assert numpy.startswith("numpy ") and numpy.endswith(" (the learner has 0.1)")
    assert differences(software(), software()) == []


def test_differences_include_a_library_that_only_one_side_has():
    assert differences({"zstandard": "0.25.0"}, {}) == ["zstandard none (the learner has 0.25.0)"]
    assert differences({}, {"zstandard": "0.25.0"}) == ["zstandard 0.25.0 (the learner has none)"]


def test_installed_versions_leave_out_what_is_missing():
    assert installed_versions("torch", "no-such-distribution").keys() == {"torch"}


def test_software_has_one_version_for_all_builds_of_torch():
    assert "+" not in software()["torch"]
