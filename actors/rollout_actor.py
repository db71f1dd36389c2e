"""Steps a batch of Procgen environments under a given policy and returns rollouts. Plain Python, no Ray."""

import time
from dataclasses import astuple

import numpy as np
import torch

from actors.environments import EnvGroup, FinishedEpisode, make_env_groups
from actors.inference import make_inference
from common.config import Config
from common.games import OBSERVATION_SHAPE
from common.messages import ActorIdentity, ActorState, FinishedEpisodes, Rollout, Weights, weights_sha256
from common.policy_network import PolicyNetwork
from common.precision import autocast
from common.seeding import derive_seed


class RolloutActor:
    """A batch of environments that is never reset between rollouts, and the policy that acts in it.

    With half batches Procgen steps one half while the policy acts for the other. This helps only if the two do not
    share a core: by default it is used with the policy on a GPU.

    Every `identity` has its own level order and action noise. With `state` the actor continues where it was saved.
    """

    def __init__(self, config: Config, identity: ActorIdentity, state: ActorState | None = None):
        self.actor_id, self.incarnation = identity.actor_id, identity.incarnation
        self.unroll_length = config.unroll_length
        self.num_envs = config.envs_per_actor
        self.device = torch.device("cuda" if config.actor_gpus else "cpu")
        self.precision = config.actor_precision
        self.policy = PolicyNetwork(config.network).to(self.device).eval()
        levels_seed = derive_seed(config.seed, "levels", *astuple(identity))
        self.steps = 0 if state is None else int(state.steps)
        self.groups = make_env_groups(config, levels_seed, config.half_batches, state)
        self.inferences = [
            make_inference(self.policy, len(group.running_length), self.precision, config.cuda_graphs)
            for group in self.groups
        ]
        self.generator = torch.Generator().manual_seed(derive_seed(config.seed, "actions", *astuple(identity)))
        if state is not None:
            self.generator.set_state(torch.from_numpy(state.generator.copy()))
        # Allocated once: Ray copies them when `collect` returns.
        steps_by_envs = (self.unroll_length, self.num_envs)
        self.observations = np.zeros((*steps_by_envs, *OBSERVATION_SHAPE), np.uint8)
        self.actions = np.zeros(steps_by_envs, np.int32)
        self.rewards = np.zeros(steps_by_envs, np.float32)
        self.dones = np.zeros(steps_by_envs, np.bool_)
        self.log_probs = np.zeros(steps_by_envs, np.float32)
        self.values = np.zeros(steps_by_envs, np.float32)
        self.bootstrap_value = np.zeros(self.num_envs, np.float32)
        self.bootstrap_observation = np.zeros((1, self.num_envs, *OBSERVATION_SHAPE), np.uint8)

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Steps every environment `unroll_length` times with `weights`.

        The next call reuses the arrays of the result: copy what you keep longer.
        """
        started = time.perf_counter()
        self._load(weights)
        finished: list[FinishedEpisode] = []
        uniform = torch.rand(self.unroll_length, self.num_envs, generator=self.generator).numpy()
        # One autocast region for the whole rollout: on a CPU the weights are rounded to bfloat16 once.
        with torch.inference_mode(), autocast(self.device, self.precision):
            for t in range(self.unroll_length):
                for group, inference in zip(self.groups, self.inferences, strict=True):
                    frames = self._receive(group, t, finished)
                    inference.start(frames, uniform[t, group.columns])
                    self.observations[t, group.columns] = frames
                    actions, log_probs, values = inference.finish()
                    group.envs.act(actions)
                    self.actions[t, group.columns] = actions
                    self.log_probs[t, group.columns] = log_probs
                    self.values[t, group.columns] = values
            for group, inference in zip(self.groups, self.inferences, strict=True):
                frames = self._receive(group, self.unroll_length, finished)
                inference.start(frames, uniform[-1, group.columns])  # no action is taken here
                self.bootstrap_observation[0, group.columns] = frames
                self.bootstrap_value[group.columns] = inference.finish()[2]
        self.steps += self.unroll_length
        return Rollout(
            policy_version=policy_version,
            actor_id=self.actor_id,
            observations=self.observations,
            actions=self.actions,
            rewards=self.rewards,
            dones=self.dones,
            behavior_log_probs=self.log_probs,
            values=self.values,
            bootstrap_value=self.bootstrap_value,
            bootstrap_observation=self.bootstrap_observation,
            episodes=FinishedEpisodes(
                returns=np.array([e.episode_return for e in finished], np.float32),
                lengths=np.array([e.length for e in finished], np.int32),
                levels=np.array([e.level for e in finished], np.int32),
            ),
            next_state=self.state(),
            weights_sha256=weights_sha256(self.policy.weights()),
            seconds=time.perf_counter() - started,
            incarnation=self.incarnation,
        )

    def state(self) -> ActorState:
        """The state from which another actor continues exactly. Valid only between rollouts."""
        saved = [state for group in self.groups for state in group.envs.get_state()]
        return ActorState(
            env_states=np.frombuffer(b"".join(saved), np.uint8),
            env_state_sizes=np.array([len(state) for state in saved], np.int64),
            running_return=np.concatenate([group.running_return for group in self.groups]),
            running_length=np.concatenate([group.running_length for group in self.groups]),
            generator=self.generator.get_state().numpy(),
            steps=np.array(self.steps, np.int64),
        )

    def _load(self, weights: Weights) -> None:
        self.policy.load_weights(weights)
        if self.device.type == "cuda":  # inference runs on other CUDA streams than these copies
            torch.cuda.synchronize(self.device)

    def _receive(self, group: EnvGroup, t: int, finished: list[FinishedEpisode]) -> np.ndarray:
        """Waits for the group's step t - 1, records its outcome and returns the frames to act on at step t.

        The reward of an action arrives with the next frame, and `first` means that the action ended the episode.
        At t = 0 they belong to the previous rollout, which has recorded them.
        """
        rewards, frames, first = group.envs.observe()
        if t > 0:
            self.rewards[t - 1, group.columns], self.dones[t - 1, group.columns] = rewards, first
            group.count_episodes(rewards, first, finished)
        return frames

    def close(self) -> None:
        """Frees the environments."""
        for group in self.groups:
            group.envs.close()
