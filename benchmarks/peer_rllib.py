"""RLlib PPO as its users write it today: new API stack, a gymnasium environment, an RLModule, `PPOConfig`.

It keeps its own defaults: environments in a `SyncVectorEnv`, samples as episodes through its connectors, advantages
normalized over the batch. Env runners sample on all cores in parallel, then the learner trains on all cores.
"""

import logging
import time
from typing import Any

import gymnasium
import numpy as np
import ray
import torch
from gymnasium import spaces
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from benchmarks.peers import Iteration, warm_up
from benchmarks.report import available_cores
from common.config import Config
from common.games import NUM_ACTIONS, OBSERVATION_SHAPE
from common.policy_network import PolicyNetwork
from common.process import prepare_ray_environment
from common.procgen_env import make_envs


class ProcgenEnv(gymnasium.Env):
    """One Procgen environment. Rewards are signs; a reset returns the first frame of the next episode.

    RLlib resets one environment while the others step, but a Procgen batch steps all or none. So each environment is a
    batch of one on the caller's thread; 64 of these take no longer than one batch of 64.
    """

    observation_space = spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
    action_space = spaces.Discrete(NUM_ACTIONS)

    def __init__(self, env_config: dict[str, Any]):
        config = env_config["config"]
        game = (config.game, config.start_level, config.num_levels)
        self.env = make_envs(1, *game, rand_seed=np.random.randint(2**31 - 1))  # RLlib seeds numpy in each runner

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return self.env.observe()[1][0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.env.act(np.array([action], np.int32))
        rewards, frames, first = self.env.observe()
        return frames[0], float(np.sign(rewards[0])), bool(first[0]), False, {}

    def close(self) -> None:
        self.env.close()


class ProcgenModule(TorchRLModule, ValueFunctionAPI):
    """Our network; its input are Procgen's bytes."""

    def setup(self) -> None:
        assert isinstance(self.model_config, dict)
        self.network = PolicyNetwork(self.model_config["settings"])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        return {Columns.ACTION_DIST_INPUTS: self.network(batch[Columns.OBS])[0]}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        # The loss then asks for the values and passes these "embeddings", which avoids a second pass.
        logits, values = self.network(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: logits, Columns.EMBEDDINGS: values}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        if embeddings is not None:
            return embeddings
        # RLlib asks for the values of the whole batch before an update, with gradients: gigabytes of activations.
        with torch.no_grad():
            return torch.cat([self.network(frames)[1] for frames in batch[Columns.OBS].split(2048)])


def make_ppo(config: Config) -> Algorithm:
    """RLlib's PPO with the preset's settings; the learner runs in this process."""
    return (
        PPOConfig()
        .environment(ProcgenEnv, env_config={"config": config})
        .env_runners(
            num_env_runners=config.num_actors,  # one per core, like our actors
            num_envs_per_env_runner=config.envs_per_actor,
            rollout_fragment_length=config.unroll_length,
            sample_timeout_s=3600,  # the default, 60, would cut a slow iteration short
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=config.batch_size,
            minibatch_size=config.minibatch_size,
            num_epochs=config.update_epochs,
            lr=config.learning_rate,
            gamma=config.gamma,
            lambda_=config.gae_lambda,
            clip_param=config.clip_coef,
            vf_clip_param=config.clip_coef,  # bounds the squared error in RLlib: equal cost, not equal meaning
            entropy_coeff=config.ent_coef,
            vf_loss_coeff=config.vf_coef,
            grad_clip=config.max_grad_norm,
            grad_clip_by="global_norm",
            use_kl_loss=False,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=ProcgenModule, model_config={"settings": config.network}))
        .debugging(seed=config.seed, log_level="ERROR")
        .build_algo()
    )


def measure(config: Config) -> Iteration:
    """Times the first iteration of an algorithm, after a short iteration of another one to warm up."""
    prepare_ray_environment()
    quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init("local", num_cpus=available_cores(), **quiet)
    warming = make_ppo(warm_up(config))
    warming.train()
    warming.stop()
    ppo = make_ppo(config)
    started = time.perf_counter()
    result = ppo.train()
    seconds = time.perf_counter() - started
    ppo.stop()
    ray.shutdown()
    timers = result["timers"]  # running means, here of a single iteration
    frames = int(result["num_env_steps_sampled_lifetime"])
    return Iteration(frames, seconds, timers["env_runner_sampling_timer"], timers["learner_update_timer"])
