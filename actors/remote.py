"""The Ray actor around `RolloutActor`. It is called and returns; it never calls the learner."""

import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import ray

from actors.rollout_actor import RolloutActor
from common.config import Config
from common.frame_compression import compress_frames
from common.messages import ActorState, Rollout, Weights
from common.process import end_with_parent, prepare_process
from common.versions import require_same_software


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process runs."""

    host: str
    process_id: int
    node_id: str


@dataclass(frozen=True, slots=True)
class Learner:
    """Whom the rollouts are for."""

    software: Mapping[str, str]
    node_id: str


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class RemoteRolloutActor:
    """Lives in a process of its own, on any node of the cluster."""

    def __init__(
        self,
        learner: Learner,
        config: Config,
        actor_id: int,
        incarnation: int,
        started_at: int,
        state: ActorState | None,
    ):
        require_same_software(learner.software, socket.gethostname())
        end_with_parent()
        prepare_process(num_threads=1, sees_gpu=config.actor_gpus > 0)
        self.actor = RolloutActor(config, actor_id, incarnation, started_at, state)
        # Within a node nothing is sent: the object store is shared memory.
        is_remote = learner.node_id != ray.get_runtime_context().get_node_id()
        self.compresses = config.compression == "zstd" or (config.compression == "remote" and is_remote)

    def place(self) -> Place:
        """Where it lives; answering proves that the code is the learner's and the environments were built."""
        return Place(socket.gethostname(), os.getpid(), ray.get_runtime_context().get_node_id())

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Returned, not put: the value then belongs to the learner and survives this process."""
        rollout = self.actor.collect(weights, policy_version)
        if not self.compresses:
            return rollout
        return dataclasses.replace(rollout, observations=compress_frames(rollout.observations))
