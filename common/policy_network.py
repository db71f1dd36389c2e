"""The policy networks for 64 x 64 Procgen frames, and sampling from them.

impala: Espeholt et al. 2018 (IMPALA), figure 3 right ("large architecture"), without the LSTM.
impoola: the same with global average pooling before the 256-unit layer; Trumpp et al. 2025 (Impoola).
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.config import NetworkSettings
from common.games import NUM_ACTIONS
from common.messages import Weights

STAGE_CHANNELS = (16, 32, 32)
HIDDEN_UNITS = 256


class ResidualBlock(nn.Module):
    """relu, conv, relu, conv, plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(x))
        return x + self.conv2(F.relu(y, inplace=True))


class ConvStage(nn.Module):
    """conv, max-pool that halves height and width, two residual blocks."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.block1 = ResidualBlock(out_channels)
        self.block2 = ResidualBlock(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), kernel_size=3, stride=2, padding=1)
        return self.block2(self.block1(x))


class PolicyNetwork(nn.Module):
    """Frames to action logits and state values; at width 1 626,256 parameters (impala) or 110,160 (impoola)."""

    def __init__(self, settings: NetworkSettings):
        super().__init__()
        self.settings = settings
        channels = [settings.width * number for number in STAGE_CHANNELS]
        self.stages = nn.Sequential(*map(ConvStage, (3, *channels[:-1]), channels))
        pixels = 1 if settings.encoder == "impoola" else 8 * 8
        self.hidden = nn.Linear(pixels * channels[-1], HIDDEN_UNITS)
        self.policy_head = nn.Linear(HIDDEN_UNITS, NUM_ACTIONS)
        self.value_head = nn.Linear(HIDDEN_UNITS, 1)
        if settings.initialization == "glorot":
            for parameter in (*self.stages.parameters(), *self.hidden.parameters()):
                (nn.init.zeros_ if parameter.dim() == 1 else nn.init.xavier_uniform_)(parameter)
        if settings.orthogonal_heads:
            for head, gain in ((self.policy_head, 0.01), (self.value_head, 1.0)):
                nn.init.orthogonal_(head.weight, gain)
                nn.init.zeros_(head.bias)
        for parameter in self.stages.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 `[N, 64, 64, 3]` to float32 logits `[N, 15]` and values `[N]`.

        Procgen's bytes are NHWC; viewed as NCHW they are already channels-last, so nothing is copied.
        The heads always run in the parameters' type, float32, even under autocast: log-probabilities must not be
        rounded.
        """
        x = observations.permute(0, 3, 1, 2)
        exact = self.policy_head.weight.dtype
        x = x.to(torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else exact)
        x = self.features(x.mul_(1.0 / self.settings.observation_scale))
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(exact)
            return self.policy_head(x), self.value_head(x).squeeze(1)

    def features(self, x: Tensor) -> Tensor:
        """Scaled frames `[N, 3, 64, 64]` to the activations of the 256-unit layer `[N, 256]`."""
        x = self.stages(x)
        if self.settings.encoder == "impoola":
            x = F.relu(x).mean(dim=(2, 3))
        elif self.settings.relu_before_linear:
            x = F.relu(x)
        return F.relu(self.hidden(x.flatten(1)))

    def weights(self) -> Weights:
        """A copy of every parameter as float32 numpy arrays, by name."""
        tensors = self.state_dict()
        # One tensor, so that a single copy leaves the GPU.
        flat = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu().numpy()
        parts = np.split(flat, np.cumsum([tensor.numel() for tensor in tensors.values()])[:-1])
        return {name: part.reshape(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}

    def load_weights(self, weights: Weights) -> None:
        """Copies `weights` into the network; RuntimeError names missing parameters and wrong shapes."""
        # Ray's arrays are read-only views: copy before torch sees them.
        self.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


def num_parameters(settings: NetworkSettings) -> int:
    """Parameters of the network; no memory is allocated for them."""
    with torch.device("meta"):
        network = PolicyNetwork(settings)
    return sum(parameter.numel() for parameter in network.parameters())


def weights_bytes(settings: NetworkSettings) -> int:
    """Bytes of the network's `weights`."""
    return 4 * num_parameters(settings)


def sample_actions(logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws actions by inverting the cumulative distribution function.

    Args:
        logits: float32 `[N, 15]`.
        uniform: float32 `[N]` in [0, 1), one random number per row.

    Returns:
        int64 actions `[N]` and their float32 log-probabilities `[N]`.
    """
    log_probs = F.log_softmax(logits, dim=1)
    cumulative = log_probs.exp().cumsum(dim=1)
    # Rounding may leave the last entry below 1: scale the uniform so that it always falls inside.
    threshold = (uniform * cumulative[:, -1]).unsqueeze(1)
    actions = (cumulative <= threshold).sum(dim=1).clamp_(max=logits.shape[1] - 1)
    return actions, log_probs.gather(1, actions.unsqueeze(1)).squeeze(1)
