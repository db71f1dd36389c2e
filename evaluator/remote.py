"""The evaluator as a Ray actor, and the learner's handle to it. The only file of this room that knows Ray.

The actor asks for no CPU, so that it never takes a rollout actor's place, and lives on the learner's node, because
it reads checkpoints from and writes into the run directory. Its death costs the run its scores, nothing else.
"""

import contextlib
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.config import Config
from common.errors import cause_in_one_line
from common.messages import CheckpointNotice
from common.process import prepare_process
from common.run_directory import RunDirectory

# What an answer may take beyond the deadline it was asked to keep.
_ANSWER_SECONDS = 1.0


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class RemoteEvaluatorActor:
    """`EvaluationService` in a process of its own. It scores on its own thread, so every call is answered at once."""

    def __init__(self, run_path: Path, config: Config):
        prepare_process(num_threads=1, sees_gpu=False)
        # Here, because the learner imports this file too and has no use for matplotlib.
        from evaluator.service import EvaluationService

        self.service = EvaluationService(RunDirectory(run_path), config)

    def notify(self, notice: CheckpointNotice) -> None:
        self.service.notify(notice)

    def latest(self) -> tuple[dict[str, Any] | None, str | None]:
        """(newest row, problem)."""
        return self.service.latest(), self.service.problem

    def finish(self, timeout: float) -> tuple[dict[str, Any] | None, str | None]:
        """(newest row or None at the deadline, problem)."""
        return self.service.finish(timeout), self.service.problem


class RemoteEvaluator:
    """The learner's handle. Nothing here raises because of the evaluator, and only `finish` waits for it.

    `problem` is one line about a dead or failing evaluator, for the display, or None.
    """

    def __init__(self, actor: ActorHandle):
        self.problem: str | None = None
        self._actor = actor
        self._is_dead = False
        self._newest: dict[str, Any] | None = None
        self._asked: ray.ObjectRef | None = None
        self._finishing: ray.ObjectRef | None = None

    @classmethod
    def start(cls, run_path: Path, config: Config) -> "RemoteEvaluator":
        """Starts the actor on the driver's own node, without waiting for it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = RemoteEvaluatorActor.options(scheduling_strategy=here)  # type: ignore[attr-defined]
        return cls(actor.remote(run_path.resolve(), config))

    def notify(self, notice: CheckpointNotice) -> None:
        """Tells the evaluator of a complete checkpoint. Its answer is not awaited."""
        if self._is_dead:
            return
        self._finishing = None  # its answer would not cover this notice
        try:
            self._actor.notify.remote(notice)
        except RayError as error:
            self._bury(error)

    def latest(self) -> dict[str, Any] | None:
        """The newest row known here, at once; a question for a newer one is always under way."""
        if self._is_dead:
            return self._newest
        try:
            if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
                answered, self._asked = self._asked, None
                row, self.problem = ray.get(answered, timeout=_ANSWER_SECONDS)
                self._newest = row or self._newest
            if self._asked is None:
                self._asked = self._actor.latest.remote()
        except RayError as error:
            self._bury(error)
        return self._newest

    def finish(self, timeout: float) -> dict[str, Any] | None:
        """Waits until every checkpoint it was told of is scored or skipped, and returns the newest row.

        None after `timeout` seconds, and where the evaluator is dead; `problem` then says why. May be called again.
        """
        if self._is_dead:
            return None
        try:
            if self._finishing is None:
                self._finishing = self._actor.finish.remote(timeout)
            if not ray.wait([self._finishing], timeout=timeout + _ANSWER_SECONDS)[0]:
                return None  # starting, or too busy to answer; the question stands
            answered, self._finishing = self._finishing, None
            row, self.problem = ray.get(answered, timeout=_ANSWER_SECONDS)
        except RayError as error:
            self._bury(error)
            return None
        self._newest = row or self._newest
        return row

    def stop(self) -> None:
        """Ends the actor's process, whatever it is doing; its files are whole at every moment."""
        self._is_dead = True
        with contextlib.suppress(RayError):  # a lost cluster has ended it already
            ray.kill(self._actor, no_restart=True)

    def _bury(self, error: RayError) -> None:
        self._is_dead = True
        self.problem = f"the evaluator stopped: {cause_in_one_line(error)}"
