"""The network against literal numbers and a numpy twin; sampling against probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from common.config import NetworkSettings
from common.policy_network import PolicyNetwork, sample_actions

LAB = NetworkSettings(observation_scale=256, relu_before_linear=False, orthogonal_heads=False)
EASY = NetworkSettings(observation_scale=255, relu_before_linear=True, orthogonal_heads=True, initialization="glorot")


pytestmark = pytest.mark.usefixtures("one_torch_thread")


def random_network(settings, seed=0):
    torch.manual_seed(seed)
    return PolicyNetwork(settings)


def random_frames(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype=np.uint8))


def relu(x):
    return np.maximum(x, 0)


def slow_conv(x, weight, bias):
    """3 x 3, stride 1, zero padding 1: out[o, y, x] = bias[o] + sum of weight[o, i, dy, dx] in[i, y + dy - 1, ...]."""
    _, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for dy in range(3):
        for dx in range(3):
            window = padded[:, dy : dy + height, dx : dx + width]
            out += np.einsum("oi,ihw->ohw", weight[:, :, dy, dx], window)
    return out


def slow_max_pool(x):
    """3 x 3 windows, stride 2, padding 1 that never wins."""
    channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    out = np.zeros((channels, height // 2, width // 2))
    for y in range(height // 2):
        for column in range(width // 2):
            out[:, y, column] = padded[:, 2 * y : 2 * y + 3, 2 * column : 2 * column + 3].max(axis=(1, 2))
    return out


def slow_forward(weights, frame, settings):
    """Logits and value of one uint8 frame, in float64, as the settings describe the network."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}

    def conv(name, x):
        return slow_conv(x, w[f"{name}.weight"], w[f"{name}.bias"])

    x = frame.astype(np.float64).transpose(2, 0, 1) / settings.observation_scale
    for stage in range(3):
        x = slow_max_pool(conv(f"stages.{stage}.conv", x))
        for block in ("block1", "block2"):
            y = conv(f"stages.{stage}.{block}.conv1", relu(x))
            x = x + conv(f"stages.{stage}.{block}.conv2", relu(y))
    if settings.encoder == "impoola":
        x = np.array([relu(channel).sum() / 64 for channel in x])  # 8 x 8 pixels
    elif settings.relu_before_linear:
        x = relu(x)
    hidden = relu(w["hidden.weight"] @ x.reshape(-1) + w["hidden.bias"])
    logits = w["policy_head.weight"] @ hidden + w["policy_head.bias"]
    return logits, (w["value_head.weight"] @ hidden + w["value_head.bias"])[0]


@pytest.mark.parametrize(
    ("encoder", "width", "expected"),
    [("impala", 1, 626_256), ("impala", 2, 1_441_680), ("impoola", 1, 110_160), ("impoola", 2, 409_488)],
)
def test_number_of_parameters(encoder, width, expected):
    def conv(inputs, outputs):
        return inputs * outputs * 3 * 3 + outputs

    def linear(inputs, outputs):
        return inputs * outputs + outputs

    a, b = 16 * width, 32 * width
    stage1 = conv(3, a) + 4 * conv(a, a)  # width 1: 448 + 4 x 2,320 = 9,728
    stage2 = conv(a, b) + 4 * conv(b, b)  # 4,640 + 4 x 9,248 = 41,632
    stage3 = conv(b, b) + 4 * conv(b, b)  # 5 x 9,248 = 46,240
    pixels = {"impala": 8 * 8, "impoola": 1}[encoder]  # 64 pixels halve three times to 8
    hidden = linear(pixels * b, 256)  # impala, width 1: 2,048 x 256 + 256 = 524,544
    heads = linear(256, 15) + linear(256, 1)  # 3,855 + 257
    assert stage1 + stage2 + stage3 + hidden + heads == expected
    for settings in (LAB, EASY):
        network = PolicyNetwork(replace(settings, encoder=encoder, width=width))
        assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(
    "settings",
    [LAB, EASY, replace(EASY, encoder="impoola"), replace(LAB, encoder="impoola", width=2), replace(EASY, width=2)],
    ids=["lab", "easy", "impoola", "lab-impoola-2", "easy-2"],
)
def test_output_equals_the_network_written_in_numpy(settings):
    network = random_network(settings)
    with torch.no_grad():  # larger than the initial ones, so that every relu and every bias matters
        for parameter in network.parameters():
            parameter.mul_(1.5 if parameter.dim() > 1 else 3)
    frames = random_frames(2)
    with torch.no_grad():
        logits, values = network(frames)
    outputs = [slow_forward(network.weights(), f, settings) for f in frames.numpy()]
    for one, others in ((logits, [logits for logits, _ in outputs]), (values, [value for _, value in outputs])):
        scale = np.abs(others).max()
        np.testing.assert_allclose(one.numpy(), others, rtol=2e-4, atol=2e-4 * max(1, scale))


@pytest.mark.parametrize("changed", [{"observation_scale": 255}, {"relu_before_linear": True}])
def test_each_setting_changes_the_output(changed):
    other = replace(LAB, **changed)
    frames = random_frames(1)
    with torch.no_grad():
        one, two = (random_network(settings)(frames)[0] for settings in (LAB, other))
    assert (one - two).abs().max() > 1e-5


def test_frames_of_a_batch_are_independent():
    network, frames = random_network(LAB), random_frames(3)
    with torch.no_grad():
        together = network(frames)
        alone = network(frames[1:2])
    torch.testing.assert_close(together[0][1:2], alone[0])
    torch.testing.assert_close(together[1][1:2], alone[1])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_logits_and_values_are_float32_even_under_autocast(bfloat16):
    network, frames = random_network(LAB), random_frames(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        logits, values = network(frames)
    assert logits.dtype == values.dtype == torch.float32
    assert logits.shape == (2, 15) and values.shape == (2,)
    # Heads in bfloat16 would round their output to 8 bits.
    assert not torch.equal(logits, logits.bfloat16().float())
    with torch.no_grad():
        exact, _ = network(frames)
    assert torch.equal(logits, exact) is not bfloat16
    torch.testing.assert_close(logits, exact, rtol=0.05, atol=0.02)


def test_observations_are_not_modified():
    network, frames = random_network(LAB), random_frames(1)
    before = frames.clone()
    with torch.no_grad():
        network(frames)
    assert torch.equal(frames, before)


def test_lab_keeps_the_default_initialization_of_heads():
    weights = random_network(LAB).weights()
    for head in ("policy_head", "value_head"):
        # PyTorch's default is uniform in +-1/sqrt(256), bias too.
        assert 0.9 / 16 < np.abs(weights[f"{head}.weight"]).max() <= 1 / 16
        assert 0 < np.abs(weights[f"{head}.bias"]).max() <= 1 / 16


def test_easy_has_orthogonal_heads_with_gains_of_a_hundredth_and_one():
    weights = random_network(EASY).weights()
    policy, value = weights["policy_head.weight"], weights["value_head.weight"]
    np.testing.assert_allclose(policy @ policy.T, 0.01**2 * np.eye(15), atol=1e-9)
    np.testing.assert_allclose(value @ value.T, [[1.0]], atol=1e-5)
    assert not weights["policy_head.bias"].any() and not weights["value_head.bias"].any()


def convolutions_and_hidden_layer(settings):
    """(name, weight, bias, fan in, fan out) of a network; a 3 x 3 kernel is a part of each of its 9 products."""
    weights = random_network(settings).weights()
    for name, weight in weights.items():
        if name.endswith(".weight") and "head" not in name:
            outputs, inputs, *kernel = weight.shape
            area = int(np.prod(kernel, dtype=int))
            yield name, weight, weights[name.replace("weight", "bias")], inputs * area, outputs * area


def test_glorot_is_uniform_within_the_bounds_of_glorot_and_bengio_with_zero_bias():
    layers = list(convolutions_and_hidden_layer(EASY))
    assert len(layers) == 15 + 1
    for name, weight, bias, fan_in, fan_out in layers:
        # Glorot and Bengio 2010, eq. 16: U[-sqrt(6 / (in + out)), +sqrt(6 / (in + out))], of variance 2 / (in + out).
        bound = np.sqrt(6 / (fan_in + fan_out))
        scaled = np.sort(np.abs(weight.astype(np.float64)).ravel()) / bound
        assert scaled[-1] <= 1 + 1e-6 and not bias.any(), name
        # Kolmogorov-Smirnov against U[0, 1]: 1.95 / sqrt(n) is passed once in a thousand times.
        steps = np.arange(1, len(scaled) + 1) / len(scaled)
        assert np.abs(scaled - steps).max() < 1.95 / np.sqrt(len(scaled)) + 1 / len(scaled), name
        assert weight.astype(np.float64).var() == pytest.approx(2 / (fan_in + fan_out), rel=0.2), name


def test_torch_initialization_is_smaller_and_has_biases():
    both = zip(convolutions_and_hidden_layer(LAB), convolutions_and_hidden_layer(EASY), strict=True)
    for (name, weight, bias, fan_in, fan_out), (_, glorot, *_) in both:
        # PyTorch's default is U[-1 / sqrt(in), 1 / sqrt(in)]: for equal fans sqrt(3) = 1.7 times smaller than Glorot's.
        assert np.abs(weight).max() == pytest.approx(1 / np.sqrt(fan_in), rel=0.05), name
        assert bias.any()
        if fan_in == fan_out:
            assert np.abs(glorot).max() == pytest.approx(np.sqrt(3) * np.abs(weight).max(), rel=0.05), name


def test_weights_are_a_copy():
    network = random_network(LAB)
    weights = network.weights()
    before = {name: array.copy() for name, array in weights.items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    for name, array in weights.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, before[name])
    weights["value_head.bias"][:] = 77
    assert network.value_head.bias.item() != 77


def test_loaded_weights_give_an_equal_network_without_shared_memory():
    source, target = random_network(LAB, seed=0), random_network(LAB, seed=1)
    weights = source.weights()
    for array in weights.values():
        array.setflags(write=False)  # as Ray gives them
    frames = random_frames(1)
    target.load_weights(weights)
    with torch.no_grad():
        assert torch.equal(target(frames)[0], source(frames)[0])
        target.value_head.bias.add_(1)
    assert weights["value_head.bias"][0] == source.value_head.bias.item()


def test_weights_of_another_shape_or_name_are_refused_and_named():
    network = random_network(LAB)
    weights = network.weights()
    with pytest.raises(RuntimeError, match=r"size mismatch for hidden\.weight"):
        network.load_weights({**weights, "hidden.weight": np.zeros((256, 1024), np.float32)})
    with pytest.raises(RuntimeError, match=r"[Mm]issing.*value_head\.bias"):
        network.load_weights({name: array for name, array in weights.items() if name != "value_head.bias"})
    with pytest.raises(RuntimeError, match=r"[Uu]nexpected.*extra"):
        network.load_weights({**weights, "extra": np.zeros(1, np.float32)})


def test_action_frequencies_match_their_probabilities():
    n = 50_000
    logits = torch.randn(15, generator=torch.Generator().manual_seed(1)) * 1.5
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(2))
    actions, _ = sample_actions(logits.expand(n, 15), uniform)
    counts = np.bincount(actions.numpy(), minlength=15)
    expected = torch.softmax(logits, 0).numpy().astype(np.float64) * n
    assert expected.min() > 20
    # Chi-square with 14 degrees of freedom passes 36.1 once in a thousand times; the generators are fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 36.1


def test_action_is_where_its_uniform_falls_in_the_cumulative_distribution():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    uniform = torch.tensor([0.05, 0.15, 0.29, 0.31, 0.59, 0.61])
    assert sample_actions(logits, uniform)[0].tolist() == [0, 1, 1, 2, 2, 3]


def test_smallest_and_largest_uniform_draw_possible_actions():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2000, 15, generator=generator) * torch.rand(2000, 1, generator=generator) * 20
    logits[:, [0, 14]] = -200.0  # impossible: exp underflows to 0
    first, _ = sample_actions(logits, torch.zeros(2000))
    last, log_probs = sample_actions(logits, torch.full((2000,), 0.99999994))
    assert (first == 1).all() or (torch.softmax(logits, 1).gather(1, first[:, None]) > 0).all()
    assert ((first > 0) & (first < 14) & (last > 0) & (last < 14)).all()
    assert (log_probs > -100).all()
    flat = torch.zeros(1, 15)
    assert sample_actions(flat, torch.tensor([0.0]))[0].item() == 0
    assert sample_actions(flat, torch.tensor([0.99999994]))[0].item() == 14


def test_log_probabilities_are_those_of_the_drawn_actions():
    generator = torch.Generator().manual_seed(4)
    logits, uniform = torch.randn(100, 15, generator=generator) * 3, torch.rand(100, generator=generator)
    actions, log_probs = sample_actions(logits, uniform)
    assert actions.dtype == torch.int64 and log_probs.dtype == torch.float32
    for n in range(100):
        row = logits[n].double()
        expected = row[actions[n]] - torch.log(torch.exp(row).sum())
        assert log_probs[n].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("settings", [LAB, EASY])
def test_network_compiles_as_one_graph_with_the_same_output(settings):
    network, frames = random_network(settings), random_frames(3)
    compiled = torch.compile(network, backend="eager", fullgraph=True)  # raises at the first break
    for precision in (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False)):
        with torch.no_grad(), precision:
            for one, other in zip(compiled(frames), network(frames), strict=True):
                torch.testing.assert_close(one, other)
