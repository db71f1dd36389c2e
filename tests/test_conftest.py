"""The helpers that many tests rely on can fail, and say why."""

import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import assert_bit_equal, wait_until


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
