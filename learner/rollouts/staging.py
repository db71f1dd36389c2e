"""One update's batch of rollouts in preallocated memory, copied to the GPU while the learner trains."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.config import Config
from common.frame_compression import decompress_frames
from common.games import OBSERVATION_SHAPE
from common.messages import ActorState, Rollout


class Round(NamedTuple):
    """Columns of a batch, the environments that filled them, and which of these are new: int arrays.

    An actor that collected several rollouts of one batch has one in each of the first rounds, in chronological order.
    """

    columns: np.ndarray
    environments: np.ndarray  # as many as columns
    new: np.ndarray  # the environments whose first steps these are: at the start, or of a replaced actor


class StagedBatch:
    """Preallocated memory for `num_actors` rollouts, `[T, B of all actors]`: on the host and on the learner's GPU.

    The rollout in slot k fills columns [k * envs_per_actor, (k + 1) * envs_per_actor). Used by one thread at a time:
    the rollout stream's until the batch is full, then the training thread until its next `publish`.
    """

    def __init__(self, config: Config, device: torch.device):
        self.envs_per_rollout = config.envs_per_actor
        pinned = device.type == "cuda"  # copies from pinned memory run while the GPU computes
        shape = (config.unroll_length, config.num_envs)

        def filled(value: float, *dims: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full(dims, value, dtype=dtype, pin_memory=pinned)

        # Absurd values, so that reading a column before it is written does not go unnoticed.
        self.observations = filled(255, *shape, *OBSERVATION_SHAPE, dtype=torch.uint8)
        self.actions = filled(-1, *shape, dtype=torch.int32)
        self.rewards = filled(float("nan"), *shape)
        self.dones = filled(True, *shape, dtype=torch.bool)
        self.behavior_log_probs = filled(float("nan"), *shape)
        self.values = filled(float("nan"), *shape)
        self.bootstrap_value = filled(float("nan"), config.num_envs)
        self.bootstrap_observation = filled(255, config.num_envs, *OBSERVATION_SHAPE, dtype=torch.uint8)
        self.upload = _Upload(self.host_tensors(), device) if pinned else None
        self.sources: dict[int, RolloutSource] = {}
        self.staging_seconds = 0.0

    def host_tensors(self) -> list[Tensor]:
        """The tensors that are needed on the learner's device; raw rewards stay on the host."""
        return [
            self.observations,
            self.actions,
            self.behavior_log_probs,
            self.values,
            self.dones,
            self.bootstrap_value,
            self.bootstrap_observation,
        ]

    def start_upload(self) -> None:
        """Called when the batch is full; the learner may still be training on the previous one."""
        if self.upload is not None:
            self.upload.start()

    def device_tensors(self) -> list[Tensor]:
        """`host_tensors` on the learner's device. Kernels launched after this call wait for the upload."""
        return self.host_tensors() if self.upload is None else self.upload.finish()

    def clear(self) -> None:
        """Forgets the sources of the last contents, before the memory is used again."""
        self.sources.clear()
        self.staging_seconds = 0.0

    def stage(self, slot: int, rollout: Rollout, transfer_seconds: float = 0.0) -> None:
        """Copies one rollout into its columns and keeps no reference to it.

        Raises:
            DamagedFrames: its compressed frames cannot be read; nothing was copied.
        """
        columns = slice(slot * self.envs_per_rollout, (slot + 1) * self.envs_per_rollout)
        observations = decompress_frames(rollout.observations)
        (bootstrap_observation,) = decompress_frames(rollout.bootstrap_observation)
        for target, source in (
            (self.observations, observations),
            (self.actions, rollout.actions),
            (self.rewards, rollout.rewards),
            (self.dones, rollout.dones),
            (self.behavior_log_probs, rollout.behavior_log_probs),
            (self.values, rollout.values),
        ):
            np.copyto(target.numpy()[:, columns], source)
        np.copyto(self.bootstrap_value.numpy()[columns], rollout.bootstrap_value)
        np.copyto(self.bootstrap_observation.numpy()[columns], bootstrap_observation)
        self.sources[slot] = RolloutSource(
            actor_id=rollout.actor_id,
            policy_version=rollout.policy_version,
            episode_envs=np.nonzero(rollout.dones)[1],
            episode_returns=rollout.episodes.returns.copy(),
            episode_lengths=rollout.episodes.lengths.copy(),
            collect_seconds=rollout.seconds,
            transfer_seconds=transfer_seconds,
            frame_bytes=rollout.observations.nbytes,
            next_state=copy.deepcopy(rollout.next_state),
            incarnation=rollout.incarnation,
        )

    def oldest_version(self) -> int:
        """The lowest policy_version that acted in this batch; -1 if no rollout was staged."""
        return min((source.policy_version for source in self.sources.values()), default=-1)

    def rounds(self) -> list[Round]:
        """Every actor's first rollout, then the second ones, each in order of slots."""
        sources_by_slot: list[dict[int, RolloutSource]] = []
        for slot, source in self.sources.items():  # in order of arrival
            actors = [{other.actor_id for other in sources.values()} for sources in sources_by_slot]
            of_round = next((k for k, others in enumerate(actors) if source.actor_id not in others), None)
            if of_round is None:
                sources_by_slot.append({slot: source})
            else:
                sources_by_slot[of_round][slot] = source
        unroll_length = len(self.rewards)
        return [
            Round(
                self._expand(sorted(sources)),
                self._expand([sources[slot].actor_id for slot in sorted(sources)]),
                self._expand([one.actor_id for one in sources.values() if one.next_state.steps == unroll_length]),
            )
            for sources in sources_by_slot
        ]

    def _expand(self, blocks: Sequence[int]) -> np.ndarray:
        """int64 indices: the columns of slots, or the environments of actors."""
        within = np.arange(self.envs_per_rollout)
        return (np.array(blocks, np.int64)[:, None] * self.envs_per_rollout + within).reshape(-1)


class _Upload:
    """Copies pinned tensors to the GPU on a separate CUDA stream."""

    def __init__(self, sources: list[Tensor], device: torch.device):
        self.sources = sources
        self.targets = [torch.empty_like(source, device=device) for source in sources]
        self.stream = torch.cuda.Stream(device)
        self.done = torch.cuda.Event()

    def start(self) -> None:
        with torch.cuda.stream(self.stream):
            for target, source in zip(self.targets, self.sources, strict=True):
                target.copy_(source, non_blocking=True)
            self.done.record(self.stream)

    def finish(self) -> list[Tensor]:
        torch.cuda.current_stream().wait_event(self.done)
        return self.targets


@dataclass(frozen=True, slots=True)
class RolloutSource:
    """Where the rollout in one slot came from, and the episodes that ended in it."""

    actor_id: int
    policy_version: int
    episode_envs: np.ndarray  # which of the actor's environments each episode ended in
    episode_returns: np.ndarray
    episode_lengths: np.ndarray
    collect_seconds: float
    transfer_seconds: float  # from request to delivery, less collecting: queues, network, object store
    frame_bytes: int  # of the observations as sent, without the bootstrap observations
    next_state: ActorState  # the actor's state after this rollout
    incarnation: int = 0  # how often the actor had been replaced

    @property
    def sequence(self) -> tuple[int, int]:
        """Increases from each rollout of an actor to its next one, whatever batches they are in."""
        return self.incarnation, int(self.next_state.steps)
