"""The evaluator as a Ray actor. `learner/evaluator_handle.py` is the learner's side of it."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from common.config import Config
from common.messages import CheckpointNotice
from common.process import end_with_parent, prepare_process
from common.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from evaluator.service import EvaluationService

# What the process before this one may take to end and let go of the run's lock.
_LOCK_SECONDS = 10.0


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class RemoteEvaluatorActor:
    """`EvaluationService` in a process of its own. It scores on its own thread, so every call is answered at once."""

    def __init__(self, run_path: Path, config: Config):
        end_with_parent()
        prepare_process(num_threads=1, sees_gpu=False)
        # Here, because the learner imports this file too and has no use for matplotlib.
        import evaluator.service  # noqa: F401

        self._run = RunDirectory(run_path)
        self._config = config
        self._service: EvaluationService | None = None

    @property
    def service(self) -> "EvaluationService":
        """Made at the first call: this process starts while actors are placed, before a new run has a directory."""
        from evaluator.output.score_files import RunIsBeingScored
        from evaluator.service import EvaluationService

        deadline = time.monotonic() + _LOCK_SECONDS
        while self._service is None:
            try:
                self._service = EvaluationService(self._run, self._config)
            except RunIsBeingScored:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        return self._service

    def notify(self, notice: CheckpointNotice) -> None:
        self.service.notify(notice)

    def latest(self) -> tuple[dict[str, Any] | None, str | None]:
        """(newest row, problem)."""
        return self.service.latest(), self.service.problem

    def finish(self, timeout: float) -> tuple[dict[str, Any] | None, str | None]:
        """(newest row or None at the deadline, problem)."""
        return self.service.finish(timeout), self.service.problem
