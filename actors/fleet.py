"""The set of actors: placing them, replacing lost ones, saying how many are missing."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import ray
from ray.actor import ActorHandle

from actors.remote import RemoteRolloutActor
from common.config import Config
from common.errors import cause_in_one_line
from common.messages import Rollout

MAX_FAILED_STARTS = 5


class FleetError(RuntimeError):
    """No actor can work; the message is one line for the user."""


@dataclass(slots=True)
class Member:
    """One place of the fleet. `handle` changes when the actor is replaced, `actor_id` never."""

    actor_id: int
    handle: ActorHandle
    incarnation: int
    starting: ray.ObjectRef | None
    failed_starts: int = 0


class Fleet:
    """`num_actors` places, each held by an actor that is ready, starting, or waiting for the cluster to have room."""

    def __init__(self, config: Config, started_at: int):
        """`started_at` is the policy_version the run starts or is resumed at."""
        self.started_at = started_at
        self.config_ref = ray.put(config)
        self.gpus_each = config.actor_gpus
        self.restarts = 0
        self.members = {i: self._start(i, incarnation=0) for i in range(config.num_actors)}

    def wait_until_placed(self, timeout: float, stop_check: Callable[[], None]) -> int:
        """Waits until every actor that the cluster's CPUs and GPUs can hold is ready; returns how many are.

        The others join when there is room. `stop_check` runs while waiting and may raise.

        Raises:
            FleetError: none was ready within `timeout` seconds, or one keeps failing to start.
        """
        deadline = time.monotonic() + timeout
        placeable = min(len(self.members), self._room())
        while len(self.ready()) < placeable and time.monotonic() < deadline:
            stop_check()
            ray.wait([m.starting for m in self.members.values() if m.starting], num_returns=1, timeout=0.2)
        ready = len(self.ready())
        if not ready:
            raise FleetError(f"no actor could be placed within {timeout:.0f} s: {self._shortage()}")
        return ready

    def ready(self) -> list[int]:
        """Ids of actors that can collect now. An actor that failed to start is started again, a few times."""
        for member in list(self.members.values()):
            if member.starting is not None and ray.wait([member.starting], timeout=0)[0]:
                self._finish_start(member, member.starting)
        return [m.actor_id for m in self.members.values() if m.starting is None]

    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]":
        """Asks one actor for one rollout; `weights` is a reference to what `ray.put` stored."""
        return self.members[actor_id].handle.collect.remote(weights, policy_version)

    def replace(self, actor_id: int) -> None:
        """Ends an actor that is dead or hung and starts another in its place with seeds of its own."""
        old = self.members[actor_id]
        ray.kill(old.handle, no_restart=True)
        self.restarts += 1
        self.members[actor_id] = self._start(actor_id, old.incarnation + 1, old.failed_starts)

    def stop(self) -> None:
        """Ends every actor."""
        for member in self.members.values():
            ray.kill(member.handle, no_restart=True)

    def _room(self) -> int:
        """Actors that the whole cluster can hold."""
        resources = ray.cluster_resources()
        by_cpus = int(resources.get("CPU", 0))
        return by_cpus if not self.gpus_each else min(by_cpus, int(resources.get("GPU", 0) / self.gpus_each + 1e-6))

    def _shortage(self) -> str:
        needs = f"one CPU and {self.gpus_each:g} of a GPU" if self.gpus_each else "one CPU"
        there, free = ray.cluster_resources(), ray.available_resources()
        have = " and ".join(
            f"{there.get(kind, 0):g} {kind}s, {free.get(kind, 0):g} of them free"
            for kind in (["CPU", "GPU"] if self.gpus_each else ["CPU"])
        )
        return f"each of --num-actors {len(self.members)} needs {needs}; the cluster has {have}"

    def _start(self, actor_id: int, incarnation: int, failed_starts: int = 0) -> Member:
        actor_class = RemoteRolloutActor.options(num_gpus=self.gpus_each)  # type: ignore[attr-defined]
        handle = actor_class.remote(self.config_ref, actor_id, incarnation, self.started_at)
        return Member(actor_id, handle, incarnation, handle.place.remote(), failed_starts)

    def _finish_start(self, member: Member, started: ray.ObjectRef) -> None:
        try:
            ray.get(started, timeout=10)
            member.starting = None
            member.failed_starts = 0
        except ray.exceptions.RayError as error:
            member.failed_starts += 1
            if member.failed_starts >= MAX_FAILED_STARTS:
                cause = cause_in_one_line(error)
                raise FleetError(
                    f"actor {member.actor_id} failed to start {MAX_FAILED_STARTS} times: {cause}"
                ) from error
            self.replace(member.actor_id)
