"""Keeps one `collect` in flight per actor and turns finished rollouts into full batches, on its own thread.

`batch_assembly` decides which rollout goes where and when one may be begun; here are the thread, the lock and Ray.
One rollout in flight per actor bounds the bytes in the object store by one batch. With fewer actors than the batch has
slots, each collects several.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import ray
import torch

from common.config import Config
from common.frame_compression import DamagedFrames
from common.messages import Rollout, Weights, rollout_bytes, weights_sha256
from learner.rollouts.batch_assembly import BatchAssembly, Slot
from learner.rollouts.counters import RunCounters
from learner.rollouts.deadlines import AwakeClock, HungDeadline
from learner.rollouts.failures import ActorHung, NoRollouts, WrongWeights
from learner.rollouts.staging import StagedBatch

_POLL_SECONDS = 0.05
# While an actor is idle until new weights are published.
_POLL_SECONDS_IDLE_ACTOR = 0.005
# More between two polls is time in which this process did not run.
_LONGEST_STEP_SECONDS = 1.0

logger = logging.getLogger(__name__)


class ActorFleet(Protocol):
    """What the stream needs of `learner.rollouts.fleet.Fleet`; `benchmarks.sleeping_actor` has another one."""

    @property
    def last_error(self) -> str | None: ...
    def ready(self) -> list[int]: ...
    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]": ...
    def delivered(self, actor_id: int) -> None: ...
    def replace(self, actor_id: int, error: BaseException) -> None: ...
    def on_draining_nodes(self) -> list[int]: ...
    def relocate(self, actor_id: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Request:
    """One `collect` in flight."""

    actor_id: int
    slot: Slot
    issued: float  # by the stream's AwakeClock


class RolloutStream:
    """Full batches in order. The training thread calls the public methods; `_run` and what it calls are the stream's
    own thread, which alone talks to the fleet while the stream is open.
    """

    def __init__(
        self,
        config: Config,
        fleet: ActorFleet,
        max_policy_lag: int,
        first_batch: int,
        num_batches: int,
        device: torch.device,
        counters: RunCounters,
    ):
        self.config = config
        self.fleet = fleet
        self.max_policy_lag = max_policy_lag
        self.counters = counters
        # Never less than the time needed to start all actors again.
        self._patience = max(2 * config.actor_timeout, config.actor_timeout + config.cluster_timeout)
        self._deadline = HungDeadline(config.actor_timeout)
        self._clock = AwakeClock(_LONGEST_STEP_SECONDS)
        self._in_flight: dict[ray.ObjectRef, _Request] = {}
        self._actor_is_idle = False
        # Guards what both threads use: everything from here on.
        self._changed = threading.Condition()
        buffers = [StagedBatch(config, device) for _ in range(max_policy_lag + 1)]
        self._assembly = BatchAssembly(
            buffers, config.num_actors, max_policy_lag, first_batch, num_batches, config.repeatable
        )
        self._weights: dict[int, ray.ObjectRef] = {}  # of every version that a rollout may be requested with
        self._weights_sha256: dict[int, str] = {}  # of every version that a rollout may still arrive with
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="rollout-stream", daemon=True)
        self._thread.start()

    def publish(self, weights: Weights, policy_version: int) -> None:
        """Gives actors the weights of `policy_version`; the batch returned last may be overwritten from now on.

        A resumed run first publishes the older versions that its batches are collected with, oldest first. One
        `ray.put` per version; Ray frees it with the last reference here and the last `collect`.
        """
        reference, sha256 = ray.put(weights), weights_sha256(weights)
        with self._changed:
            self._weights[policy_version] = reference
            kept = self.max_policy_lag if self.config.repeatable else 0
            for version in [version for version in self._weights if version < policy_version - kept]:
                del self._weights[version]
            self._weights_sha256[policy_version] = sha256
            self._weights_sha256.pop(policy_version - 2 - self.max_policy_lag, None)
            self._assembly.publish(policy_version)
            self._changed.notify_all()

    def next_batch(self, poll: Callable[[], None]) -> StagedBatch:
        """Waits for the next full batch, which is valid until the next `publish`; calls `poll` while waiting.

        Raises:
            NoRollouts: no actor delivered a rollout for longer than `actor_timeout` and starting again allow, or none
                is left and none can be started.
            Exception: whatever ended the stream's thread (such as FleetError), or what `poll` raised.
        """
        while True:
            with self._changed:
                if (batch := self._assembly.next_full()) is not None:
                    return batch
                if self._error is not None:
                    raise self._error
                self._changed.wait(timeout=0.2)
            poll()  # without the lock: it may take long, and rollouts keep arriving

    def bytes_in_flight(self) -> int:
        """Raw size of the rollouts that are being collected. Any thread may call this."""
        return len(self._in_flight) * rollout_bytes(self.config.unroll_length, self.config.envs_per_actor)

    def close(self) -> None:
        """Ends the thread and abandons the rollouts in flight."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=30)
        self._in_flight.clear()

    def _run(self) -> None:
        try:
            last_delivery = self._clock.now()
            while not self._closing:
                self._request_rollouts()
                if self._in_flight:
                    if self._receive_one():
                        last_delivery = self._clock.now()
                else:
                    with self._changed:
                        self._changed.wait(timeout=_POLL_SECONDS)
                        if not self._assembly.has_unassigned():  # the learner is busy; actors need not deliver
                            last_delivery = self._clock.now()
                if self._clock.now() - last_delivery > self._patience:
                    reason = f"; {self.fleet.last_error}" if self.fleet.last_error else ""
                    raise NoRollouts(
                        f"no actor has delivered a rollout for {self._patience:.0f} s "
                        f"(--actor-timeout {self.config.actor_timeout:.0f}, {self.counters.actors_ready} actors ready)"
                        f"{reason}"
                    )
        # Without this the learner would wait forever.
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _request_rollouts(self) -> None:
        """Asks every ready, idle actor for a rollout as long as there are slots."""
        busy = {request.actor_id for request in self._in_flight.values()}
        for actor_id in self.fleet.on_draining_nodes():
            if actor_id not in busy:
                self.fleet.relocate(actor_id)
        ready = self.fleet.ready()
        self.counters.actors_ready = len(ready)
        self._actor_is_idle = False
        for actor_id in ready:
            if actor_id in busy:
                continue
            with self._changed:
                slot = self._assembly.assign(actor_id, ready)
                if slot is None:
                    self._actor_is_idle = True
                    continue
                version = self._assembly.version_for(slot)
                weights = self._weights[version]
            reference = self.fleet.collect(actor_id, weights, version)
            self._in_flight[reference] = _Request(actor_id, slot, self._clock.now())

    def _receive_one(self) -> bool:
        """Waits briefly for one rollout and stages it; replaces actors past their deadline. True if one was staged."""
        timeout = _POLL_SECONDS_IDLE_ACTOR if self._actor_is_idle else _POLL_SECONDS
        finished, _ = ray.wait(list(self._in_flight), num_returns=1, timeout=timeout)
        if not finished:
            self._replace_hung()
            return False
        request = self._in_flight.pop(finished[0])
        try:
            rollout = ray.get(finished[0], timeout=self.config.actor_timeout)
            took = self._clock.now() - request.issued
            self._deadline.record(took)
            was_staged = self._stage(request, rollout, took)
        except (ray.exceptions.RayError, WrongWeights, DamagedFrames) as error:
            self._lose(request, error)
            return False
        self.fleet.delivered(request.actor_id)
        return was_staged

    def _stage(self, request: _Request, rollout: Rollout, took: float) -> bool:
        """Copies a rollout, which arrived after `took` seconds, into its slot. False if it is too old to be used.

        Raises:
            WrongWeights, DamagedFrames: it cannot be used, and its actor should be replaced.
        """
        slot, version = request.slot, rollout.policy_version
        with self._changed:
            expected = self._weights_sha256.get(version)
            if self._assembly.is_too_old(slot, version):
                logger.warning("a rollout of policy_version %d was too old for batch %d", version, slot.batch.number)
                self.counters.dropped_for_lag += 1
                self._assembly.give_up(slot)
                return False
        if expected is not None and rollout.weights_sha256 != expected:
            raise WrongWeights(f"it acted with other weights than those of policy_version {version}")
        buffer, started = slot.batch.buffer, time.monotonic()
        # An actor's seconds include those that all of us slept, `took` does not.
        buffer.stage(slot.index, rollout, transfer_seconds=max(0.0, took - rollout.seconds))
        buffer.staging_seconds += time.monotonic() - started
        with self._changed:
            if self._assembly.fill(slot):
                buffer.start_upload()
            self._changed.notify_all()
        return True

    def _replace_hung(self) -> None:
        limit = self._deadline.seconds()
        now = self._clock.now()
        for reference, request in list(self._in_flight.items()):
            if now - request.issued > limit:
                del self._in_flight[reference]
                self.counters.actors_hung += 1
                self._lose(request, ActorHung(f"no rollout within {limit:.0f} s"))

    def _lose(self, request: _Request, error: Exception) -> None:
        """Gives up a rollout, and the actor too unless only the object was lost, with the node that held it."""
        self.counters.lost_rollouts += 1
        if self.counters.lost_rollouts == 1:
            logger.info("from its first lost rollout on, this run may differ from one that loses none")
        with self._changed:
            self._assembly.give_up(request.slot)
        if isinstance(error, ray.exceptions.ObjectLostError):
            logger.warning("a rollout of actor %d was lost: %s", request.actor_id, error)
        else:
            self.fleet.replace(request.actor_id, error)
