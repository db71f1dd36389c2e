"""Keeps one `collect` in flight per actor and turns finished rollouts into full batches, on a thread of its own.

Batch k is what the learner trains on at policy_version k. Its rollouts may be collected as soon as version
k - max_policy_lag is published and a staging buffer is free, so

    max_policy_lag 0, one buffer    sync: actors collect with version k, then the learner trains
    max_policy_lag 1, two buffers   overlap: actors collect batch k + 1 while the learner trains on batch k

An actor has at most one rollout in flight, which bounds the bytes in the object store by one batch. When fewer actors
are there than the batch has slots, each collects several.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import ray
import torch

from common.config import Config
from common.frame_compression import DamagedFrames
from common.messages import Rollout, Weights, rollout_bytes, weights_sha256
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import StagedBatch

# An actor counts as hung after so many times what the slowest recent rollout took, but not before so many seconds.
HUNG_AFTER_ROLLOUTS, HUNG_AFTER_SECONDS = 10, 60.0
_RECENT_ROLLOUTS = 32
_POLL_SECONDS = 0.05
# The same while an actor has nothing to do until new weights are published.
_POLL_SECONDS_IDLE_ACTOR = 0.005


class ActorFleet(Protocol):
    """What the stream needs of the actors; the wiring passes `learner.rollouts.fleet.Fleet`."""

    @property
    def last_error(self) -> str | None: ...
    def ready(self) -> list[int]: ...
    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]": ...
    def delivered(self, actor_id: int) -> None: ...
    def replace(self, actor_id: int, error: BaseException | str) -> None: ...
    def leaving(self) -> list[int]: ...
    def move(self, actor_id: int) -> None: ...


class NoRollouts(RuntimeError):
    """Actors have delivered nothing for longer than the user allows."""


@dataclass(slots=True)
class FillingBatch:
    """A staging buffer whose slots are being collected."""

    number: int
    staged: StagedBatch
    unassigned: set[int]
    unfilled: set[int]


@dataclass(frozen=True, slots=True)
class Request:
    """One `collect` in flight."""

    actor_id: int
    batch: FillingBatch
    slot: int
    policy_version: int
    issued: float


@dataclass(slots=True)
class _Published:
    version: int = -1
    weights: ray.ObjectRef | None = None
    weights_sha256: dict[int, str] = field(default_factory=dict)  # by version, of those that may still arrive
    free_buffers: deque[StagedBatch] = field(default_factory=deque)


class RolloutStream:
    """Full batches in order. `publish` gives actors new weights, `next_batch` waits for what they made of them."""

    def __init__(
        self,
        config: Config,
        fleet: ActorFleet,
        max_policy_lag: int,
        first_batch: int,
        num_batches: int,
        device: torch.device,
        counters: RunCounters | None = None,
    ):
        self.config = config
        self.fleet = fleet
        self.max_policy_lag = max_policy_lag
        self.counters = counters or RunCounters()
        self._last_batch = num_batches - 1
        self._next_number = first_batch
        self._changed = threading.Condition()
        self._published = _Published()
        self._published.free_buffers.extend(StagedBatch(config, device) for _ in range(max_policy_lag + 1))
        self._filling: deque[FillingBatch] = deque()
        self._full: deque[StagedBatch] = deque()
        self._handed_out: StagedBatch | None = None
        self._in_flight: dict[ray.ObjectRef, Request] = {}
        self._actor_is_idle = False
        self._durations: deque[float] = deque(maxlen=_RECENT_ROLLOUTS)  # asked for until there, seconds
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="rollout-stream", daemon=True)
        self._thread.start()

    def publish(self, weights: Weights, policy_version: int) -> None:
        """Gives actors the weights of `policy_version`; the batch handed out last may be overwritten from now on.

        One `ray.put` per version. Only the newest reference is kept: Ray frees a version with its last `collect`.
        """
        reference = ray.put(weights)
        sha256 = weights_sha256(weights)
        with self._changed:
            self._published.version, self._published.weights = policy_version, reference
            self._published.weights_sha256[policy_version] = sha256
            self._published.weights_sha256.pop(policy_version - 2 - self.max_policy_lag, None)
            if self._handed_out is not None:
                self._published.free_buffers.append(self._handed_out)
                self._handed_out = None
            self._changed.notify_all()

    def next_batch(self, poll: Callable[[], None]) -> StagedBatch:
        """Waits for the next full batch; `poll` runs while waiting and may raise.

        Raises:
            NoRollouts: no actor delivered anything for longer than `actor_timeout` and starting again allow.
            Exception: whatever ended the stream, an actor's own error included.
        """
        with self._changed:
            while not self._full:
                poll()
                if self._error is not None:
                    raise self._error
                self._changed.wait(timeout=0.2)
            self._handed_out = self._full.popleft()
            return self._handed_out

    def bytes_in_flight(self) -> int:
        """Raw size of the rollouts that actors have been asked for."""
        return len(self._in_flight) * rollout_bytes(self.config.unroll_length, self.config.envs_per_actor)

    def close(self) -> None:
        """Ends the thread; rollouts in flight are abandoned."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout=30)
        self._in_flight.clear()

    def _run(self) -> None:
        try:
            last_delivery = time.monotonic()
            while not self._closing:
                self._request_rollouts()
                if not self._in_flight:
                    with self._changed:
                        self._changed.wait(timeout=_POLL_SECONDS)
                    if not self._wants_rollouts():
                        last_delivery = time.monotonic()
                elif self._receive_one():
                    last_delivery = time.monotonic()
                if time.monotonic() - last_delivery > self._patience():
                    raise NoRollouts(
                        f"no actor has delivered a rollout for {self._patience():.0f} s "
                        f"(--actor-timeout {self.config.actor_timeout:.0f}, {self.counters.actors_ready} actors ready)"
                    )
        # Whatever happens here must reach the learner, which would wait for ever.
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _patience(self) -> float:
        """Seconds without any rollout that end a run: never less than all actors need to be started again."""
        config = self.config
        return max(2 * config.actor_timeout, config.actor_timeout + config.cluster_timeout)

    def _wants_rollouts(self) -> bool:
        with self._changed:
            return any(batch.unassigned for batch in self._filling)

    def _request_rollouts(self) -> None:
        """Asks every ready, idle actor for a rollout, as long as there is a slot for it."""
        busy = {request.actor_id for request in self._in_flight.values()}
        for actor_id in self.fleet.leaving():
            if actor_id not in busy:
                self.fleet.move(actor_id)
        ready = self.fleet.ready()
        self.counters.actors_ready = len(ready)
        self._actor_is_idle = False
        for actor_id in ready:
            if actor_id in busy:
                continue
            with self._changed:
                batch = self._batch_with_room()
                version, weights = self._published.version, self._published.weights
            if batch is None or weights is None:
                self._actor_is_idle = True
                return
            # Its own slot where it is free: then a batch does not depend on who was faster.
            slot = actor_id if actor_id in batch.unassigned else min(batch.unassigned)
            batch.unassigned.remove(slot)
            reference = self.fleet.collect(actor_id, weights, version)
            self._in_flight[reference] = Request(actor_id, batch, slot, version, time.monotonic())

    def _batch_with_room(self) -> FillingBatch | None:
        for batch in self._filling:
            if batch.unassigned:
                return batch
        published = self._published
        number = self._next_number
        if number > self._last_batch or published.version < number - self.max_policy_lag or not published.free_buffers:
            return None
        slots = set(range(self.config.num_actors))
        staged = published.free_buffers.popleft()
        staged.clear()
        self._filling.append(FillingBatch(number, staged, slots, set(slots)))
        self._next_number += 1
        return self._filling[-1]

    def _receive_one(self) -> bool:
        """Takes one finished rollout, or gives up on actors past their deadline. True if one was staged."""
        patience = _POLL_SECONDS_IDLE_ACTOR if self._actor_is_idle else _POLL_SECONDS
        finished, _ = ray.wait(list(self._in_flight), num_returns=1, timeout=patience)
        if not finished:
            self._replace_overdue()
            return False
        request = self._in_flight.pop(finished[0])
        rollout = self._fetch(finished[0], request)
        if rollout is None:
            self.counters.lost_rollouts += 1
        elif request.batch.number - rollout.policy_version > self.max_policy_lag:
            self.counters.dropped_for_lag += 1
        else:
            try:
                self._stage(request, rollout)
                return True
            except DamagedFrames as error:
                self.counters.lost_rollouts += 1
                self.fleet.replace(request.actor_id, str(error))
        with self._changed:
            request.batch.unassigned.add(request.slot)
        return False

    def _fetch(self, reference: "ray.ObjectRef[Rollout]", request: Request) -> Rollout | None:
        """The rollout, or None if it is lost; then its actor is replaced where that is the cause."""
        try:
            rollout = ray.get(reference, timeout=self.config.actor_timeout)
        except ray.exceptions.ObjectLostError:
            return None
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            self.fleet.replace(request.actor_id, error)
            return None
        with self._changed:
            expected = self._published.weights_sha256.get(rollout.policy_version)
        if expected is not None and rollout.weights_sha256 != expected:
            self.fleet.replace(request.actor_id, "it acted with other weights than those published")
            return None
        self._durations.append(time.monotonic() - request.issued)
        self.fleet.delivered(request.actor_id)
        return rollout

    def _stage(self, request: Request, rollout: Rollout) -> None:
        batch = request.batch
        started = time.monotonic()
        batch.staged.stage(request.slot, rollout, transfer_seconds=started - request.issued - rollout.seconds)
        batch.staged.staging_seconds += time.monotonic() - started
        batch.unfilled.remove(request.slot)
        if not batch.unfilled:
            batch.staged.start_upload()
        with self._changed:
            while self._filling and not self._filling[0].unfilled:
                self._full.append(self._filling.popleft().staged)
            self._changed.notify_all()

    def _replace_overdue(self) -> None:
        limit = self._hung_after()
        now = time.monotonic()
        for reference, request in list(self._in_flight.items()):
            if now - request.issued > limit:
                del self._in_flight[reference]
                self.counters.lost_rollouts += 1
                self.counters.actors_hung += 1
                with self._changed:
                    request.batch.unassigned.add(request.slot)
                self.fleet.replace(request.actor_id, f"no rollout within {limit:.0f} s")

    def _hung_after(self) -> float:
        """Seconds; `actor_timeout` as long as nothing is known about this run's rollouts."""
        if not self._durations:
            return self.config.actor_timeout
        usual = max(HUNG_AFTER_SECONDS, HUNG_AFTER_ROLLOUTS * max(self._durations))
        return min(self.config.actor_timeout, usual)
