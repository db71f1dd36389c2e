"""The helpers that many tests rely on can fail, and say why."""

import subprocess
import sys
import time

import psutil
import pytest
import torch

from tests.conftest import assert_bit_equal, kill_all, wait_until


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


def test_processes_of_a_test_are_killed_with_their_children():
    process = start(
        "import subprocess, sys; code = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code]); print(child.pid, flush=True); child.wait()"
    )
    child = psutil.Process(int(process.stdout.readline()))
    ended, processes = start(""), [process]
    ended.wait()
    processes.append(ended)
    kill_all(processes)
    assert processes == [] and process.poll() is not None
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


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
