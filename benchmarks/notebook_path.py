"""`python -m benchmarks.notebook_path`: frames/s of the teaching notebook's data path, the common starting point.

One process; frames are transposed to float32 NCHW; each sample is a separate tensor in a deque; minibatches are made
by concatenating 2,048 samples. The algorithm is that of preset `lab`. Prints one JSON object after a short warm-up.
"""

import json
import resource
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from benchmarks.report import make_parser
from common.games import Game
from common.procgen_env import make_envs

NUM_ENVS, NUM_STEPS, MINIBATCH, EPOCHS = 64, 256, 2048, 3
GAMMA, GAE_LAMBDA, CLIP = 0.999, 0.95, 0.2


class Block(nn.Module):
    """A residual block with a separate activation module that does not work in place."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.relu(self.first(self.relu(x))))


class Network(nn.Module):
    """Maps float32 NCHW frames to a distribution, made from probabilities, and values `[N, 1]`."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            stages += [nn.Conv2d(before, after, 3, 1, 1), nn.MaxPool2d(3, 2, 1), Block(after), Block(after)]
        self.stages = nn.Sequential(*stages)
        self.hidden, self.policy, self.value = nn.Linear(2048, 256), nn.Linear(256, 15), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> tuple[Categorical, Tensor]:
        features = torch.relu(self.hidden(self.stages(x).flatten(1)))
        return Categorical(probs=torch.softmax(self.policy(features), 1)), self.value(features)


def as_floats(frames: np.ndarray) -> Tensor:
    """uint8 `[N, 64, 64, 3]` to float32 `[N, 3, 64, 64]`, divided by 256."""
    return torch.FloatTensor(frames.transpose(0, 3, 1, 2)) / 256


class SampleBuffer:
    """One deque of single samples for each kind of data."""

    def __init__(self, size: int):
        self.size = size
        self.data: dict[str, deque[Tensor]] = {}

    def extend(self, **columns: Tensor) -> None:
        for name, column in columns.items():
            self.data.setdefault(name, deque(maxlen=self.size)).extend(column.split(1))

    def minibatches(self) -> Iterator[dict[str, Tensor]]:
        for indices in np.random.permutation(self.size).reshape(-1, MINIBATCH):
            yield {name: torch.cat([samples[i] for i in indices]) for name, samples in self.data.items()}


@torch.no_grad()
def rollout(envs: Any, network: Network, buffer: SampleBuffer, num_steps: int) -> None:
    """Fills the buffer with `num_steps` steps of every environment."""
    steps: dict[str, list[Tensor]] = {name: [] for name in ("states", "actions", "log_probs", "values")}
    rewards, masks = [], []
    state = as_floats(envs.observe()[1])
    for _ in range(num_steps):
        distribution, value = network(state)
        action = distribution.sample()
        envs.act(action.numpy().astype(np.int32))
        for items, item in zip(steps.values(), (state, action, distribution.log_prob(action), value), strict=True):
            items.append(item)
        reward, frames, first = envs.observe()
        rewards.append(torch.from_numpy(np.sign(reward)).unsqueeze(1))
        masks.append(torch.from_numpy(1.0 - first.astype(np.float32)).unsqueeze(1))
        state = as_floats(frames)
    next_value = network(state)[1]
    advantage = torch.zeros_like(next_value)
    advantages, returns = deque[Tensor](), deque[Tensor]()
    for t in reversed(range(num_steps)):
        delta = rewards[t] + GAMMA * next_value * masks[t] - steps["values"][t]
        advantage = delta + GAMMA * GAE_LAMBDA * masks[t] * advantage
        next_value = steps["values"][t]
        advantages.appendleft(advantage)
        returns.appendleft(advantage + next_value)
    flat = torch.cat(list(advantages)).squeeze(1)
    buffer.extend(
        returns=torch.cat(list(returns)),
        advantages=(flat - flat.mean()) / (flat.std() + 1e-8),
        **{name: torch.cat(items) for name, items in steps.items()},
    )


def update(network: Network, optimizer: torch.optim.Optimizer, buffer: SampleBuffer) -> None:
    """Trains for three epochs of PPO."""
    for _ in range(EPOCHS):
        for batch in buffer.minibatches():
            distribution, values = network(batch["states"])
            ratio = (distribution.log_prob(batch["actions"]) - batch["log_probs"]).exp()
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP) * batch["advantages"]
            objective = torch.min(ratio * batch["advantages"], clipped).mean()
            clipped_values = batch["values"] + (values - batch["values"]).clamp(-CLIP, CLIP)
            errors = (values - batch["returns"]) ** 2, (clipped_values - batch["returns"]) ** 2
            loss = torch.max(*errors).mean() - objective - 0.01 * distribution.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 40)
            optimizer.step()


def main() -> None:
    """Times one whole iteration."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="steps per rollout")
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    envs = make_envs(NUM_ENVS, Game("coinrun", "easy"), 0, 20, rand_seed=1, num_threads=4)
    warm_up = SampleBuffer(MINIBATCH)
    rollout(envs, network, warm_up, MINIBATCH // NUM_ENVS)
    update(network, optimizer, warm_up)
    del warm_up

    started = time.perf_counter()
    buffer = SampleBuffer(NUM_ENVS * steps)
    rollout(envs, network, buffer, steps)
    collected = time.perf_counter()
    update(network, optimizer, buffer)
    finished = time.perf_counter()
    result = {
        "frames_per_second": NUM_ENVS * steps / (finished - started),
        "seconds_collecting": collected - started,
        "seconds_training": finished - collected,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
