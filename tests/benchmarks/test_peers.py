"""The peers do the work of preset lab with its network, and a missing peer is left out."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers
from common.games import Game
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs
from common.resolution import resolve

PARAMETERS = 626_256
LAB = peers.lab(steps=2)
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)


def needs(name: str) -> pytest.MarkDecorator:
    """Skips a test where a peer is not installed."""
    peer = peers.PEERS[name]
    return pytest.mark.skipif(not peers.is_installed(peer), reason=f"{peer.title} is not installed: it is optional")


def all_needing(module: str) -> dict[str, peers.Peer]:
    return {name: dataclasses.replace(peer, needs=(module,)) for name, peer in peers.PEERS.items()}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_missing_peer_is_named_in_one_line_on_stderr_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "PEERS", all_needing("no_such_module"))
    monkeypatch.setattr(peers, "run_for_json", lambda *_: pytest.fail("a missing peer was started"))
    assert peers.measure_peers() == {}
    assert capsys.readouterr().err.splitlines() == [
        "stable-baselines3 is not installed: pip install -e '.[peers]'",
        "ray[rllib] is not installed: pip install -e '.[peers]'",
    ]


def test_each_peer_is_measured_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def run_for_json(*command: str) -> dict[str, float]:
        commands.append(command)
        return {"frames_per_second": 7.0}

    monkeypatch.setattr(peers, "PEERS", all_needing("json"))
    monkeypatch.setattr(peers, "run_for_json", run_for_json)
    figures = {"frames_per_second": 7.0}
    assert peers.measure_peers(steps=8) == {"sb3": figures, "rllib": figures}
    assert commands == [("benchmarks.peers", name, "--steps", "8") for name in ("sb3", "rllib")]


def test_peers_get_network_and_work_of_the_preset_and_warm_up_on_one_minibatch() -> None:
    lab = resolve("lab", {})
    assert peers.lab(peers.STEPS) == lab
    assert peers.lab(64) == resolve("lab", {"unroll_length": 64, "num_minibatches": 2})
    small = peers.warm_up(lab)
    assert parameters(PolicyNetwork(small.network)) == PARAMETERS
    assert small.batch_size == small.minibatch_size == lab.minibatch_size == 2048
    assert peers.warm_up(LAB).batch_size == LAB.batch_size == 128


@needs("sb3")
def test_sb3_computes_what_our_network_computes() -> None:
    from benchmarks import peer_sb3

    policy = peer_sb3.make_ppo(LAB, peer_sb3.ProcgenVecEnv(LAB)).policy
    assert parameters(policy) == PARAMETERS
    ours = PolicyNetwork(LAB.network)
    for mine, theirs in (
        (ours.stages, policy.features_extractor.stages),
        (ours.hidden, policy.features_extractor.hidden),
        (ours.policy_head, policy.action_net),
        (ours.value_head, policy.value_net),
    ):
        mine.load_state_dict(theirs.state_dict())
    frames = torch.from_numpy(FRAMES)
    with torch.no_grad():
        logits, values = ours(frames)
        chw = frames.permute(0, 3, 1, 2)
        log_probs = policy.get_distribution(chw).distribution.logits
        torch.testing.assert_close(log_probs, logits.log_softmax(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(policy.predict_values(chw).squeeze(1), values, rtol=1e-4, atol=1e-5)


@needs("sb3")
def test_sb3_gets_frames_of_procgen_and_signs_of_rewards() -> None:
    from benchmarks import peer_sb3

    theirs = peer_sb3.ProcgenVecEnv(LAB)
    direct = make_envs(LAB.num_envs, Game("coinrun", "easy"), 0, 20, rand_seed=1)
    np.testing.assert_array_equal(theirs.reset(), direct.observe()[1])
    rewarded, ended = 0.0, 0
    generator = np.random.default_rng(0)
    for _ in range(300):
        actions = generator.integers(0, 15, LAB.num_envs)
        direct.act(actions.astype(np.int32))
        rewards, frames, first = direct.observe()
        got = theirs.step(actions)
        np.testing.assert_array_equal(got[0], frames)
        np.testing.assert_array_equal(got[1], np.sign(rewards))
        np.testing.assert_array_equal(got[2], first)
        rewarded, ended = max(rewarded, got[1].max()), ended + int(first.sum())
    assert rewarded == 1.0 and ended > 0


@needs("rllib")
def test_rllib_computes_what_our_network_computes() -> None:
    from benchmarks import peer_rllib

    env = peer_rllib.ProcgenEnv({"config": LAB})
    module = peer_rllib.ProcgenModule(
        observation_space=env.observation_space,
        action_space=env.action_space,
        model_config={"settings": LAB.network},
    )
    assert parameters(module) == PARAMETERS
    batch: dict[str, Any] = {"obs": torch.from_numpy(FRAMES.copy())}
    logits, values = module.network(batch["obs"])
    out = module.forward_train(batch)
    assert torch.equal(out["action_dist_inputs"], logits)
    assert torch.equal(module.compute_values(batch, out["embeddings"]), values)
    torch.testing.assert_close(module.compute_values(batch), values.detach())
    np.testing.assert_array_equal(batch["obs"].numpy(), FRAMES)


@needs("rllib")
def test_rllibs_reset_returns_the_frame_that_came_with_the_end_of_the_episode() -> None:
    from benchmarks import peer_rllib

    env = peer_rllib.ProcgenEnv({"config": LAB})
    env.reset()
    for _ in range(1001):  # CoinRun's time limit is 1,000
        frame, reward, terminated, truncated, _ = env.step(7)  # to the right
        assert reward in (-1.0, 0.0, 1.0) and not truncated
        if terminated:
            break
    assert terminated
    np.testing.assert_array_equal(env.reset()[0], frame)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in peers.PEERS])
def test_peer_is_measured_end_to_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "PEERS", {name: peers.PEERS[name]})
    figures = peers.measure_peers(steps=2)[name]
    # RLlib does not count the frames of resets and samples until it has enough.
    assert LAB.batch_size <= figures["frames"] < 2 * LAB.batch_size
    assert figures["frames_per_second"] == pytest.approx(figures["frames"] / figures["seconds"])
    parts = figures["seconds_collecting"], figures["seconds_training"]
    assert min(parts) > 0 and sum(parts) <= figures["seconds"] + 1e-6
    assert figures["peak_memory_mib"]["all together"] > 100
    assert {"torch", "gymnasium"} < set(figures["versions"])
