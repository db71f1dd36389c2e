"""What the benchmarks measure is real work, told truthfully. No figure is judged here."""

import sys

import pytest
import torch

from benchmarks.gpu import LEVERS, correctness
from benchmarks.processes import run_and_watch
from benchmarks.throughput import random_batch, updating
from common.config import resolve

CPU = torch.device("cpu")
SMALL = {"num_actors": 2, "envs_per_actor": 4, "unroll_length": 8, "num_minibatches": 2}


@pytest.mark.parametrize(
    ("lever", "bound"), [(LEVERS[0], 1e-5), (LEVERS[1], 1e-5), (LEVERS[2], 0.2)], ids=lambda x: getattr(x, "name", None)
)
def test_every_lever_is_compared_with_float64_and_is_what_it_says(lever, bound):
    errors = correctness(lever, SMALL, CPU)
    assert all(0 < error < bound for error in errors.values()), errors
    if lever.precision == "bfloat16":
        assert min(errors.values()) > 1e-4  # else it was not used


def test_the_update_that_is_timed_trains_on_a_full_batch():
    staged = random_batch(resolve("lab", SMALL), CPU)
    assert torch.isfinite(staged.rewards).all() and (staged.actions >= 0).all()
    assert updating(resolve("lab", SMALL), cores=2) > 0


def test_a_watched_command_gives_its_output_and_its_childrens_memory_and_a_failed_one_raises():
    grow = "import time; data = bytearray(200 << 20); time.sleep(2.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}]); print('done')"
    out, peaks = run_and_watch([sys.executable, "-c", parent], {})
    assert out == "done\n"
    assert 190 <= peaks["all together"] < 400
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_and_watch([sys.executable, "-c", "raise SystemExit(3)"], {})
