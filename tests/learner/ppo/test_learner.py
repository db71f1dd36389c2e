"""One PPO update equals a plain loop written from the algorithm, and does not depend on what must not matter."""

import copy
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from common.messages import ActorState, FinishedEpisodes, Rollout
from common.policy_network import PolicyNetwork
from common.seeding import derive_seed
from common.storage.checkpoints import load_checkpoint, save_checkpoint
from learner.ppo.learner import LAG_STATISTICS, NotFinite, PPOLearner
from learner.rollouts.staging import StagedBatch
from tests import conftest
from tests.conftest import assert_bit_equal

CPU = torch.device("cpu")
T, B, MINIBATCHES, EPOCHS = 8, 4, 2, 2
STEPS = MINIBATCHES * EPOCHS


pytestmark = pytest.mark.usefixtures("one_torch_thread")


tiny_config = partial(
    conftest.tiny_config,
    **{"envs_per_actor": B // 2, "unroll_length": T, "total_frames": 10 * T * B},
    **{"num_minibatches": MINIBATCHES, "update_epochs": EPOCHS},
)


def new_learner(config, num_threads=1, device=CPU):
    graphs = config.cuda_graphs and device.type == "cuda"
    learner = PPOLearner(replace(config, learner_threads=num_threads, device=device.type, cuda_graphs=graphs))
    if config.orthogonal_heads:  # gain .01 makes every action equally likely: a test would see too little
        with torch.no_grad():
            learner.policy.policy_head.weight.mul_(100)
    return learner


def random_frames(rng, *dims):
    """Frames of 8 x 8 colored blocks, some dark and some bright; pure noise would look all the same to the network."""
    blocks = rng.random((*dims, 8, 8, 3)) * rng.random((*dims, 1, 1, 3)) * 255
    return blocks.astype(np.uint8).repeat(8, axis=-3).repeat(8, axis=-2)


def staged_batch(config, policy, seed=0, off_policy=0.3, device=CPU):
    """Random data, with log-probs and values as `policy` gives them, plus noise of standard deviation `off_policy`."""
    rng = np.random.default_rng(seed)
    staged = StagedBatch(config, device)
    envs = config.envs_per_actor
    for slot in range(config.num_actors):
        observations = random_frames(rng, T, envs)
        actions = rng.integers(0, 15, (T, envs), dtype=np.int32)
        with torch.no_grad():
            logits, values = policy(torch.from_numpy(observations).flatten(0, 1))
            log_probs = torch.log_softmax(logits, 1)[torch.arange(T * envs), actions.reshape(-1)]
        noise = rng.normal(size=(2, T, envs)).astype(np.float32) * off_policy
        rollout = Rollout(
            policy_version=0,
            actor_id=slot,
            observations=observations,
            actions=actions,
            rewards=(rng.normal(size=(T, envs)) * 3 * (rng.random((T, envs)) < 0.5)).astype(np.float32),
            dones=rng.random((T, envs)) < 0.2,
            behavior_log_probs=log_probs.numpy().reshape(T, envs) + noise[0],
            values=values.numpy().reshape(T, envs) + noise[1],
            bootstrap_value=rng.normal(size=envs).astype(np.float32),
            bootstrap_observation=random_frames(rng, 1, envs),
            episodes=FinishedEpisodes(np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(0, np.int32)),
            next_state=ActorState(
                env_states=np.zeros(envs, np.uint8),
                env_state_sizes=np.ones(envs, np.int64),
                running_return=np.zeros(envs),
                running_length=np.zeros(envs, np.int32),
                generator=np.zeros(1, np.uint8),
            ),
            weights_sha256="",
            seconds=0.0,
        )
        staged.stage(slot, rollout)
    staged.start_upload()
    return staged


def never():
    """A poll that never stops the update."""


def slow_update(config, policy, staged, rewards):
    """PPO as a plain loop over whole minibatches, changing `policy`; returns its statistics."""
    n, dones = T * B, staged.dones.float()
    observations, actions = staged.observations.reshape(n, 64, 64, 3), staged.actions.reshape(n).long()
    behavior_log_probs, values = staged.behavior_log_probs.reshape(n), staged.values
    old_log_probs, bootstrap_value, lag_statistics = behavior_log_probs, staged.bootstrap_value, {}
    importance = torch.ones(n)
    if config.objective == "decoupled":  # Hilton et al. 2022
        with torch.no_grad():
            logits, values = policy(observations)
            bootstrap_value = policy(staged.bootstrap_observation)[1]
        values, old_log_probs = values.reshape(T, B), torch.log_softmax(logits, 1)[torch.arange(n), actions]
        log_ratio = (old_log_probs - behavior_log_probs).numpy().astype(np.float64)
        importance = np.minimum(np.exp(log_ratio), config.importance_weight_cap)
        lag_statistics = {
            "behavior_kl": np.mean(np.exp(log_ratio) - 1 - log_ratio),
            "mean_importance_weight": importance.mean(),
            "max_importance_weight": np.exp(log_ratio.max()),
        }
        importance = torch.from_numpy(importance).float()
    advantages = torch.zeros(T, B)
    following, next_value = torch.zeros(B), bootstrap_value
    for t in reversed(range(T)):
        m = 1 - dones[t]
        delta = rewards[t] + config.gamma * next_value * m - values[t]
        following = delta + config.gamma * config.gae_lambda * m * following
        advantages[t], next_value = following, values[t]
    targets = advantages + values

    def normalized(a):
        return (a - a.mean()) / (((a - a.mean()) ** 2).sum() / (a.numel() - 1)).sqrt().add(1e-8)

    if config.advantage_normalization == "batch":
        advantages = normalized(advantages)
    advantages, targets, old_values = advantages.reshape(n), targets.reshape(n), values.reshape(n)

    parameters = list(policy.parameters())
    mean = [torch.zeros_like(p) for p in parameters]
    square = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "permutations"))
    step, collected = 0, []
    eps, size = config.clip_coef, n // config.num_minibatches
    for _ in range(config.update_epochs):
        permutation = torch.randperm(n, generator=generator)
        for k in range(config.num_minibatches):
            mb = permutation[k * size : (k + 1) * size]
            logits, new_values = policy(observations[mb])
            log_probabilities = torch.log_softmax(logits, 1)
            new_log_probs = log_probabilities[torch.arange(size), actions[mb]]
            log_ratio = new_log_probs - old_log_probs[mb]
            ratio = log_ratio.exp()
            a = advantages[mb]
            if config.advantage_normalization == "minibatch":
                a = normalized(a)
            objective = (importance[mb] * torch.min(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)).mean()
            clipped_values = old_values[mb] + (new_values - old_values[mb]).clamp(-eps, eps)
            value_loss = torch.max((new_values - targets[mb]) ** 2, (clipped_values - targets[mb]) ** 2).mean()
            entropy = -(log_probabilities.exp() * log_probabilities).sum(1).mean()
            loss = config.vf_coef * value_loss - objective - config.ent_coef * entropy
            policy.zero_grad()
            loss.backward()
            norm = math.sqrt(sum(float(p.grad.double().pow(2).sum()) for p in parameters))
            scale = min(1.0, config.max_grad_norm / norm)
            step += 1
            with torch.no_grad():
                for p, m1, m2 in zip(parameters, mean, square, strict=True):
                    g = p.grad * scale
                    m1.mul_(0.9).add_(0.1 * g)
                    m2.mul_(0.999).add_(0.001 * g * g)
                    m1_hat, m2_hat = m1 / (1 - 0.9**step), m2 / (1 - 0.999**step)
                    p -= config.learning_rate * m1_hat / (m2_hat.sqrt() + config.adam_eps)
            kl = (ratio - 1 - log_ratio).mean()
            clip_fraction = ((ratio - 1).abs() > eps).float().mean()
            ratio_error = (ratio - 1).abs().mean()
            row = (objective, value_loss, entropy, kl, clip_fraction, ratio_error, norm)
            collected.append([float(torch.as_tensor(x).detach()) for x in row])
    columns = np.array(collected)
    names = ("policy_objective", "value_loss", "entropy", "approx_kl", "clip_fraction", "ratio_error", "grad_norm")
    statistics = dict(zip(names, columns.mean(0), strict=True))
    statistics["ratio_error"] = columns[0, 5]
    statistics["explained_variance"] = float(1 - (targets - old_values).var() / targets.var())
    statistics["learning_rate"] = config.learning_rate
    return {**statistics, **lag_statistics}


def test_rewards_are_normalized_with_their_own_discount():
    config = tiny_config(preset="easy", gamma=0.5, reward_norm_gamma=0.0)
    learner = new_learner(config)
    staged = staged_batch(config, learner.policy)
    learner.update(staged, never)
    rewards = staged.rewards.numpy().astype(np.float64)
    # With discount 0 the samples are the rewards themselves.
    assert learner.reward_transform.variance == pytest.approx(rewards.var(), rel=1e-4)
    assert learner.reward_transform.mean == pytest.approx(rewards.mean(), rel=1e-4, abs=1e-6)


def updated_weights(config, num_threads=1, off_policy=0.3):
    learner = new_learner(config, num_threads)
    statistics = learner.update(staged_batch(config, learner.policy, off_policy=off_policy), never)
    learner.close()
    return learner.weights(), statistics


def largest_difference(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def assert_same_move(one, other, start):
    """Two updates of the same weights differ only by rounding.

    Adam divides by the gradient's size, so where that is tiny it magnifies rounding: single weights may differ by up
    to 2e-4 (of the 2e-3 that four steps move them), all of them together by three thousandths of the way. (The plain
    loop in float32 and in float64: 9e-5 and 1.4 thousandths.)
    """
    assert largest_difference(one, other) < 2e-4
    difference = sum(float(((one[name] - other[name]) ** 2).sum()) for name in start)
    way = sum(float(((one[name] - start[name]) ** 2).sum()) for name in start)
    assert way > 0 and math.sqrt(difference / way) < 3e-3


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"adam_eps": 1e-5}, id="lab"),
        pytest.param({"adam_eps": 1e-5, "max_grad_norm": 0.5, "vf_coef": 0.5, "ent_coef": 0.3}, id="gradient clipped"),
        pytest.param({"preset": "easy", "reward_transform": "raw"}, id="easy"),
        pytest.param({"adam_eps": 1e-5, "mode": "overlap", "importance_weight_cap": 1.2}, id="decoupled"),
    ],
)
def test_update_equals_the_algorithm_as_a_plain_loop(given):
    config = tiny_config(**given)
    learner = new_learner(config)
    learner.policy_version = config.max_policy_lag  # the batch was collected with version 0
    before = learner.weights()
    twin = copy.deepcopy(learner.policy)
    staged = staged_batch(config, learner.policy)
    rewards = staged.rewards if config.reward_transform == "raw" else staged.rewards.sign()
    expected = slow_update(config, twin, staged, rewards)

    statistics = learner.update(staged, never)

    assert largest_difference(learner.weights(), before) > 1e-3  # four steps of up to 5e-4
    assert_same_move(learner.weights(), twin.weights(), before)
    assert statistics.keys() == expected.keys()
    for name, value in expected.items():
        assert statistics[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    if "max_grad_norm" in given:
        assert statistics["grad_norm"] > given["max_grad_norm"]  # otherwise clipping is not tested
    if "importance_weight_cap" in given:  # else neither cap nor weights are tested
        assert statistics["max_importance_weight"] > 1.2 > statistics["mean_importance_weight"] > 0
        assert statistics["ratio_error"] < 1e-5  # the first ratios are to the learner's own policy
    else:
        assert 0 < statistics["clip_fraction"] < 1
    assert (learner.policy_version, learner.frames) == (config.max_policy_lag + 1, T * B)


def update_in_overlap(objective, lag, **given):
    """The learner after an update in overlap mode, with data that is `lag` versions old; and its statistics."""
    config = tiny_config(mode="overlap", objective=objective, reward_transform="running_return", **given)
    learner = new_learner(config)
    learner.policy_version = lag
    statistics = learner.update(staged_batch(config, learner.policy), never)
    return learner, statistics


def test_decoupled_objective_without_lag_is_the_standard_one_bit_for_bit():
    (decoupled, statistics), (standard, expected) = (update_in_overlap(name, 0) for name in ("decoupled", "standard"))
    assert_bit_equal(decoupled.state_dict(), standard.state_dict())
    lag_statistics = {name: statistics.pop(name) for name in LAG_STATISTICS}
    assert lag_statistics == {"behavior_kl": 0.0, "mean_importance_weight": 1.0, "max_importance_weight": 1.0}
    assert statistics == expected
    lagged, _ = update_in_overlap("decoupled", 1)
    assert largest_difference(lagged.weights(), decoupled.weights()) > 1e-4


def test_one_fresh_rollout_does_not_turn_off_the_correction_of_a_lagged_batch():
    old, expected = update_in_overlap("decoupled", 1)
    mixed = new_learner(old.config)
    mixed.policy_version = 1
    staged = staged_batch(mixed.config, mixed.policy)
    staged.sources[0] = replace(staged.sources[0], policy_version=1)
    assert mixed.update(staged, never) == expected and expected["max_importance_weight"] > 1
    assert_bit_equal(mixed.state_dict(), old.state_dict())


def test_threads_and_micro_batches_do_not_change_the_update_of_lagged_data():
    whole, _ = update_in_overlap("decoupled", 1, adam_eps=1e-5, micro_batch=T * B)
    parts, one = update_in_overlap("decoupled", 1, adam_eps=1e-5, micro_batch=3)
    config = replace(parts.config, learner_threads=2)
    threads = PPOLearner(config)
    threads.policy_version = 1
    two = threads.update(staged_batch(config, threads.policy), never)
    threads.close()
    assert_same_move(parts.weights(), whole.weights(), new_learner(config).weights())
    assert largest_difference(threads.weights(), parts.weights()) == 0.0 and one == two


def test_lagged_data_with_an_infinite_log_prob_is_not_trained_on():
    config = tiny_config(mode="overlap")
    learner = new_learner(config)
    learner.policy_version = 1
    before = copy.deepcopy(learner.state_dict())
    staged = staged_batch(config, learner.policy)
    staged.behavior_log_probs[0, 0] = math.inf  # its weight is 0: the loss stays finite
    with pytest.raises(NotFinite):
        learner.update(staged, never)
    assert_bit_equal(learner.state_dict(), before)


def test_micro_batches_and_threads_do_not_change_the_update():
    whole, statistics = updated_weights(tiny_config(adam_eps=1e-5, micro_batch=T * B // MINIBATCHES))
    # 3 does not divide the minibatch of 16: the last micro-batch is smaller and weighs less.
    one_thread, one_statistics = updated_weights(tiny_config(adam_eps=1e-5, micro_batch=3), num_threads=1)
    two_threads, two_statistics = updated_weights(tiny_config(adam_eps=1e-5, micro_batch=3), num_threads=2)
    assert_same_move(one_thread, whole, new_learner(tiny_config()).weights())
    assert largest_difference(two_threads, one_thread) == 0.0
    assert two_statistics == one_statistics == pytest.approx(statistics, rel=1e-3, abs=1e-5)


def test_advantages_are_normalized_per_minibatch_not_per_micro_batch():
    given = {"adam_eps": 1e-5, "advantage_normalization": "minibatch"}
    whole, _ = updated_weights(tiny_config(**given, micro_batch=16))
    parts, _ = updated_weights(tiny_config(**given, micro_batch=3))
    over_batch, _ = updated_weights(tiny_config(adam_eps=1e-5, micro_batch=16))
    assert_same_move(parts, whole, new_learner(tiny_config()).weights())
    assert largest_difference(over_batch, whole) > 1e-4


def test_linear_schedule_falls_to_zero_after_the_last_update():
    learner = new_learner(tiny_config(learning_rate_schedule="linear", learning_rate=1e-3))
    assert learner.config.num_updates == 10
    rates = []
    for learner.policy_version in (0, 1, 5, 9, 10, 12):
        rates.append(learner.learning_rate())
    assert rates == pytest.approx([1e-3, 9e-4, 5e-4, 1e-4, 0, 0])


def test_update_uses_the_scheduled_learning_rate():
    learner = new_learner(tiny_config(learning_rate_schedule="linear"))
    staged = staged_batch(learner.config, learner.policy)
    before = learner.weights()
    learner.policy_version = learner.config.num_updates
    assert learner.update(staged, never)["learning_rate"] == 0
    assert largest_difference(learner.weights(), before) == 0
    learner.policy_version = 5
    assert learner.update(staged, never)["learning_rate"] == pytest.approx(2.5e-4)
    assert 0 < largest_difference(learner.weights(), before) <= STEPS * 2.5e-4 * 1.5


def test_learner_continues_bit_exactly_from_its_checkpoint(tmp_path):
    config = tiny_config(reward_transform="running_return", learning_rate_schedule="linear")
    learner = new_learner(config)
    first, second = (staged_batch(config, learner.policy, seed) for seed in (1, 2))
    learner.update(first, never)
    path = save_checkpoint(
        tmp_path, config, learner.policy_version, learner.frames, learner.weights(), learner.state_dict()
    )
    loaded = load_checkpoint(path)
    resumed = PPOLearner(replace(config, device="cpu", learner_threads=1))
    resumed.load_state_dict(loaded.learner_state)
    assert_bit_equal(resumed.state_dict(), learner.state_dict())

    assert resumed.update(second, never) == learner.update(second, never)
    assert_bit_equal(resumed.state_dict(), learner.state_dict())
    assert (resumed.policy_version, resumed.frames) == (2, 2 * T * B)


def test_next_update_of_the_same_data_uses_other_permutations():
    config = tiny_config()
    learner = new_learner(config)
    staged = staged_batch(config, learner.policy)
    before = copy.deepcopy(learner.state_dict())
    learner.update(staged, never)
    permutations = learner.permutations.get_state()
    once = learner.weights()
    learner.load_state_dict(before)
    learner.permutations.set_state(permutations)
    learner.update(staged, never)
    assert largest_difference(learner.weights(), once) > 1e-5


class Stop(Exception):
    """Raised by poll in these tests."""


def stop_at(call):
    """A poll that raises when it is called for the `call`-th time."""
    calls = iter(range(1, STEPS + 2))

    def check():
        if next(calls) == call:
            raise Stop

    return check


@pytest.mark.parametrize(("call", "updates_before"), [(1, 0), (STEPS, 0), (2, 1)])
def test_stopped_update_changes_nothing(call, updates_before):
    config = tiny_config(reward_transform="running_return", learning_rate_schedule="linear")
    learner, undisturbed = new_learner(config), new_learner(config)
    staged = staged_batch(config, learner.policy)
    for _ in range(updates_before):
        learner.update(staged, never)
        undisturbed.update(staged, never)
    before = copy.deepcopy(learner.state_dict())

    with pytest.raises(Stop):
        learner.update(staged, stop_at(call))

    assert_bit_equal(learner.state_dict(), before)
    assert learner.update(staged, never) == undisturbed.update(staged, never)
    assert_bit_equal(learner.state_dict(), undisturbed.state_dict())


def test_poll_runs_before_every_optimizer_step():
    config = tiny_config()
    learner = new_learner(config)
    calls = []
    learner.update(staged_batch(config, learner.policy), lambda: calls.append(learner.weights()["value_head.bias"]))
    assert len(calls) == STEPS == len({float(bias[0]) for bias in calls})


def test_bfloat16_update_stays_close_to_the_float32_update():
    start = new_learner(tiny_config()).weights()
    exact, exact_statistics = updated_weights(tiny_config(adam_eps=1e-5))
    rounded, rounded_statistics = updated_weights(tiny_config(adam_eps=1e-5, precision="bfloat16"))
    moves = [np.concatenate([(w[name] - start[name]).ravel() for name in start]) for w in (exact, rounded)]
    cosine = moves[0] @ moves[1] / np.linalg.norm(moves[0]) / np.linalg.norm(moves[1])
    assert 0.98 < cosine < 0.99999  # the same direction, but not the same arithmetic
    assert largest_difference(exact, rounded) <= 2 * STEPS * 5e-4 * 1.5  # no weight ran away
    assert all(array.dtype == np.float32 for array in rounded.values())
    for name in ("policy_objective", "value_loss", "entropy", "grad_norm"):
        assert rounded_statistics[name] == pytest.approx(exact_statistics[name], rel=0.02, abs=0.002), name


@pytest.mark.parametrize(("precision", "low", "high"), [("float32", 0, 1e-5), ("bfloat16", 1e-6, 0.05)])
def test_ratio_error_of_on_policy_data_is_only_the_difference_in_arithmetic(precision, low, high):
    config = tiny_config("easy", precision=precision, ent_coef=0.0)
    learner = new_learner(config)
    with torch.no_grad():  # rounding matters more for the logits of a trained policy
        learner.policy.policy_head.weight.mul_(20)
    actor_policy = PolicyNetwork(config.network)
    actor_policy.load_weights(learner.weights())
    staged = staged_batch(config, actor_policy, off_policy=0.0)  # collected in float32
    with torch.no_grad():
        logits, _ = actor_policy(staged.observations.flatten(0, 1))
    assert torch.distributions.Categorical(logits=logits).entropy().mean() < 2.4
    assert low <= learner.update(staged, never)["ratio_error"] < high


def test_equal_seeds_give_equal_learners_and_other_seeds_other_learners():
    assert_bit_equal(new_learner(tiny_config(seed=3)).state_dict(), new_learner(tiny_config(seed=3)).state_dict())
    one, other = new_learner(tiny_config(seed=3)), new_learner(tiny_config(seed=4))
    assert largest_difference(one.weights(), other.weights()) > 0
    assert not torch.equal(one.permutations.get_state(), other.permutations.get_state())


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize(
    "lever", [{}, {"cuda_graphs": True}, {"compile": True}, {"cuda_graphs": True, "compile": True}]
)
def test_update_on_a_gpu_equals_the_cpu_update_with_every_option(lever):
    config = tiny_config(adam_eps=1e-5, mode="overlap")  # the second batch is one version old
    on_cpu = new_learner(config)
    there = new_learner(replace(config, **lever), device=torch.device("cuda"))
    there.load_state_dict(on_cpu.state_dict())
    for seed in range(2):  # a captured step must load the second batch as well
        before = on_cpu.weights()
        behavior = copy.deepcopy(on_cpu.policy)
        expected = on_cpu.update(staged_batch(config, behavior, seed), never)
        statistics = there.update(staged_batch(config, behavior, seed, device=there.device), never)
        assert_same_move(there.weights(), on_cpu.weights(), before)
        for name, value in expected.items():
            assert statistics[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


@pytest.mark.gpu
@on_gpu
def test_a_step_is_captured_while_another_thread_uploads():
    config = tiny_config(cuda_graphs=True)
    learner = new_learner(config, device=torch.device("cuda"))
    staged, other = (staged_batch(config, new_learner(config).policy, device=learner.device) for _ in range(2))
    assert other.upload is not None
    captured, uploads = threading.Event(), 0

    def upload():
        nonlocal uploads
        while not captured.is_set():
            other.start_upload()
            other.upload.done.synchronize()  # must not be called while any thread captures in the default mode
            uploads += 1

    with ThreadPoolExecutor(1) as thread:
        uploading = thread.submit(upload)
        try:
            conftest.wait_until(lambda: uploads or uploading.done())
            before = learner.weights()
            learner.update(staged, never)
        finally:
            captured.set()
        uploading.result()
    assert largest_difference(learner.weights(), before) > 0


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_stopped_update_on_a_gpu_changes_nothing_and_its_state_is_portable(cuda_graphs):
    config = tiny_config(cuda_graphs=cuda_graphs, learning_rate_schedule="linear")
    learner = new_learner(config, device=torch.device("cuda"))
    staged = staged_batch(config, new_learner(config).policy, device=learner.device)
    learner.update(staged, never)
    before = copy.deepcopy(learner.state_dict())
    with pytest.raises(Stop):
        learner.update(staged, stop_at(STEPS))
    assert_bit_equal(learner.state_dict(), before)
    elsewhere = new_learner(config)
    elsewhere.load_state_dict(before)
    elsewhere.update(staged_batch(config, elsewhere.policy), never)
    learner.update(staged, never)
    assert learner.policy_version == elsewhere.policy_version == 2


@pytest.mark.parametrize("poison", ["rewards", "behavior_log_probs", "values"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_update_that_is_not_finite_is_undone_completely(poison, number):
    config = tiny_config(reward_transform="running_return")
    learner = new_learner(config)
    learner.update(staged_batch(config, learner.policy, 1), never)
    before = copy.deepcopy(learner.state_dict())
    staged = staged_batch(config, learner.policy, 2)
    getattr(staged, poison)[0, 0] = number
    with pytest.raises(NotFinite) as error:
        learner.update(staged, never)
    assert not all(math.isfinite(value) for value in error.value.statistics.values())
    assert_bit_equal(learner.state_dict(), before)
    learner.skip_update()
    assert_bit_equal({**learner.state_dict(), "policy_version": 1, "frames": T * B}, before)
    assert (learner.policy_version, learner.frames) == (2, 2 * T * B)
    assert learner.update(staged_batch(config, learner.policy, 3), never)["grad_norm"] > 0


def test_constant_target_values_leave_no_explained_variance_and_are_trained_on():
    config = tiny_config(reward_transform="raw")
    learner = new_learner(config)
    staged = staged_batch(config, learner.policy)
    staged.rewards.zero_()
    staged.dones.fill_(True)  # every target value is the reward alone
    assert math.isnan(learner.update(staged, never)["explained_variance"])
    assert learner.policy_version == 1


def test_weights_made_infinite_by_the_last_step_are_noticed():
    config = tiny_config(num_minibatches=1, update_epochs=1, learning_rate=1e38, adam_eps=1e-38)
    learner = new_learner(config)
    for group in learner.optimizer.param_groups:
        group["betas"] = (0.0, 0.0)
    with torch.no_grad():  # one more step of 1e38 exceeds float32
        learner.policy.value_head.bias.fill_(3.4e38)
    before = copy.deepcopy(learner.state_dict())
    staged = staged_batch(config, new_learner(config).policy)
    with pytest.raises(NotFinite):
        learner.update(staged, never)
    assert_bit_equal(learner.state_dict(), before)
