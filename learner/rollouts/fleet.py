"""The set of actors: starts them, replaces those that fail, and moves them off nodes that are being drained."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.remote import Location, RemoteRolloutActor, kill_actor_process
from common.config import Config
from common.messages import ActorIdentity, ActorState, Rollout
from common.text import format_ranges
from common.versions import differences, software
from learner.cluster.remote_errors import cause_in_one_line, full_cause, log_of_an_ended_process
from learner.rollouts.counters import RunCounters
from learner.rollouts.deadlines import AwakeClock
from learner.rollouts.failures import ActorHung, NoRollouts, failure_kind
from learner.rollouts.placement import capacity, damage_of_this_node, draining_nodes, room, shortage

# Give up after this many identical failures in a row before an actor's first rollout.
MAX_FAILURES_AT_START = 5
# Seconds before a replacement is started: 1, 2, 4 ... up to this, until a rollout is delivered.
MAX_BACK_OFF = 30.0
_DRAIN_POLL_SECONDS = 5.0
# An actor that has not been ready for this long is reported, with the reason.
MISSING_SECONDS = 60.0
# More between two looks at the members does not count as the time that an actor takes to start.
_LONGEST_STEP_SECONDS = 30.0

_SLOW_START = "so they are probably still starting, which takes long where imports are slow; raise --cluster-timeout"

logger = logging.getLogger(__name__)


class FleetError(RuntimeError):
    """No actor can work; the message is one line for the user. `details` is the actor's traceback, if it left one."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


@dataclass(slots=True)
class Member:
    """One of the `num_actors` actors. When it is replaced, `identity` gets the next incarnation.

    It is waiting (no handle, until `start_at`), starting (`starting` is an unanswered `describe`, then an unanswered
    `build`) or ready.
    """

    identity: ActorIdentity
    handle: ActorHandle | None = None
    starting: ray.ObjectRef | None = None
    location: Location | None = None  # known once `describe` has answered
    building_since: float = 0.0  # the fleet's clock, when `build` was called
    start_at: float = 0.0  # time.monotonic()
    has_delivered: bool = False
    failures: list[tuple[str, ...]] = field(default_factory=list)  # kinds, since the last delivered rollout
    last_error: str | None = None  # why it cannot work on the node where Ray placed it, or why it is missing
    missing_since: float = field(default_factory=time.monotonic)  # while it is not ready
    last_failure: str | None = None  # why it was replaced last, if it has not been ready since
    failure_details: str = ""  # of `last_failure`
    is_reported: bool = False  # as missing

    @property
    def actor_id(self) -> int:
        return self.identity.actor_id

    @property
    def is_ready(self) -> bool:
        return self.handle is not None and self.starting is None

    @property
    def is_building(self) -> bool:
        return self.starting is not None and self.location is not None

    def why_not_ready(self) -> str:
        """In a few words."""
        reason = f"failed: {self.last_failure}" if self.last_failure else "not started"
        is_unplaced = self.location is None and self.starting is not None
        return f"{reason}; Ray has not placed or started the process" if is_unplaced else reason


class Fleet:
    """`num_actors` members. Those for which the cluster has no room start when a node joins; those of a lost node are
    started again elsewhere.

    One thread at a time: the main thread until the rollout stream is open and after it is closed, the stream's thread
    in between. Only `last_error` may be read from any thread.
    """

    def __init__(
        self, config: Config, start_version: int, counters: RunCounters, states: Mapping[int, ActorState] | None = None
    ):
        """`start_version` is the policy_version at which this process starts or resumes the run, `states` are those of
        a resumed run's actors by actor_id. Replacements are counted in `counters.actor_restarts`.
        """
        self.config = config
        self.counters = counters
        self.software = software()
        self.fewest = config.min_actors
        self.is_elastic = self.fewest < config.num_actors
        self._node_id = ray.get_runtime_context().get_node_id()
        self._states = dict(states or {})
        self._has_worked = False
        self._clock = AwakeClock(_LONGEST_STEP_SECONDS)
        self._started = time.time()
        self._room_at_start = room(config.actor_gpus)
        self._draining: frozenset[str] = frozenset()
        self._drain_polled = 0.0
        identities = (ActorIdentity(actor_id, 0, start_version) for actor_id in range(config.num_actors))
        self.members = [Member(identity) for identity in identities]
        for member in self.members:
            self._start(member)

    @property
    def last_error(self) -> str | None:
        """One line about an actor that cannot work or has been missing for a minute, or None."""
        return next((member.last_error for member in self.members if member.last_error), None)

    def wait_until_placed(self, timeout: float, poll: Callable[[], None]) -> int:
        """Waits until every actor that the cluster's CPUs and GPUs can hold is ready; returns how many are.

        The others join when there is room. Calls `poll` while waiting.

        Raises:
            FleetError: fewer than needed were ready within `timeout` seconds, or one keeps failing to start.
        """
        needed = self.fewest if self.is_elastic else 1
        num_actors, gpus_each = len(self.members), self.config.actor_gpus
        clock = AwakeClock(longest_step=5.0)
        while (ready := len(self.ready())) < max(needed, min(num_actors, capacity(gpus_each))):
            if clock.now() > timeout:
                break
            poll()
            starting = [member.starting for member in self.members if member.starting]
            if starting:
                ray.wait(starting, num_returns=1, timeout=0.2)
            else:
                time.sleep(0.1)
        if ready < needed:
            placed = f"{ready} of at least {needed} actors" if ready else "no actor"
            if (failed := self._failed_member()) is not None:
                raise FleetError(
                    f"{placed} was ready within {timeout:.0f} s: actor {failed.actor_id} failed: {failed.last_failure}",
                    details=failed.failure_details,
                )
            if self._room_at_start >= needed:
                crash = log_of_an_ended_process(self._started)
                raise FleetError(
                    f"{placed} was ready within {timeout:.0f} s: there is room for {min(needed, self._room_at_start)}, "
                    + ("but processes ended while starting; the log of one is above" if crash else _SLOW_START),
                    details=crash.strip(),
                )
            raise FleetError(f"{placed} could be placed within {timeout:.0f} s: {shortage(num_actors, gpus_each)}")
        return ready

    def why_missing(self) -> str:
        """Why fewer actors than asked for are ready, in a few words."""
        if (failed := self._failed_member()) is not None:
            return f"actor {failed.actor_id} failed: {failed.last_failure}"
        if self._room_at_start >= len(self.members):
            return "they are still starting, raise --cluster-timeout to wait for them"
        return "the cluster has too few CPUs" + (" or GPUs" if self.config.actor_gpus else "")

    def ready(self) -> list[int]:
        """Ids of the actors that can collect now. Also takes every other actor's start one step further.

        Raises:
            FleetError: as `replace`, or a node has other software and no actor has delivered a rollout yet.
            NoRollouts: no actor is left, and none can be started.
        """
        now, awake = time.monotonic(), self._clock.now()
        for member in self.members:
            if member.handle is None and now >= member.start_at:
                self._start(member)
            elif member.starting is not None and ray.wait([member.starting], timeout=0)[0]:
                self._continue_start(member, member.starting)
            elif member.is_building and awake - member.building_since > self.config.actor_timeout:
                error = ActorHung(f"not ready within {self.config.actor_timeout:.0f} s (--actor-timeout)")
                self.replace(member.actor_id, error)
        ready = [member.actor_id for member in self.members if member.is_ready]
        damage = damage_of_this_node() if len(ready) < len(self.members) else None
        self._report_missing(damage)
        if damage is not None and not ready:
            raise NoRollouts(f"no actor is left; {damage}")
        return ready

    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]":
        """Asks a ready actor for one rollout; `weights` is a reference to what `ray.put` stored."""
        handle = self.members[actor_id].handle
        assert handle is not None
        return handle.collect.remote(weights, policy_version)

    def delivered(self, actor_id: int) -> None:
        """Records that the actor's rollout arrived intact, which ends any series of failures."""
        member = self.members[actor_id]
        member.has_delivered = self._has_worked = True
        member.failures.clear()
        self._states.pop(actor_id, None)  # a successor starts again

    def replace(self, actor_id: int, error: BaseException) -> None:
        """Ends an actor that is dead, hung or wrong because of `error`, and starts another with new seeds.

        Raises:
            FleetError: it failed `MAX_FAILURES_AT_START` times in a row in the same way before its first rollout.
        """
        member = self.members[actor_id]
        member.last_failure, member.failure_details = cause_in_one_line(error), full_cause(error)
        self._log_failure(member)
        kind = failure_kind(error)
        if not member.has_delivered:
            member.failures.append(kind)
            if len(member.failures) > 1:
                self._states.pop(actor_id, None)  # perhaps the environments of a resumed run are the cause
            if member.failures[-MAX_FAILURES_AT_START:] == [kind] * MAX_FAILURES_AT_START:
                raise FleetError(
                    f"actor {actor_id} failed {MAX_FAILURES_AT_START} times in a row before its first rollout: "
                    f"{member.last_failure}",
                    details=member.failure_details,
                ) from error
        if isinstance(error, ActorHung) and member.location is not None:
            on_its_node = NodeAffinitySchedulingStrategy(member.location.node_id, soft=False)
            kill_actor_process.options(scheduling_strategy=on_its_node).remote(member.location.process_id)
        self._end(member)
        self.counters.actor_restarts += 1
        doublings = min(max(0, len(member.failures) - 1), 10)  # 2 to the power of 1,024 would overflow
        member.start_at = time.monotonic() + min(MAX_BACK_OFF, 2.0**doublings)

    def on_draining_nodes(self) -> list[int]:
        """Ready actors on nodes that Ray is draining; `relocate` them while they are idle."""
        now = time.monotonic()
        if now - self._drain_polled > _DRAIN_POLL_SECONDS:
            self._drain_polled = now
            self._draining = draining_nodes()
        return [m.actor_id for m in self.members if m.is_ready and m.location and m.location.node_id in self._draining]

    def relocate(self, actor_id: int) -> None:
        """Ends an idle actor on a draining node and starts another, which Ray places on a node that stays."""
        member = self.members[actor_id]
        logger.info("actor %d is moved off a node that is being drained: %s", actor_id, member.location)
        self._end(member)
        self.counters.actor_restarts += 1

    def stop(self) -> None:
        """Ends every actor; first those that wait for room, or Ray would start them where the others end."""
        for member in sorted(self.members, key=lambda member: member.location is not None):
            self._end(member)

    def _failed_member(self) -> Member | None:
        """One that is not ready because it failed, or None."""
        return next((member for member in self.members if member.last_failure is not None), None)

    def _start(self, member: Member) -> None:
        actor_class = RemoteRolloutActor.options(num_gpus=self.config.actor_gpus)  # type: ignore[attr-defined]
        member.handle = actor_class.remote()
        member.starting = member.handle.describe.remote()
        member.has_delivered = False

    def _continue_start(self, member: Member, starting: ray.ObjectRef) -> None:
        """Takes the answer to `describe`, then that to `build`."""
        assert member.handle is not None
        try:
            answer = ray.get(starting, timeout=10)
        except ray.exceptions.RayError as error:
            self.replace(member.actor_id, error)
            return
        if member.location is not None:
            member.starting = member.last_error = member.last_failure = None
            member.failure_details = ""
            return
        member.location, its_software = answer
        if differing := differences(self.software, its_software):
            self._refuse(member, f"{member.location.host} has {', '.join(differing)}: install the same on both")
            return
        state = self._states.get(member.actor_id)
        member.starting = member.handle.build.remote(self._node_id, self.config, member.identity, state)
        member.building_since = self._clock.now()

    def _refuse(self, member: Member, difference: str) -> None:
        """A node with other software ends a run that has not begun; during a run its actors are only missing."""
        message = f"actor {member.actor_id} cannot be used: {difference}"
        if not self._has_worked:
            raise FleetError(message)
        logger.warning("%s (%s)", message, member.location)
        member.last_error = message
        self._end(member)
        member.start_at = time.monotonic() + MAX_BACK_OFF

    def _report_missing(self, damage: str | None) -> None:
        """Logs once that actors have been missing for a minute, or that they stay missing because of `damage`: one
        warning for all with the same reason, which becomes their `last_error`.

        In an elastic fleet an actor that never failed only waits for room.
        """
        for member in self.members:
            if member.is_ready:
                member.missing_since, member.is_reported = time.monotonic(), False
        if not self._newly_missing(MISSING_SECONDS, damage):
            return
        by_reason: dict[str, list[Member]] = {}
        for member in self._newly_missing(0.9 * MISSING_SECONDS, damage):  # with those that followed a moment later
            member.is_reported = True
            if member.last_error is None:  # else a warning was logged
                by_reason.setdefault(damage or member.why_not_ready(), []).append(member)
        for reason, members in by_reason.items():
            seconds = time.monotonic() - members[0].missing_since
            are_unplaced = damage is None and members[0].location is None
            crash = log_of_an_ended_process(time.time() - seconds).strip() if are_unplaced else ""
            numbers = format_ranges([member.actor_id for member in members])
            have = f"actor {numbers} has" if len(members) == 1 else f"actors {numbers} have"
            message = f"{have} been missing for {seconds:.0f} s: {reason}"
            if crash:
                message += "; learner.log has the last output of a process that ended"
            for member in members:
                member.last_error = message
            logger.warning(message, extra={"details": crash})

    def _newly_missing(self, seconds: float, damage: str | None) -> list[Member]:
        """Those not reported yet that have been missing for `seconds` or, with `damage`, failed."""
        late = time.monotonic() - seconds
        return [
            member
            for member in self.members
            if not (member.is_ready or member.is_reported)
            and (member.last_failure is not None or not self.is_elastic)
            and (member.missing_since <= late or (damage is not None and member.last_failure is not None))
        ]

    def _end(self, member: Member) -> None:
        if member.handle is not None:
            ray.kill(member.handle, no_restart=True)
            member.identity = replace(member.identity, incarnation=member.identity.incarnation + 1)
        member.handle = member.starting = member.location = None

    def _log_failure(self, member: Member) -> None:
        """Logs which actor failed, where and why; of a dead process also the end of its log."""
        logger.warning(
            "actor %d (incarnation %d) on %s failed and is replaced: %s",
            *(member.actor_id, member.identity.incarnation, member.location or "an unknown node"),
            member.last_failure,
            extra={"details": member.failure_details},
        )
