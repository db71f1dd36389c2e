"""The benchmarks measure real work and report it correctly. No figure is judged here."""

import sys

import pytest
import torch

from benchmarks.gpu import LEVERS, correctness
from benchmarks.processes import run_and_watch, run_for_json
from benchmarks.throughput import random_batch, updating
from common.resolution import resolve
from learner.ppo.learner import PPOLearner

CPU = torch.device("cpu")
SMALL = {"num_actors": 2, "envs_per_actor": 4, "unroll_length": 8, "num_minibatches": 2}


@pytest.mark.parametrize(
    ("lever", "bound"), [(LEVERS[0], 5e-4), (LEVERS[1], 5e-4), (LEVERS[2], 0.2)], ids=lambda x: getattr(x, "name", None)
)
def test_every_lever_is_compared_with_float64_in_its_own_precision(lever, bound):
    errors = correctness(lever, SMALL, CPU)
    assert all(0 < error < bound for error in errors.values()), errors
    if lever.precision == "bfloat16":
        assert min(errors.values()) > 1e-4  # smaller errors would mean that it was not used


def test_timed_update_trains_on_a_full_batch():
    staged = random_batch(resolve("lab", SMALL), CPU)
    assert torch.isfinite(staged.rewards).all() and (staged.actions >= 0).all()
    assert updating(PPOLearner(resolve("lab", SMALL)), seconds=0.1) > 0


def test_watched_command_returns_output_and_memory_of_its_children():
    grow = "import time; data = bytearray(200 << 20); time.sleep(2.5)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}]); print('done')"
    out, peaks = run_and_watch([sys.executable, "-c", parent], {})
    assert out == "done\n"
    assert 190 <= peaks["all together"] < 400


def test_failing_watched_command_raises():
    with pytest.raises(RuntimeError, match="exit code 3"):
        run_and_watch([sys.executable, "-c", "raise SystemExit(3)"], {})


def test_json_in_the_last_line_of_output_overrides_the_measured_memory(tmp_path):
    (tmp_path / "figures.py").write_text('print("noise")\nprint(\'{"speed": 7, "peak_memory_mib": 5}\')')
    assert run_for_json("figures", environment={"PYTHONPATH": str(tmp_path)}) == {"speed": 7, "peak_memory_mib": 5}
