"""Our Adam is torch's, without its compiler."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learner.ppo.adam import Adam
from tests.conftest import assert_bit_equal

PROJECT = Path(__file__).parents[3]
UPDATE = """
import sys, torch
from tests.conftest import tiny_config
from learner.ppo.learner import PPOLearner
learner = PPOLearner(tiny_config())
for parameter in learner.policy.parameters():
    parameter.grad = torch.ones_like(parameter)
learner.optimizer.step()
learner.load_state_dict(learner.state_dict())
learner.optimizer.zero_grad()
sys.exit("torch._dynamo was imported" if "torch._dynamo" in sys.modules else 0)
"""


@pytest.mark.usefixtures("one_torch_thread")
def test_steps_and_restored_state_are_those_of_torchs_adam():
    def train(kind: type[torch.optim.Adam]) -> list[object]:
        torch.manual_seed(0)
        network = torch.nn.Linear(5, 3)
        settings = {"lr": 0.01, "eps": 1e-5, "fused": True}
        optimizer = kind(network.parameters(), **settings)
        for step in range(20):
            optimizer.zero_grad()
            network(torch.randn(7, 5)).square().sum().backward()
            optimizer.step()
            if step == 10:
                restored = kind(network.parameters(), **settings)
                restored.load_state_dict(optimizer.state_dict())
                optimizer = restored
        return [list(network.parameters()), optimizer.state_dict()]

    assert_bit_equal(train(Adam), train(torch.optim.Adam))


def test_learner_does_not_import_torchs_compiler():
    done = subprocess.run([sys.executable, "-c", UPDATE], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
