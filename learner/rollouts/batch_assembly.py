"""Which rollout goes where: slots, policy lag and staging buffers. No Ray, no threads, no locks, no clock.

Batch k is what the learner trains on at policy_version k. Its rollouts may be collected as soon as version
k - max_policy_lag is published and a staging buffer is free, so

    max_policy_lag 0, one buffer    sync: actors collect with version k, then the learner trains
    max_policy_lag 1, two buffers   overlap: actors collect batch k + 1 while the learner trains on batch k

A repeatable run does not depend on how fast an actor is: batch k is collected with version k - max_policy_lag although
a newer one may be published, and slot i belongs to actor i as long as that is ready.
"""

from collections import deque
from collections.abc import Container, Iterable
from dataclasses import dataclass

from learner.rollouts.staging import StagedBatch


@dataclass(slots=True)
class _FillingBatch:
    number: int
    buffer: StagedBatch
    unassigned: set[int]
    unfilled: set[int]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one actor's rollout in one batch."""

    index: int
    batch: _FillingBatch


class BatchAssembly:
    """Hands out slots and returns full batches in order. Not thread-safe: the stream holds its lock around each call.

    Invariants:
        The policy lag of a rollout in batch k is at most `max_policy_lag`: batch k is not begun before version
        k - max_policy_lag is published, `version_for` is never lower, and `is_too_old` finds the rest.
        Every frame is counted once: a slot is assigned to one actor at a time and filled once; only a slot whose
        rollout was given up returns to the unassigned ones.
    """

    def __init__(
        self,
        buffers: Iterable[StagedBatch],
        num_slots: int,
        max_policy_lag: int,
        first_batch: int,
        num_batches: int,
        repeatable: bool,
    ):
        """`first_batch` is the policy_version to begin with, `num_batches` the number of the whole run."""
        self.num_slots = num_slots
        self.max_policy_lag = max_policy_lag
        self.repeatable = repeatable
        self.published_version = -1  # nothing yet
        self._oldest_version = -1
        self._next_number = first_batch
        self._num_batches = num_batches
        self._free = deque(buffers)
        self._filling: deque[_FillingBatch] = deque()
        self._full: deque[StagedBatch] = deque()
        self._handed_out: StagedBatch | None = None

    def publish(self, policy_version: int) -> None:
        """Actors may collect with `policy_version`; the buffer handed out last is free again."""
        if self._oldest_version < 0:
            self._oldest_version = policy_version
        self.published_version = policy_version
        if self._handed_out is not None:
            self._free.append(self._handed_out)
            self._handed_out = None

    def assign(self, actor_id: int, ready: Container[int] = ()) -> Slot | None:
        """A slot for a rollout of the actor, or None while none may be begun. `ready` are the actors that can collect.

        The slot with the actor's own number if it is free: then a batch does not depend on which actor was faster. In
        a repeatable run no other one, unless its actor is not ready.
        """
        for batch in self._filling:
            if (slot := self._slot_in(batch, actor_id, ready)) is not None:
                return slot
        # It has a slot of the actor's number.
        return None if (begun := self._begin_batch()) is None else self._slot_in(begun, actor_id, ready)

    def _slot_in(self, batch: _FillingBatch, actor_id: int, ready: Container[int]) -> Slot | None:
        free = batch.unassigned
        if actor_id not in free and self.repeatable:
            free = {index for index in free if index not in ready}
        if not free:
            return None
        index = actor_id if actor_id in free else min(free)
        batch.unassigned.remove(index)
        return Slot(index, batch)

    def version_for(self, slot: Slot) -> int:
        """The policy_version to collect with; it is published."""
        if not self.repeatable:
            return self.published_version
        return max(self._oldest_version, slot.batch.number - self.max_policy_lag)

    def is_too_old(self, slot: Slot, policy_version: int) -> bool:
        """Whether a rollout of `policy_version` exceeds `max_policy_lag` in this slot."""
        return slot.batch.number - policy_version > self.max_policy_lag

    def give_up(self, slot: Slot) -> None:
        """The slot's rollout was lost or not used; another one will be assigned."""
        assert slot.index in slot.batch.unfilled
        slot.batch.unassigned.add(slot.index)

    def fill(self, slot: Slot) -> bool:
        """The slot's rollout is in the buffer. True if that completed its batch."""
        slot.batch.unfilled.remove(slot.index)
        while self._filling and not self._filling[0].unfilled:
            self._full.append(self._filling.popleft().buffer)
        return not slot.batch.unfilled

    def next_full(self) -> StagedBatch | None:
        """The next full batch in order, or None; the caller may use it until the next `publish`."""
        if self._full:
            self._handed_out = self._full.popleft()
            return self._handed_out
        return None

    def has_unassigned(self) -> bool:
        """Whether a begun batch lacks rollouts that nobody is collecting."""
        return any(batch.unassigned for batch in self._filling)

    def _begin_batch(self) -> _FillingBatch | None:
        number = self._next_number
        if number >= self._num_batches or self.published_version < max(0, number - self.max_policy_lag):
            return None
        if not self._free:
            return None
        buffer, slots = self._free.popleft(), set(range(self.num_slots))
        buffer.clear()
        self._filling.append(_FillingBatch(number, buffer, slots, set(slots)))
        self._next_number += 1
        return self._filling[-1]
