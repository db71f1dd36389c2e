"""The evaluator as a Ray actor. `learner/evaluator_handle.py` is the learner's side of it."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import ray

from common.config import Config
from common.messages import CheckpointNotice, EvaluatorStatus
from common.process import end_with_parent, prepare_matplotlib, prepare_process
from common.procgen_env import play_only
from common.storage.run_directory import RunDirectory
from evaluator.output.log_file import LogFile

if TYPE_CHECKING:
    from evaluator.service import EvaluationService

# How long the previous evaluator's process may take to end and release the run's lock.
_LOCK_SECONDS = 10.0
# Pause of `finish` where the run directory cannot be used yet.
_RETRY_SECONDS = 1.0

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)
class RemoteEvaluatorActor:
    """`EvaluationService` in its own process, logging to RUN_DIR/evaluator.log.

    Scoring has its own thread, so every call but `finish` returns immediately.
    """

    def __init__(self, run_path: Path, config: Config):
        end_with_parent()
        prepare_process(num_threads=1, sees_gpu=False, group_readable=config.group_readable)
        prepare_matplotlib()
        play_only(config.env_name)
        # Imported here, because the learner imports this file too and does not need matplotlib.
        import evaluator.service  # noqa: F401

        self._run = RunDirectory(run_path)
        self._config = config
        self._service: EvaluationService | None = None
        self._start_error: str | None = None
        for package in ("common", "evaluator"):
            logging.getLogger(package).setLevel(logging.INFO)
            logging.getLogger(package).addHandler(LogFile(self._run.evaluator_log))

    def _started(self) -> "EvaluationService | None":
        """The service, created by the first call: this process starts early, before a new run has a directory.

        None while the run directory cannot be read or written, which the next call tries again.

        Not a property: Ray would evaluate it in the learner when it pickles the class, and import matplotlib there.
        """
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
            except OSError as error:
                reason = f"cannot start scoring: {error}; retrying"
                if reason != self._start_error:
                    logger.warning(reason, exc_info=True)
                self._start_error = reason
                return None
        return self._service

    def notify(self, notice: CheckpointNotice) -> None:
        if (service := self._started()) is not None:  # else the checkpoint is found on the disk later
            service.notify(notice)

    def latest(self) -> EvaluatorStatus:
        """With the newest row."""
        if (service := self._started()) is None:
            return EvaluatorStatus(last_error=self._start_error)
        return service.status(service.latest())

    def finish(self, timeout: float) -> EvaluatorStatus:
        """With the newest row when nothing is left to score; without a row after `timeout` seconds."""
        if (service := self._started()) is None:
            time.sleep(min(timeout, _RETRY_SECONDS))
            return EvaluatorStatus(last_error=self._start_error)
        return service.status(service.finish(timeout))
