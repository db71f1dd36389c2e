"""The messages between roles. Plain numpy, no torch, so that Ray can move them without copies.

Axis order is time-major `[T, B]` everywhere: T steps, B environments of one actor.

    learner --Weights--> actor --Rollout--> learner --CheckpointNotice--> evaluator --Evaluation--> run directory

Worked example, T=2, B=1, the episode ends with the second action and pays 10:

    observations        [[o0], [o1]]     what the policy saw before each action
    actions             [[7], [4]]
    rewards             [[0.], [10.]]    raw, paid for the action at t
    dones               [[0], [1]]       the action at t ended the episode (time-outs included)
    bootstrap_value     [V(o2)]          o2 is already the NEXT episode's first frame; dones[1] masks it
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.frame_compression import Frames

Weights = dict[str, np.ndarray]  # the policy's state_dict, float32


@dataclass(frozen=True, slots=True)
class ActorIdentity:
    """Which actor this is. Level orders and action noise are seeded by all three fields (and the run's seed)."""

    actor_id: int
    incarnation: int = 0  # how often this actor has been replaced since the learner process started
    start_version: int = 0  # the policy_version at which the learner process started or resumed the run


@dataclass(frozen=True, slots=True)
class FinishedEpisodes:
    """The episodes that ended in a rollout, by step, then environment: as `np.nonzero(dones)`. All arrays are `[E]`."""

    returns: np.ndarray  # float32, undiscounted sum of raw reward
    lengths: np.ndarray  # int32, steps
    levels: np.ndarray  # int32, the level seed that was played


@dataclass(frozen=True, slots=True)
class ActorState:
    """The state of an actor between two rollouts: its B environments, their unfinished episodes, its action noise."""

    env_states: np.ndarray  # uint8 [sum of env_state_sizes], Procgen's saved states, concatenated
    env_state_sizes: np.ndarray  # int64 [B], bytes
    running_return: np.ndarray  # float64 [B], raw reward of the unfinished episodes so far
    running_length: np.ndarray  # int32 [B], their steps so far
    generator: np.ndarray  # uint8, state of the torch.Generator that samples actions
    # int64 [], steps that each environment has taken since it began; 0 in checkpoints older than this field
    steps: np.ndarray = field(default_factory=lambda: np.zeros((), np.int64))

    def split_env_states(self) -> list[bytes]:
        """Procgen's saved states, one per environment."""
        ends = np.cumsum(self.env_state_sizes)
        starts = ends - self.env_state_sizes
        return [self.env_states[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one `collect` returns: T = unroll_length steps of B environments under one policy version."""

    policy_version: int
    actor_id: int
    observations: Frames  # uint8 [T, B, 64, 64, 3], possibly compressed in transit
    actions: np.ndarray  # int32 [T, B]
    rewards: np.ndarray  # float32 [T, B], raw
    dones: np.ndarray  # bool [T, B]
    behavior_log_probs: np.ndarray  # float32 [T, B]
    values: np.ndarray  # float32 [T, B]
    bootstrap_value: np.ndarray  # float32 [B]
    bootstrap_observation: Frames  # uint8 [1, B, 64, 64, 3], what follows the last action; perhaps compressed
    episodes: FinishedEpisodes
    next_state: ActorState  # where the next rollout continues
    weights_sha256: str  # `weights_sha256` of the parameters the actor acted with
    seconds: float  # wall time of the collect
    incarnation: int = 0  # of the actor: how often it had been replaced


@dataclass(frozen=True, slots=True)
class CheckpointNotice:
    """Sent to the evaluator when a checkpoint is complete on disk."""

    path: str
    policy_version: int
    frames: int


@dataclass(frozen=True, slots=True)
class EvaluatorStatus:
    """What the evaluator answers to the learner."""

    row: dict[str, Any] | None = None  # newest of evaluations.jsonl; None: no row yet, or the call timed out
    last_error: str | None = None
    unfinished: frozenset[int] = frozenset()  # the policy versions being scored or waiting
    newest_known: int = -1  # the newest policy_version it was notified of or found


def weights_sha256(weights: Weights) -> str:
    """Hex digest of all names and values, to check that two processes have the same parameters."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(weights[name]).data)
    return digest.hexdigest()


def rollout_bytes(unroll_length: int, num_envs: int) -> int:
    """Bytes of one rollout's arrays: per environment step 12,288 of pixels and 17 of everything else, and one more
    frame of each environment.
    """
    frame = 64 * 64 * 3
    return unroll_length * num_envs * (frame + 4 * 4 + 1) + num_envs * frame
