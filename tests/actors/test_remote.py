"""The actor that Ray starts, without Ray: whether its frames are compressed depends on where the learner is."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import actors.remote
from actors.remote import RemoteRolloutActor
from common.frame_compression import CompressedFrames, decompress_frames
from common.messages import ActorIdentity
from common.policy_network import PolicyNetwork
from tests.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("one_torch_thread")
HERE = "node of the actor"


@pytest.fixture
def collect(monkeypatch):
    """A function: the first rollout of an actor with `compression` for a learner on a node."""
    context = SimpleNamespace(get_node_id=lambda: HERE)
    monkeypatch.setattr(actors.remote, "ray", SimpleNamespace(get_runtime_context=lambda: context))
    for name in ("prepare_process", "play_only"):  # they change the whole process
        monkeypatch.setattr(actors.remote, name, lambda *_, **__: None)
    actor_class = RemoteRolloutActor.__ray_metadata__.modified_class  # the class below `@ray.remote`
    built = []

    def collect(compression, learner_node):
        config = tiny_config(env_name="leaper", envs_per_actor=1, unroll_length=2, compression=compression)
        torch.manual_seed(0)
        weights = PolicyNetwork(config.network).weights()
        built.append(actor := object.__new__(actor_class))  # `__init__` watches the parent process
        actor.build(learner_node, config, ActorIdentity(0), None)
        return actor.collect(weights, 0)

    yield collect
    for actor in built:
        actor.actor.close()


@pytest.mark.parametrize(
    ("compression", "learner_node", "is_compressed"),
    [
        ("remote", HERE, False),
        ("remote", "another node", True),
        ("zstd", HERE, True),
        ("none", "another node", False),
    ],
)
def test_frames_are_compressed_as_the_flag_says(collect, compression, learner_node, is_compressed):
    sent, raw = collect(compression, learner_node), collect("none", HERE)
    for frames, expected in (
        (sent.observations, raw.observations),
        (sent.bootstrap_observation, raw.bootstrap_observation),
    ):
        assert isinstance(frames, CompressedFrames) == is_compressed
        np.testing.assert_array_equal(decompress_frames(frames), expected)
