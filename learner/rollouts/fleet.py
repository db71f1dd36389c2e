"""The set of actors: placing them, replacing lost ones, saying how many are missing."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import ray
from ray.actor import ActorHandle

from actors.remote import Learner, Place, RemoteRolloutActor
from common.config import Config
from common.messages import ActorState, Rollout
from common.versions import software
from learner.cluster.remote_errors import cause_in_one_line
from learner.rollouts.counters import RunCounters

# Lives in a row that ended in the same way before their first rollout; then the fault is no accident.
MAX_FAILURES_AT_START = 5
# Seconds before a replacement is started: 1, 2, 4 ... while nothing is delivered in between.
LONGEST_BACK_OFF = 30.0
# Seconds between two questions which nodes are about to leave.
_DRAIN_POLL = 5.0


class FleetError(RuntimeError):
    """No actor can work; the message is one line for the user. `details` is the actor's traceback, if it left one."""

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


@dataclass(slots=True)
class Member:
    """One place of the fleet. `handle` changes when the actor is replaced, `actor_id` never.

    An actor is waiting (no handle, until `start_at`), starting (`starting` is its unanswered `place`) or ready.
    """

    actor_id: int
    incarnation: int = 0
    handle: ActorHandle | None = None
    starting: ray.ObjectRef | None = None
    place: Place | None = None
    start_at: float = 0.0
    has_delivered: bool = False
    failures: list[str] = field(default_factory=list)  # of lives in a row that delivered nothing
    problem: str | None = None  # why it cannot work where Ray placed it

    @property
    def is_ready(self) -> bool:
        return self.handle is not None and self.starting is None


class Fleet:
    """`num_actors` places, each held by an actor that is ready, starting, or waiting: to be tried again, or for the
    cluster to have room. Nodes that join are used by themselves; those that leave take their actors with them.
    """

    def __init__(
        self,
        config: Config,
        started_at: int,
        states: Mapping[int, ActorState] | None = None,
        counters: RunCounters | None = None,
    ):
        """`started_at` is the policy_version the run starts or is resumed at; `states` are where the actors of a
        resumed run stood, by actor_id.
        """
        self.started_at = started_at
        self.config_ref = ray.put(config)
        self.learner = Learner(software(), ray.get_runtime_context().get_node_id())
        self.gpus_each = config.actor_gpus
        self.fewest = config.min_actors
        self.is_elastic = self.fewest < config.num_actors
        self.counters = counters or RunCounters()
        self._has_worked = False
        self._draining: frozenset[str] = frozenset()
        self._drain_asked = 0.0
        self.members = {i: Member(i) for i in range(config.num_actors)}
        for member in self.members.values():
            self._start(member, (states or {}).get(member.actor_id))

    @property
    def last_error(self) -> str | None:
        """One line about a node whose actors cannot work, or None."""
        return next((m.problem for m in self.members.values() if m.problem), None)

    def wait_until_placed(self, timeout: float, poll: Callable[[], None]) -> int:
        """Waits until every actor that the cluster's CPUs and GPUs can hold is ready; returns how many are.

        The others join when there is room. `poll` runs while waiting and may raise.

        Raises:
            FleetError: fewer than needed were ready within `timeout` seconds, or one keeps failing to start.
        """
        needed = self.fewest if self.is_elastic else 1
        deadline = time.monotonic() + timeout
        while len(self.ready()) < max(needed, min(len(self.members), self._room())) and time.monotonic() < deadline:
            poll()
            starting = [m.starting for m in self.members.values() if m.starting]
            if starting:
                ray.wait(starting, num_returns=1, timeout=0.2)
            else:
                time.sleep(0.1)
        ready = len(self.ready())
        if ready < needed:
            if not ready:
                raise FleetError(f"no actor could be placed within {timeout:.0f} s: {self._shortage()}")
            raise FleetError(
                f"{ready} of at least {needed} actors could be placed within {timeout:.0f} s: {self._shortage()}"
            )
        return ready

    def ready(self) -> list[int]:
        """Ids of actors that can collect now. What is due to be started, or failed to, is started again."""
        now = time.monotonic()
        for member in self.members.values():
            starting = member.starting
            if member.handle is None and now >= member.start_at:
                self._start(member)
            elif starting is not None and ray.wait([starting], timeout=0)[0]:
                self._finish_start(member, starting)
        return [m.actor_id for m in self.members.values() if m.is_ready]

    def collect(self, actor_id: int, weights: ray.ObjectRef, policy_version: int) -> "ray.ObjectRef[Rollout]":
        """Asks one ready actor for one rollout; `weights` is a reference to what `ray.put` stored."""
        handle = self.members[actor_id].handle
        assert handle is not None
        return handle.collect.remote(weights, policy_version)

    def delivered(self, actor_id: int) -> None:
        """The actor's rollout arrived whole: it works, whatever happened before."""
        member = self.members[actor_id]
        member.has_delivered = self._has_worked = True
        member.failures.clear()

    def replace(self, actor_id: int, error: BaseException | str) -> None:
        """Ends an actor that is dead, hung or wrong; another one with seeds of its own is started in its place.

        Raises:
            FleetError: it is the fifth in a row to end like this before its first rollout, or has other software.
        """
        member = self.members[actor_id]
        cause = error if isinstance(error, str) else cause_in_one_line(error)
        if "CodeDiffers" in cause:
            self._refuse(member, f"actor {actor_id} cannot be used: {cause.partition('CodeDiffers: ')[2] or cause}")
            return
        kind = cause if isinstance(error, str | ray.exceptions.RayTaskError) else f"{type(error).__name__}: {cause}"
        # Ray's sentences about a death hold ids and times; the kind of death is what repeats.
        if isinstance(error, ray.exceptions.RayActorError) and "The actor died because of an error" not in str(error):
            kind = type(error).__name__
        if not member.has_delivered:
            member.failures.append(kind)
            if member.failures[-MAX_FAILURES_AT_START:] == [kind] * MAX_FAILURES_AT_START:
                raise FleetError(
                    f"actor {actor_id} failed {MAX_FAILURES_AT_START} times in a row before its first rollout: {cause}",
                    "" if isinstance(error, str) else str(error),
                ) from (None if isinstance(error, str) else error)
        self._end(member)
        self.counters.actor_restarts += 1
        member.start_at = time.monotonic() + min(LONGEST_BACK_OFF, 2.0 ** max(0, len(member.failures) - 1))

    def _refuse(self, member: Member, problem: str) -> None:
        """A node with other software ends a run that has not begun; one that joined later only lacks its actors."""
        if not self._has_worked:
            raise FleetError(problem)
        member.problem = problem
        self._end(member)
        member.start_at = time.monotonic() + LONGEST_BACK_OFF

    def leaving(self) -> list[int]:
        """Ready actors on nodes that Ray says are being drained; they do well to be replaced between two rollouts."""
        now = time.monotonic()
        if now - self._drain_asked > _DRAIN_POLL:
            self._drain_asked = now
            self._draining = _draining_nodes()
        if not self._draining:
            return []
        return [
            m.actor_id for m in self.members.values() if m.is_ready and m.place and m.place.node_id in self._draining
        ]

    def move(self, actor_id: int) -> None:
        """Ends an idle actor whose node leaves and starts another, which Ray places on a node that stays."""
        self._end(self.members[actor_id])
        self.counters.actor_restarts += 1

    def stop(self) -> None:
        """Ends every actor."""
        for member in self.members.values():
            self._end(member)

    def _end(self, member: Member) -> None:
        if member.handle is not None:
            ray.kill(member.handle, no_restart=True)
            member.incarnation += 1
        member.handle = member.starting = member.place = None

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

    def _start(self, member: Member, state: ActorState | None = None) -> None:
        actor_class = RemoteRolloutActor.options(num_gpus=self.gpus_each)  # type: ignore[attr-defined]
        life = (member.actor_id, member.incarnation, self.started_at)
        member.handle = actor_class.remote(self.learner, self.config_ref, *life, state)
        member.starting = member.handle.place.remote()
        member.has_delivered = False

    def _finish_start(self, member: Member, started: ray.ObjectRef) -> None:
        try:
            member.place = ray.get(started, timeout=10)
            member.starting = member.problem = None
        except ray.exceptions.RayError as error:
            self.replace(member.actor_id, error)


def _draining_nodes() -> frozenset[str]:
    """Hexadecimal ids of nodes about to leave. Ray has no public way to ask; Ray Serve asks in this one."""
    try:
        from ray._private.worker import global_worker

        return frozenset(global_worker.gcs_client.get_draining_nodes())  # type: ignore[attr-defined]
    except Exception:  # a private interface may change: then a drain is noticed when the node is gone
        return frozenset()
