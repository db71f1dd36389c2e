"""The training loop: get a batch, update, publish weights, log, checkpoint. Everything else happens elsewhere.

stream.next_batch --StagedBatch--> learner.update --Weights--> stream.publish
                                        |-- metrics.jsonl, TensorBoard, progress
                                        '-- every checkpoint_interval: checkpoint --notice--> evaluator
"""

import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboardX import SummaryWriter

from common.checkpoints import save_checkpoint
from common.config import Config
from common.messages import CheckpointNotice
from common.metrics import append_jsonl
from common.run_directory import RunDirectory
from learner.advice import UpdateTimes, advice
from learner.batch import StagedBatch
from learner.ppo import PPOLearner
from learner.progress import Progress
from learner.rollout_stream import RolloutStream
from learner.stopping import StopRequested, StopSignals

# Episodes that episode_return and episode_length are averaged over, as baselines and CleanRL do.
RECENT_EPISODES = 100


class EvaluatorHandle(Protocol):
    """What training needs of the evaluator: told, asked, never waited for but at the very end."""

    problem: str | None
    is_dead: bool

    def notify(self, notice: CheckpointNotice) -> None: ...
    def latest(self) -> dict[str, Any] | None: ...
    def finish(self, timeout: float) -> dict[str, Any] | None: ...


class RunDirectoryFailed(RuntimeError):
    """The run directory cannot be written any more; the newest checkpoint is intact."""


@dataclass(slots=True)
class EpisodeAverages:
    """Returns and lengths of the episodes that ended most recently in training."""

    returns: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    lengths: deque[int] = field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))

    def add(self, staged: StagedBatch) -> int:
        """Takes in the episodes of one batch and returns how many there were."""
        for _, source in sorted(staged.sources.items()):
            self.returns.extend(source.episode_returns.tolist())
            self.lengths.extend(source.episode_lengths.tolist())
        return sum(len(source.episode_returns) for source in staged.sources.values())

    def row(self) -> dict[str, float | None]:
        """null until the first episode has ended."""
        return {
            "episode_return": float(np.mean(self.returns)) if self.returns else None,
            "episode_length": float(np.mean(self.lengths)) if self.lengths else None,
        }


@dataclass(slots=True)
class Training:
    """One run from its current version to the end."""

    config: Config
    run: RunDirectory
    learner: PPOLearner
    stream: RolloutStream
    evaluator: EvaluatorHandle | None
    progress: Progress
    stop: StopSignals
    episodes: EpisodeAverages = field(default_factory=EpisodeAverages)
    times: list[UpdateTimes] = field(default_factory=list)
    last_scored: int = -1
    last_checkpoint: int = -1

    def run_to_end(self, resumed_from: Path | None = None) -> dict[str, Any] | None:
        """Trains until total_frames; returns the last checkpoint's score, None without an evaluator or in time.

        `resumed_from` is the checkpoint that the learner's state came from.

        Raises:
            StopRequested: a signal came; the newest completed update is in a checkpoint.
            RunDirectoryFailed: a file could not be written.
        """
        learner, config = self.learner, self.config
        writer = SummaryWriter(str(self.run.tensorboard / "learner"), purge_step=learner.frames or None)
        self.stream.publish(learner.weights(), learner.policy_version)
        self.progress.start(learner.frames)
        try:
            if resumed_from is None:
                self._checkpoint()
            else:
                self._announce(resumed_from)
            while learner.frames < config.total_frames:
                row = self._one_update()
                self._log(row, writer)
                if learner.policy_version % config.checkpoint_interval == 0:
                    self._checkpoint()
        except StopRequested:
            self._checkpoint()
            raise
        except OSError as error:
            raise RunDirectoryFailed(
                f"run directory {self.run.path} cannot be written: {error.strerror or error}; "
                f"training stopped, the newest checkpoint is {self._newest_checkpoint()}"
            ) from error
        finally:
            if (line := self.advice()) is not None:
                writer.add_text("learner/advice", line, learner.frames)
            writer.close()
        self._checkpoint()
        return self._last_score()

    def advice(self) -> str | None:
        """What bound this run so far, in one line."""
        config = self.config
        return advice(self.times, config.num_actors, config.envs_per_actor, self.stream.max_policy_lag > 0)

    def _one_update(self) -> dict[str, Any]:
        started = time.perf_counter()
        staged = self.stream.next_batch(self.stop.check)
        waited = time.perf_counter()
        lags = [self.learner.policy_version - source.policy_version for source in staged.sources.values()]
        statistics = self.learner.update(staged, self.stop.check)
        trained = time.perf_counter()
        num_episodes = self.episodes.add(staged)
        sources = staged.sources.values()
        timing = {
            "seconds_collecting": max(source.collect_seconds for source in sources),
            "seconds_transfer": max(source.transfer_seconds for source in sources),
            "seconds_staging": staged.staging_seconds,
        }
        self.stream.publish(self.learner.weights(), self.learner.policy_version)
        published = time.perf_counter()
        self.times.append(
            UpdateTimes(
                waiting=waited - started,
                training=published - waited,
                collecting=timing["seconds_collecting"],
                transfer=timing["seconds_transfer"],
            )
        )
        return {
            "policy_version": self.learner.policy_version,
            "frames": self.learner.frames,
            "policy_lag": float(np.mean(lags)),
            "max_policy_lag": max(lags),
            "fps": self.config.batch_size / (published - started),
            **self.episodes.row(),
            "episodes": num_episodes,
            **statistics,
            "seconds_waiting": waited - started,
            "seconds_training": trained - waited,
            "seconds_publishing": published - trained,
            **timing,
            "actors_alive": self.stream.counters.actors_ready,
            "actor_restarts": self.stream.fleet.restarts,
            "lost_rollouts": self.stream.counters.lost_rollouts,
            "dropped_for_lag": self.stream.counters.dropped_for_lag,
            "time": time.time(),
        }

    def _log(self, row: dict[str, Any], writer: SummaryWriter) -> None:
        append_jsonl(self.run.metrics, row)
        for name, value in row.items():
            if value is not None and math.isfinite(value) and name not in ("time", "frames"):
                writer.add_scalar(f"learner/{name}", value, row["frames"])
        self.progress.update(row)
        self._show_score()

    def _show_score(self) -> None:
        if self.evaluator is None:
            return
        row = self.evaluator.latest()
        if row is not None and row["policy_version"] > self.last_scored:
            self.last_scored = row["policy_version"]
            self.progress.evaluated(row)
        if self.evaluator.problem and self.progress.warning != self.evaluator.problem:
            self.progress.warn(self.evaluator.problem)

    def _checkpoint(self) -> None:
        """Writes the newest completed update and tells the evaluator; once per version."""
        learner = self.learner
        if learner.policy_version == self.last_checkpoint:
            return
        try:
            path = save_checkpoint(
                self.run.checkpoints,
                self.config,
                learner.policy_version,
                learner.frames,
                learner.weights(),
                learner.state_dict(),
            )
        except OSError as error:
            raise RunDirectoryFailed(
                f"checkpoint {learner.policy_version} cannot be written to {self.run.checkpoints}: "
                f"{error.strerror or error}; training stopped, the newest checkpoint is {self._newest_checkpoint()}"
            ) from error
        self._announce(path)

    def _announce(self, path: Path) -> None:
        self.last_checkpoint = self.learner.policy_version
        if self.evaluator is not None:
            self.evaluator.notify(CheckpointNotice(str(path), self.learner.policy_version, self.learner.frames))

    def _newest_checkpoint(self) -> str:
        return f"policy_version {self.last_checkpoint}" if self.last_checkpoint >= 0 else "none"

    def _last_score(self) -> dict[str, Any] | None:
        if self.evaluator is None:
            return None
        self.progress.note(f"waiting for the score of policy_version {self.learner.policy_version}")
        deadline = time.monotonic() + self.config.eval_timeout
        while (left := deadline - time.monotonic()) > 0:
            self.stop.check()
            row = self.evaluator.finish(timeout=min(1.0, left))
            if row is not None and row["policy_version"] == self.learner.policy_version:
                return row
            if self.evaluator.problem:
                self.progress.warn(self.evaluator.problem)
            if self.evaluator.is_dead or row is not None:  # an older version's row: nothing more will come
                return None
        self.progress.warn(f"no score of the last checkpoint within {self.config.eval_timeout:.0f} s")
        return None
