"""Steps a batch of Procgen environments under a given policy and returns rollouts. Plain Python, no Ray."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from common.config import Config
from common.games import OBSERVATION_SHAPE
from common.messages import FinishedEpisodes, Rollout, Weights
from common.policy_network import PolicyNetwork, sample_actions
from common.process import autocast, choose_precision
from common.procgen_env import make_envs, observe
from common.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Finished:
    """One episode that ended, as the bookkeeping collects them."""

    episode_return: float
    length: int
    level: int


class RolloutActor:
    """One batch of environments that is never reset between rollouts, and the policy that acts in it.

    `incarnation` counts replacements of a lost actor, `started_at` is the policy_version at which the run was started
    or resumed: each gets level orders and action noise of its own.
    """

    def __init__(self, config: Config, actor_id: int, incarnation: int = 0, started_at: int = 0):
        self.actor_id = actor_id
        self.unroll_length = config.unroll_length
        self.num_envs = config.envs_per_actor
        self.device = torch.device("cpu")
        self.precision = choose_precision(config.precision, self.device)
        self.policy = PolicyNetwork(config.network).eval()
        life = (actor_id, incarnation, started_at)
        self.envs = make_envs(
            self.num_envs,
            config.env_name,
            config.distribution_mode,
            config.start_level,
            config.num_levels,
            rand_seed=derive_seed(config.seed, "levels", *life),
        )
        self.generator = torch.Generator().manual_seed(derive_seed(config.seed, "actions", *life))
        self.running_return = np.zeros(self.num_envs, np.float64)
        self.running_length = np.zeros(self.num_envs, np.int32)
        # One set of arrays for the actor's life: Ray copies them out when `collect` returns.
        steps_by_envs = (self.unroll_length, self.num_envs)
        self.observations = np.zeros((*steps_by_envs, *OBSERVATION_SHAPE), np.uint8)
        self.actions = np.zeros(steps_by_envs, np.int32)
        self.rewards = np.zeros(steps_by_envs, np.float32)
        self.dones = np.zeros(steps_by_envs, np.bool_)
        self.log_probs = np.zeros(steps_by_envs, np.float32)
        self.values = np.zeros(steps_by_envs, np.float32)

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Steps every environment `unroll_length` times with `weights`.

        The arrays of the result are reused by the next call: copy what must outlive it.
        """
        started = time.perf_counter()
        self.policy.load_weights(weights)
        finished: list[Finished] = []
        # One autocast region for the whole rollout: the weights are rounded to bfloat16 once.
        with torch.inference_mode(), autocast(self.device, self.precision):
            _, frames, _ = observe(self.envs)
            for t in range(self.unroll_length):
                self.observations[t] = frames
                actions, log_probs, values = self._act(frames)
                self.envs.act(actions)
                self.actions[t], self.log_probs[t], self.values[t] = actions, log_probs, values
                # The reward of the action at t arrives with the next frame; first there means done here.
                self.rewards[t], frames, self.dones[t] = observe(self.envs)
                self._count_episodes(self.rewards[t], self.dones[t], finished)
            bootstrap_value = self.policy(torch.from_numpy(frames))[1].numpy()
        return Rollout(
            policy_version=policy_version,
            actor_id=self.actor_id,
            observations=self.observations,
            actions=self.actions,
            rewards=self.rewards,
            dones=self.dones,
            behavior_log_probs=self.log_probs,
            values=self.values,
            bootstrap_value=bootstrap_value,
            episodes=FinishedEpisodes(
                returns=np.array([e.episode_return for e in finished], np.float32),
                lengths=np.array([e.length for e in finished], np.int32),
                levels=np.array([e.level for e in finished], np.int32),
            ),
            seconds=time.perf_counter() - started,
        )

    def _act(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int32 actions, float32 log-probabilities and values, each `[B]`, for uint8 frames `[B, 64, 64, 3]`."""
        logits, values = self.policy(torch.from_numpy(frames))
        actions, log_probs = sample_actions(logits, torch.rand(self.num_envs, generator=self.generator))
        return actions.to(torch.int32).numpy(), log_probs.numpy(), values.numpy()

    def _count_episodes(self, rewards: np.ndarray, dones: np.ndarray, finished: list[Finished]) -> None:
        self.running_return += rewards
        self.running_length += 1
        if not dones.any():
            return
        info = self.envs.get_info()
        for i in np.flatnonzero(dones):
            level = info[i]["prev_level_seed"]
            finished.append(Finished(float(self.running_return[i]), int(self.running_length[i]), level))
        self.running_return[dones] = 0
        self.running_length[dones] = 0

    def close(self) -> None:
        """Frees the environments."""
        self.envs.close()
