"""Actors for `benchmarks.scaling` that sleep instead of stepping Procgen; everything around the sleep is real.

This module must not import torch, which would cost each of 64 processes several hundred MB.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import ray

from benchmarks.report import median_seconds
from common.games import OBSERVATION_SHAPE
from common.messages import ActorState, FinishedEpisodes, Rollout, Weights, weights_sha256

STATE_BYTES = 30_000  # about the size of a saved CoinRun environment
START_TIMEOUT = 300.0  # seconds, for all actors that are started together


def make_rollout(actor_id: int, unroll_length: int, num_envs: int) -> Rollout:
    """A rollout of real shapes and dtypes, all of its memory written to, as in a real one."""
    shape = (unroll_length, num_envs)
    return Rollout(
        policy_version=-1,
        actor_id=actor_id,
        observations=np.full((*shape, *OBSERVATION_SHAPE), 7, np.uint8),
        actions=np.ones(shape, np.int32),
        rewards=np.ones(shape, np.float32),
        dones=np.full(shape, False),
        behavior_log_probs=np.ones(shape, np.float32),
        values=np.ones(shape, np.float32),
        bootstrap_value=np.ones(num_envs, np.float32),
        bootstrap_observation=np.full((1, num_envs, *OBSERVATION_SHAPE), 7, np.uint8),
        episodes=FinishedEpisodes(np.ones(0, np.float32), np.ones(0, np.int32), np.ones(0, np.int32)),
        next_state=ActorState(
            env_states=np.ones(num_envs * STATE_BYTES, np.uint8),
            env_state_sizes=np.full(num_envs, STATE_BYTES, np.int64),
            running_return=np.zeros(num_envs),
            running_length=np.zeros(num_envs, np.int32),
            generator=np.zeros(5056, np.uint8),
        ),
        weights_sha256="",
        seconds=0.0,
    )


def sleep_until(moment: float) -> None:
    """Sleeps until `time.perf_counter` reaches `moment`; returns immediately if it has."""
    time.sleep(max(0.0, moment - time.perf_counter()))


# It requests no CPU: sleeping needs none, and 64 actors must fit on any machine.
@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class SleepingActor:
    """A Ray actor that is called as `RemoteRolloutActor` is."""

    def __init__(self, actor_id: int):
        self.actor_id = actor_id

    def describe(self) -> int:
        """The process id; an answer proves that the process has started."""
        return os.getpid()

    def arrange(self, unroll_length: int, num_envs: int, collect_seconds: float) -> None:
        """Sets the shape and the duration of all further rollouts."""
        self.rollout = make_rollout(self.actor_id, unroll_length, num_envs)
        self.collect_seconds = collect_seconds

    def collect(self, weights: Weights, policy_version: int) -> Rollout:
        """Copies the weights, writes every pixel and sleeps for the rest of `collect_seconds`.

        With 0 seconds it does not write the pixels, because then only the speed of moving them is measured.
        """
        started = time.perf_counter()
        self.weights = {name: np.array(array) for name, array in weights.items()}
        if self.collect_seconds:
            assert isinstance(self.rollout.observations, np.ndarray)
            self.rollout.observations.fill(policy_version % 256)
            sleep_until(started + self.collect_seconds)
        sha256 = weights_sha256(self.weights)
        seconds = time.perf_counter() - started
        return dataclasses.replace(self.rollout, policy_version=policy_version, weights_sha256=sha256, seconds=seconds)

    def put_seconds(self, repeats: int) -> float:
        """Median seconds to copy one rollout into the object store, after two copies that do not count."""
        median_seconds(lambda: ray.put(self.rollout), repeats=2)
        return median_seconds(lambda: ray.put(self.rollout), repeats)


class SleepingFleet:
    """Sleeping actors behind the interface that the rollout stream needs; the number of actors can only grow.

    `peak_in_flight` counts rollouts that were requested and not yet delivered.
    """

    def __init__(self) -> None:
        self.last_error: str | None = None
        self.handles: list[ray.actor.ActorHandle] = []
        self.pids: set[int] = set()
        self.in_flight = self.peak_in_flight = 0

    def grow_to(self, size: int, poll: Callable[[], None]) -> None:
        """Starts the missing actors together and waits for them; `poll` runs meanwhile and may raise.

        Raises:
            TimeoutError: not all of them started within `START_TIMEOUT`.
        """
        first = len(self.handles)
        started = [SleepingActor.remote(actor_id) for actor_id in range(first, size)]  # type: ignore[attr-defined]
        self.handles += started
        starting = [handle.describe.remote() for handle in started]
        deadline = time.monotonic() + START_TIMEOUT
        while starting:
            poll()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(starting)} actors did not start within {START_TIMEOUT:.0f} s")
            placed, starting = ray.wait(starting, num_returns=len(starting), timeout=0.2)
            self.pids.update(ray.get(placed))

    def arrange(self, unroll_length: int, num_envs: int, collect_seconds: float) -> None:
        """Sets the shape and duration of all actors' rollouts, and resets the count of rollouts in flight."""
        self.arrange_each(unroll_length, num_envs, [collect_seconds] * len(self.handles))

    def arrange_each(self, unroll_length: int, num_envs: int, collect_seconds: Sequence[float]) -> None:
        """As `arrange`, with a duration for each actor."""
        pairs = zip(self.handles, collect_seconds, strict=True)
        ray.get([handle.arrange.remote(unroll_length, num_envs, seconds) for handle, seconds in pairs])
        self.in_flight = self.peak_in_flight = 0

    def put_seconds(self, repeats: int) -> float:
        """Mean over the actors of the seconds to copy one rollout into the object store, while all of them copy."""
        return float(np.mean(ray.get([handle.put_seconds.remote(repeats) for handle in self.handles])))

    def ready(self) -> list[int]:
        return list(range(len(self.handles)))

    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]":
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return self.handles[actor_id].collect.remote(weights, policy_version)

    def delivered(self, actor_id: int) -> None:
        self.in_flight -= 1

    def replace(self, actor_id: int, error: BaseException) -> None:
        """Raises RuntimeError: the loss of an actor invalidates the measurement."""
        raise RuntimeError(f"actor {actor_id} was lost: {error}")

    def on_draining_nodes(self) -> list[int]:
        return []

    def relocate(self, actor_id: int) -> None: ...
