"""The same code has the same version; one other byte does not."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.versions import PACKAGES, CodeDiffers, code_version, differences, require_same_software, software

ROOT = Path(__file__).parents[2]


def version_of_copy(directory):
    command = [sys.executable, "-c", "from common.versions import code_version; print(code_version())"]
    return subprocess.run(
        command, cwd=directory, env={"PYTHONPATH": str(directory)}, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_one_other_byte_in_any_package_is_another_version(tmp_path):
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert version_of_copy(tmp_path) == code_version()
    seen = {code_version()}
    for package in PACKAGES:
        with open(tmp_path / package / "__init__.py", "a") as file:
            file.write("#")
        seen.add(version_of_copy(tmp_path))
    assert len(seen) == 1 + len(PACKAGES)


def test_other_code_is_refused_with_both_versions_and_the_host():
    require_same_software(software(), "host-1")
    theirs = {**software(), "heldout's code": "other", "numpy": "0.1"}
    with pytest.raises(
        CodeDiffers, match=r"^host-1 has heldout's code \w+ \(the learner has other\), numpy"
    ) as refused:
        require_same_software(theirs, "host-1")
    assert code_version() in str(refused.value) and "(the learner has 0.1)" in str(refused.value)
    assert "torch" not in str(refused.value)


def test_what_is_missing_differs_from_what_is_there():
    assert differences({"lz4": "4.4.5"}, {"lz4": "none"}) == ["lz4 none (the learner has 4.4.5)"]
    assert differences({"lz4": "4.4.5"}, {}) == ["lz4 none (the learner has 4.4.5)"]
    assert differences(software(), software()) == []


def test_builds_of_one_torch_are_one_version():
    assert "+" not in software()["torch"]
