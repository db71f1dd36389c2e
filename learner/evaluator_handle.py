"""The learner's side of the evaluator: starts its Ray actor, sends it checkpoints, restarts it when it dies.

The actor needs no CPU, so it never takes the place of a rollout actor. It runs on the learner's node, because it reads
checkpoints from the run directory and writes scores into it. A restarted evaluator finds unscored checkpoints by
itself. If restarts do not help, the run loses its scores and nothing else.
"""

import contextlib
import logging
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.config import Config
from common.messages import CheckpointNotice, EvaluatorStatus
from evaluator.remote import RemoteEvaluatorActor
from learner.cluster.remote_errors import cause_in_one_line, full_cause
from learner.rollouts.deadlines import AwakeClock

logger = logging.getLogger(__name__)

# An answer may take this long after the deadline that was sent with the call.
_ANSWER_SECONDS = 1.0
# An actor that has not answered for this long is hung: its calls take no time, scoring has its own thread.
_HUNG_SECONDS = 60.0
# More between two looks at an answer is not held against the evaluator: this process may have been suspended.
_LONGEST_STEP_SECONDS = 30.0
# Without a new score in between; after one more death it is given up.
_MAX_DEATHS_IN_A_ROW = 3


class RemoteEvaluator:
    """Called by the learner's main thread. Nothing here raises because of the evaluator; only `finish` waits for it.

    `last_error` is one line about a dead or failing evaluator, or None. `is_off` says that nothing more will be scored:
    the evaluator was given up, or --no-evaluator was given.
    """

    def __init__(self, run_path: Path, config: Config):
        """Starts the actor on the learner's node, without waiting for it; none with --no-evaluator."""
        self.last_error: str | None = None
        self.restarts = 0
        self.is_off = not config.evaluator
        self._run_path = run_path.resolve()
        self._config = config
        self._deaths_in_a_row = 0
        self._notice: CheckpointNotice | None = None
        self._newest: dict[str, Any] | None = None
        self._status = EvaluatorStatus()
        self._clock = AwakeClock(_LONGEST_STEP_SECONDS)
        self._calls: dict[str, tuple[ray.ObjectRef, float]] = {}  # in flight, and since when, by method
        self.actor: Any = None if self.is_off else self._start_actor()  # another one after a restart

    def notify(self, notice: CheckpointNotice) -> None:
        """Tells the evaluator about a complete checkpoint, without waiting for an answer."""
        self._notice = notice
        if self.is_off:
            return
        self._calls.pop("finish", None)  # its answer would not cover this notice
        try:
            self.actor.notify.remote(notice)
        except RayError as error:
            self._restart(error)

    def latest(self) -> dict[str, Any] | None:
        """The newest row known here, without waiting; asks for a newer one if no such call is in flight."""
        if not self.is_off:
            self._answer("latest", 0.0)
        return self._newest

    def may_score(self, policy_version: int) -> bool:
        """Whether the evaluator is scoring this version, is about to, or may not have heard of it. From any thread."""
        status = self._status
        is_open = policy_version in status.unfinished or policy_version > status.newest_known
        return is_open and not self.is_off

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until every checkpoint it was notified of is scored or skipped, and returns the newest row.

        None after `timeout` seconds, after a restart, and if the evaluator is off. May be called again.
        """
        return None if self.is_off else self._answer("finish", timeout + _ANSWER_SECONDS, timeout)

    def wait_for_score(self, policy_version: int, timeout: float, poll: Callable[[], None]) -> dict[str, Any] | None:
        """Waits until `policy_version` is scored; `poll` runs once a second and may raise.

        None after `timeout` seconds, or as soon as it is clear that the score will not come. With --backfill it also
        waits for the skipped checkpoints' scores.
        """
        clock = AwakeClock(longest_step=5.0)
        while (left := timeout - clock.now()) > 0:
            poll()
            row = self.finish(min(1.0, left))
            if self.is_off or row is not None:  # a row of another version: this one was skipped
                return row if row is not None and row["policy_version"] == policy_version else None
        self._calls.pop("latest", None)  # a call made earlier may return an older row
        row = self._answer("latest", _ANSWER_SECONDS)
        if row is not None and row["policy_version"] == policy_version:  # only the backfill takes longer
            return row
        logger.warning(
            "policy_version %d was not scored within %.0f s (--eval-timeout); score it later with python -m evaluator "
            "score %s --backfill",
            policy_version,
            timeout,
            shlex.quote(str(self._run_path)),
        )
        return None

    def stop(self) -> None:
        """Ends the actor's process, whatever it is doing; its files are complete at every moment."""
        self.is_off = True
        if self.actor is not None:
            with contextlib.suppress(RayError):  # a lost cluster has already ended it
                ray.kill(self.actor, no_restart=True)

    def _start_actor(self) -> Any:
        this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = RemoteEvaluatorActor.options(scheduling_strategy=this_node)  # type: ignore[attr-defined]
        return actor.remote(self._run_path, self._config)

    def _answer(self, method: str, wait: float, *args: Any) -> dict[str, Any] | None:
        """The row that the call in flight returns within `wait` seconds; makes the call if none is in flight."""
        try:
            if method not in self._calls:
                self._calls[method] = getattr(self.actor, method).remote(*args), self._clock.now()
            call, since = self._calls[method]
            if not ray.wait([call], timeout=wait)[0]:
                if self._clock.now() - since > wait + _HUNG_SECONDS:
                    self._restart(GetTimeoutError(f"no answer within {_HUNG_SECONDS:.0f} s"))
                return None
            del self._calls[method]
            status: EvaluatorStatus = ray.get(call, timeout=_ANSWER_SECONDS)
        except RayError as error:
            self._restart(error)
            return None
        self._update(status)
        return status.row

    def _update(self, status: EvaluatorStatus) -> None:
        self._status, row, last_error = status, status.row, status.last_error
        if last_error is not None and last_error != self.last_error:
            logger.warning("evaluator: %s", last_error)
        self.last_error = last_error
        if row is not None and row != self._newest:
            self._newest, self._deaths_in_a_row = row, 0

    def _restart(self, error: RayError) -> None:
        """Replaces a process that died or hung. An exception of the evaluator's own code would only come again."""
        self._deaths_in_a_row += 1
        if isinstance(error, RayTaskError) or self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
            self._give_up(error)
            return
        self._calls.clear()
        self._status = EvaluatorStatus()
        try:
            with contextlib.suppress(RayError):
                ray.kill(self.actor, no_restart=True)  # in case it is only unreachable
            self.actor = self._start_actor()
            if self._notice is not None:
                self.actor.notify.remote(self._notice)
        except RayError as second_error:
            self._give_up(second_error)
            return
        self.restarts += 1
        what = "hung" if isinstance(error, GetTimeoutError) else "died"
        self.last_error = f"the evaluator {what} and was restarted: {cause_in_one_line(error)}"
        logger.warning(self.last_error, extra={"details": full_cause(error)})

    def _give_up(self, error: RayError) -> None:
        self.is_off = True
        self.last_error = f"the evaluator stopped: {cause_in_one_line(error)}"
        logger.error(self.last_error, extra={"details": full_cause(error)})
