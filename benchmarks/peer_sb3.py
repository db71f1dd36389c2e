"""Stable-Baselines3 PPO as its users write it: a VecEnv, a features extractor, `PPO(...).learn(...)`.

It keeps its own defaults: images in CHW (`VecTransposeImage`), one tensor of all samples, advantages normalized per
minibatch.
"""

import time
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from benchmarks.peers import Iteration, warm_up
from benchmarks.report import available_cores
from common.config import Config, NetworkSettings
from common.games import NUM_ACTIONS, OBSERVATION_SHAPE
from common.policy_network import HIDDEN_UNITS, PolicyNetwork
from common.procgen_env import make_envs


class ProcgenVecEnv(VecEnv):
    """One Procgen batch. Rewards are signs; the frame returned with done is the next episode's first, as SB3 expects.

    Procgen never shows a terminal frame and cannot be reset: a reset returns the newest frames.
    """

    def __init__(self, config: Config):
        game = (config.game, config.start_level, config.num_levels)
        self.envs = make_envs(config.num_envs, *game, rand_seed=1, num_threads=available_cores())
        observation_space = spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        super().__init__(config.num_envs, observation_space, spaces.Discrete(NUM_ACTIONS))

    def reset(self) -> np.ndarray:
        return self.envs.observe()[1]

    def step_async(self, actions: np.ndarray) -> None:
        self.envs.act(actions.astype(np.int32))

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        rewards, frames, first = self.envs.observe()
        return frames, np.sign(rewards), first, [{} for _ in range(self.num_envs)]

    def close(self) -> None:
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.envs, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]


class Trunk(BaseFeaturesExtractor):
    """Our network without its heads, which SB3 creates itself."""

    def __init__(self, observation_space: spaces.Box, settings: NetworkSettings):
        super().__init__(observation_space, HIDDEN_UNITS)
        self.network = PolicyNetwork(settings)
        del self.network.policy_head, self.network.value_head

    def forward(self, frames: Tensor) -> Tensor:
        """Maps float32 `[N, 3, 64, 64]`, 0 to 255, to `[N, 256]`."""
        return self.network.features(frames / self.network.settings.observation_scale)


class Stopwatch(BaseCallback):
    """Records when a rollout is complete."""

    collected = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.collected = time.perf_counter()


def make_ppo(config: Config, envs: VecEnv) -> PPO:
    """SB3's PPO with the preset's settings."""
    return PPO(
        "CnnPolicy",
        envs,
        n_steps=config.unroll_length,
        batch_size=config.minibatch_size,
        n_epochs=config.update_epochs,
        learning_rate=config.learning_rate,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip_coef,
        clip_range_vf=config.clip_coef,
        ent_coef=config.ent_coef,
        vf_coef=config.vf_coef,
        max_grad_norm=config.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {"settings": config.network},
            "net_arch": [],
            "ortho_init": config.orthogonal_heads,
            "normalize_images": False,  # SB3 would divide by 255
            "optimizer_kwargs": {"eps": config.adam_eps},
        },
        seed=config.seed,
        device="cpu",
    )


def measure(config: Config) -> Iteration:
    """Times one rollout and its update, after a short iteration to warm up."""
    envs = ProcgenVecEnv(config)
    small = warm_up(config)
    make_ppo(small, envs).learn(small.batch_size)
    ppo, stopwatch = make_ppo(config, envs), Stopwatch()
    started = time.perf_counter()
    ppo.learn(config.batch_size, callback=stopwatch)
    finished = time.perf_counter()
    envs.close()
    collecting, training = stopwatch.collected - started, finished - stopwatch.collected
    return Iteration(ppo.num_timesteps, finished - started, collecting, training)
