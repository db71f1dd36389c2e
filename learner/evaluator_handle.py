"""The learner's handle of the evaluator: starts its Ray actor, sends it checkpoints, restarts it when it dies.

The actor asks for no CPU, so that it never takes a rollout actor's place, and lives on the learner's node, because
it reads checkpoints from and writes into the run directory. When it dies it is started again, and finds by itself which
checkpoints lack scores; when that does not help, the run loses its scores, nothing else.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.config import Config
from common.messages import CheckpointNotice
from evaluator.remote import RemoteEvaluatorActor
from learner.cluster.remote_errors import cause_in_one_line

# What an answer may take beyond the deadline it was asked to keep.
_ANSWER_SECONDS = 1.0
# An actor that has not answered for so long is hung: its calls take no time, scoring has a thread of its own.
_HUNG_SECONDS = 60.0
# Without a new score in between; then it stays dead.
_MAX_DEATHS_IN_A_ROW = 3


class RemoteEvaluator:
    """The learner's handle. Nothing here raises because of the evaluator, and only `finish` waits for it.

    `problem` is one line about a dead or failing evaluator, for the display, or None; `restarts` counts its lives but
    the first; `is_dead` says that nothing more will be scored.
    """

    def __init__(self, run_path: Path, config: Config):
        self.problem: str | None = None
        self.restarts = 0
        self.is_dead = False
        self._run_path = run_path.resolve()
        self._config = config
        self._deaths_in_a_row = 0
        self._notice: CheckpointNotice | None = None
        self._newest: dict[str, Any] | None = None
        self._asked: ray.ObjectRef | None = None
        self._asked_at = 0.0
        self._finishing: ray.ObjectRef | None = None
        self._actor = self._start_actor()

    @classmethod
    def start(cls, run_path: Path, config: Config) -> "RemoteEvaluator":
        """Starts the actor on the driver's own node, without waiting for it."""
        return cls(run_path, config)

    @property
    def actor(self) -> ActorHandle:
        """The actor of this life."""
        return self._actor

    def notify(self, notice: CheckpointNotice) -> None:
        """Tells the evaluator of a complete checkpoint. Its answer is not awaited."""
        self._notice = notice
        if self.is_dead:
            return
        self._finishing = None  # its answer would not cover this notice
        try:
            self._actor.notify.remote(notice)
        except RayError as error:
            self._revive(error)

    def latest(self) -> dict[str, Any] | None:
        """The newest row known here, at once; a question for a newer one is always under way."""
        if self.is_dead:
            return self._newest
        try:
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                answered, self._asked = self._asked, None
                self._learn(*ray.get(answered, timeout=_ANSWER_SECONDS))
            if self._asked is None:
                self._asked, self._asked_at = self._actor.latest.remote(), time.monotonic()
            elif time.monotonic() - self._asked_at > _HUNG_SECONDS:
                self._revive(GetTimeoutError(f"it did not answer for {_HUNG_SECONDS:.0f} s"))
        except RayTaskError as error:
            self._bury(error)
        except RayError as error:
            self._revive(error)
        return self._newest

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until every checkpoint it was told of is scored or skipped, and returns the newest row.

        None after `timeout` seconds, after a restart, and where the evaluator is dead. May be called again.
        """
        if self.is_dead:
            return None
        try:
            if self._finishing is None:
                self._finishing, self._asked_at = self._actor.finish.remote(timeout), time.monotonic()
            if not ray.wait([self._finishing], timeout=timeout + _ANSWER_SECONDS)[0]:
                if time.monotonic() - self._asked_at > timeout + _HUNG_SECONDS:
                    self._revive(GetTimeoutError(f"it did not answer for {_HUNG_SECONDS:.0f} s"))
                return None  # starting, or too busy to answer; the question stands
            answered, self._finishing = self._finishing, None
            row, problem = ray.get(answered, timeout=_ANSWER_SECONDS)
        except RayTaskError as error:
            self._bury(error)
            return None
        except RayError as error:
            self._revive(error)
            return None
        self._learn(row, problem)
        return row

    def stop(self) -> None:
        """Ends the actor's process, whatever it is doing; its files are whole at every moment."""
        self.is_dead = True
        with contextlib.suppress(RayError):  # a lost cluster has ended it already
            ray.kill(self._actor, no_restart=True)

    def _start_actor(self) -> ActorHandle:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = RemoteEvaluatorActor.options(scheduling_strategy=here)  # type: ignore[attr-defined]
        return actor.remote(self._run_path, self._config)

    def _learn(self, row: dict[str, Any] | None, problem: str | None) -> None:
        self.problem = problem
        if row is not None and row != self._newest:
            self._newest, self._deaths_in_a_row = row, 0

    def _revive(self, error: RayError) -> None:
        """The process is gone or hung: another one takes over. An error of its own code is none of these."""
        self._deaths_in_a_row += 1
        if isinstance(error, RayTaskError) or self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
            self._bury(error)
            return
        self._asked = self._finishing = None
        try:
            with contextlib.suppress(RayError):
                ray.kill(self._actor, no_restart=True)  # where it is only unreachable
            self._actor = self._start_actor()
            if self._notice is not None:
                self._actor.notify.remote(self._notice)
        except RayError as again:
            self._bury(again)
            return
        self.restarts += 1
        what = "hung" if isinstance(error, GetTimeoutError) else "died"
        self.problem = f"the evaluator {what} and was started again: {cause_in_one_line(error)}"

    def _bury(self, error: RayError) -> None:
        self.is_dead = True
        self.problem = f"the evaluator stopped: {cause_in_one_line(error)}"
