"""The Ray actor around `RolloutActor`. It is called and returns; it never calls the learner."""

import os
import socket
from dataclasses import dataclass

import ray

from actors.rollout_actor import RolloutActor
from common.code_version import require_same_code
from common.config import Config
from common.messages import ActorState, Rollout, Weights
from common.process import prepare_process


@dataclass(frozen=True, slots=True)
class Place:
    """Where an actor's process runs."""

    host: str
    process_id: int
    node_id: str


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class RemoteRolloutActor:
    """Lives in a process of its own, on any node of the cluster."""

    def __init__(
        self,
        learners_code: str,
        config: Config,
        actor_id: int,
        incarnation: int,
        started_at: int,
        state: ActorState | None,
    ):
        require_same_code(learners_code, socket.gethostname())
        prepare_process(num_threads=1, sees_gpu=config.actor_gpus > 0)
        self.actor = RolloutActor(config, actor_id, incarnation, started_at, state)

    def place(self) -> Place:
        """Where it lives; answering proves that the code is the learner's and the environments were built."""
        return Place(socket.gethostname(), os.getpid(), ray.get_runtime_context().get_node_id())

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Returned, not put: the value then belongs to the learner and survives this process."""
        return self.actor.collect(weights, policy_version)
