"""A small untrained leaper policy: its episodes last about a hundred steps, so real games are over in a second."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from common.config import Config
from common.policy_network import PolicyNetwork
from common.resolution import resolve
from common.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint

SaveBlind = Callable[[Path, int, list[int]], Path]
LEFT, UP = 1, 5  # actions


@pytest.fixture(scope="session")
def config() -> Config:
    """Training levels 0 and 1, test levels 2 and 3 (the live split), validation levels 4 and 5."""
    return resolve("lab", {"env_name": "leaper", "num_levels": 2, "eval_episodes_per_level": 1, "seed": 7})


@pytest.fixture(scope="session")
def save(config: Config) -> Callable[[Path, int], Path]:
    """Writes an untrained checkpoint of a policy version below a directory."""
    torch.manual_seed(0)
    weights = PolicyNetwork(config.network).weights()
    return lambda directory, version: save_checkpoint(directory, config, version, version * 1000, weights, {})


@pytest.fixture(scope="session")
def save_blind(config: Config) -> SaveBlind:
    """Writes a checkpoint of a policy that takes one of some actions at random, whatever it sees.

    Going up ends every episode of leaper in about ten steps.
    """

    def save(directory: Path, version: int, actions: list[int]) -> Path:
        weights = PolicyNetwork(config.network).weights()
        weights["policy_head.weight"][:] = 0
        weights["policy_head.bias"][:] = -50
        weights["policy_head.bias"][actions] = 0
        return save_checkpoint(directory, config, version, version * 1000, weights, {})

    return save


@pytest.fixture(scope="session")
def checkpoint(save: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Policy version 5, loaded."""
    return load_checkpoint(save(tmp_path_factory.mktemp("checkpoints"), 5), policy_only=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the evaluator's process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
