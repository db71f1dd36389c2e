"""What a run remembers beside the learner: recent episodes, counters, and the state of every actor's environments."""

from collections.abc import Container
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch

from common.config import Config
from common.messages import ActorState, Weights
from learner.rollouts.counters import RunCounters
from learner.rollouts.episodes import TrainingEpisodes
from learner.rollouts.staging import StagedBatch


@dataclass(slots=True)
class RunState:
    """Part of every checkpoint. Used by the main thread; the fleet and the stream write to `counters` on theirs."""

    episodes: TrainingEpisodes
    counters: RunCounters = field(default_factory=RunCounters)
    # By actor_id, after the last of its rollouts that was trained on.
    actors: dict[int, ActorState] = field(default_factory=dict)
    # The `sequence` of that rollout; none before this process started.
    sequences: dict[int, tuple[int, int]] = field(default_factory=dict)
    # By policy_version, the newest last: those that rollouts in flight may use. All but the newest, which is the
    # checkpoint's policy, are saved.
    weights: dict[int, Weights] = field(default_factory=dict)

    def published(self, policy_version: int, weights: Weights, max_policy_lag: int) -> None:
        """Keeps the weights of `policy_version` and of `max_policy_lag` versions before it."""
        self.weights[policy_version] = weights
        self.keep_weights(range(policy_version - max_policy_lag, policy_version + 1))

    def keep_weights(self, versions: Container[int]) -> None:
        """Forgets the weights of all other versions."""
        self.weights = {version: weights for version, weights in self.weights.items() if version in versions}

    @staticmethod
    def new(config: Config) -> "RunState":
        """The state before the first update."""
        return RunState(TrainingEpisodes(config.game.time_limit, config.num_envs, config.envs_per_actor))

    def record(self, batch: StagedBatch) -> None:
        """Keeps the episodes and the actors' states of a batch that was trained on."""
        for source in batch.sources.values():
            # Not the order of training: after a loss, an actor that is ahead may fill a slot of an earlier batch.
            if source.sequence > self.sequences.get(source.actor_id, (-1, -1)):
                self.actors[source.actor_id], self.sequences[source.actor_id] = source.next_state, source.sequence
        self.episodes.record(batch.sources.values())

    def forget_environments(self) -> None:
        """All environments start again, for instance because another number of actors shares them."""
        self.actors.clear()
        self.episodes.clear()

    def state_dict(self) -> dict[str, Any]:
        """A copy as tensors and plain values."""
        counters = asdict(self.counters)
        del counters["actors_ready"]
        return {
            "episodes": self.episodes.state_dict(),
            "counters": counters,
            "actors": {
                actor_id: {f.name: torch.from_numpy(np.array(getattr(state, f.name))) for f in fields(ActorState)}
                for actor_id, state in self.actors.items()
            },
            "weights": {
                version: {name: torch.from_numpy(array) for name, array in weights.items()}
                for version, weights in list(self.weights.items())[:-1]
            },
        }

    @staticmethod
    def from_state_dict(state: dict[str, Any], config: Config) -> "RunState":
        """The state that `state_dict` was called on; `config` is that of the checkpoint."""
        restored = RunState.new(config)
        restored.counters = RunCounters(**state["counters"])
        if "episodes" in state:  # older checkpoints had the last episodes by order of ending
            restored.episodes.load_state_dict(state["episodes"])
        for version, tensors in state.get("weights", {}).items():
            restored.weights[version] = {name: tensor.numpy() for name, tensor in tensors.items()}
        for actor_id, arrays in state["actors"].items():
            restored.actors[actor_id] = ActorState(**{name: tensor.numpy() for name, tensor in arrays.items()})
        return restored
