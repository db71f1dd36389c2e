"""The Ray actor around `RolloutActor`. It is called and returns; it never calls the learner."""

import os
import socket

import ray

from actors.rollout_actor import RolloutActor
from common.config import Config
from common.messages import Rollout, Weights
from common.process import prepare_process


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class RemoteRolloutActor:
    """Lives in a process of its own, on any node of the cluster."""

    def __init__(self, config: Config, actor_id: int, incarnation: int, started_at: int):
        prepare_process(num_threads=1, sees_gpu=config.actor_gpus > 0)
        self.actor = RolloutActor(config, actor_id, incarnation, started_at)

    def place(self) -> tuple[str, int]:
        """(host, process id): answering proves that the environments were built."""
        return socket.gethostname(), os.getpid()

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Returned, not put: the value then belongs to the learner and survives this process."""
        return self.actor.collect(weights, policy_version)
