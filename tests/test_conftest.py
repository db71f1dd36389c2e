"""The helpers that many tests rely on can fail, and say why."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import assert_bit_equal, first_files, wait_until


def start(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_wait_shows_the_output_of_a_process_that_ends():
    with pytest.raises(pytest.fail.Exception, match=r"the process ended\n\('last words"):
        wait_until(lambda: False, start("print('last words')"))


def test_wait_that_takes_too_long_ends_its_process_and_shows_its_output():
    process = start("import time; print('still here', flush=True); time.sleep(600)")
    started = time.monotonic()
    with pytest.raises(pytest.fail.Exception, match=r"nothing after 2 s\n.*still here"):
        wait_until(lambda: False, process, seconds=2.0)
    assert process.poll() is not None and time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": [torch.zeros(2)]}, {"a": [torch.tensor([0.0, 1e-45])]}),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1], (1,)),
        (1, 1.0),
    ],
)
def test_smallest_difference_is_not_bit_equal(one, other):
    assert_bit_equal(one, one)
    with pytest.raises(AssertionError, match="state"):
        assert_bit_equal(one, other)


def test_files_that_mostly_wait_start_apart_and_long_ones_early():
    names = ["test_cluster_drill.py", "test_hosts.py", *(f"test_{n}.py" for n in range(5)), "test_resume.py"]
    ordered = [path.name for path in first_files([Path(name) for name in names])]
    assert sorted(ordered) == sorted(names)
    assert [ordered.index(name) for name in ("test_cluster_drill.py", "test_resume.py", "test_hosts.py")] == [0, 1, 3]
