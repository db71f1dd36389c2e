"""The Ray actor around `RolloutActor`. The learner calls it; it never calls the learner."""

import contextlib
import dataclasses
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import ray

from actors.rollout_actor import RolloutActor
from common.config import Config
from common.frame_compression import compress_frames
from common.messages import ActorIdentity, ActorState, Rollout, Weights
from common.process import end_with_parent, prepare_process
from common.procgen_env import play_only
from common.versions import software


@dataclass(frozen=True, slots=True)
class Location:
    """Where an actor's process runs."""

    host: str
    process_id: int
    node_id: str  # Ray's, hexadecimal

    def __str__(self) -> str:
        return f"host {self.host}, process {self.process_id}, Ray node {self.node_id}"


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class RemoteRolloutActor:
    """Runs in its own process on any node of the cluster. Call `describe`, then `build`, then `collect` repeatedly."""

    def __init__(self) -> None:
        end_with_parent()

    def describe(self) -> tuple[Location, Mapping[str, str]]:
        """Where this process runs and its software versions. It needs nothing that may fail with other versions."""
        node_id = ray.get_runtime_context().get_node_id()
        return Location(socket.gethostname(), os.getpid(), node_id), software()

    def build(self, learner_node_id: str, config: Config, identity: ActorIdentity, state: ActorState | None) -> None:
        """Builds environments and policy; an answer proves that they work."""
        prepare_process(num_threads=1, sees_gpu=config.actor_gpus > 0, group_readable=config.group_readable)
        play_only(config.env_name)
        self.actor = RolloutActor(config, identity, state)
        # Within a node nothing is sent: the object store is shared memory.
        is_remote = learner_node_id != ray.get_runtime_context().get_node_id()
        self.compresses = config.compression == "zstd" or (config.compression == "remote" and is_remote)

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Returns the rollout instead of putting it: the learner then owns the object, which survives this process."""
        rollout = self.actor.collect(weights, policy_version)
        if not self.compresses:
            return rollout
        return dataclasses.replace(
            rollout,
            observations=compress_frames(rollout.observations),
            bootstrap_observation=compress_frames(rollout.bootstrap_observation),
        )


@ray.remote(num_cpus=0, max_retries=0)
def kill_actor_process(process_id: int) -> None:
    """Kills an actor's process; any other process is left alone. Runs on the actor's node.

    `ray.kill` of Ray 2.60 can leave an actor running that was suspended (SIGSTOP, a frozen container) soon after its
    start: the raylet cannot connect to it and sends no SIGKILL. It then keeps its CPU, and no replacement is placed.
    """
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(process_id)
        if "ray::RemoteRolloutActor" in " ".join(process.cmdline()):
            process.kill()
