"""One update's row of metrics.jsonl."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from learner.rollouts.staging import StagedBatch
from learner.run_state import RunState

Row = dict[str, Any]


def rollout_columns(batch: StagedBatch, policy_version: int) -> Row:
    """What a batch says about its rollouts; `policy_version` is the learner's before the update."""
    sources = batch.sources.values()
    lags = [policy_version - source.policy_version for source in sources]
    return {
        "policy_lag": float(np.mean(lags)),
        "max_policy_lag": max(lags),
        "episodes": sum(len(source.episode_returns) for source in sources),
        "seconds_collecting": max(source.collect_seconds for source in sources),
        "seconds_transfer": max(source.transfer_seconds for source in sources),
        "seconds_staging": batch.staging_seconds,
        "bytes_per_frame": sum(source.frame_bytes for source in sources) / batch.actions.numel(),
    }


def metrics_row(
    policy_version: int,
    frames: int,
    rollouts: Row,
    statistics: Mapping[str, float],
    seconds: Mapping[str, float],
    state: RunState,
) -> Row:
    """The row of the update that made `policy_version`.

    Args:
        frames: those of all updates so far.
        rollouts: `rollout_columns` of the batch.
        statistics: what `PPOLearner.update` returned.
        seconds: seconds_waiting, seconds_training and seconds_publishing of this update, and seconds_saving between
            the last one and this: its row, its checkpoint.
        state: episodes and counters of the run, the batch included.
    """
    return {
        "policy_version": policy_version,
        "frames": frames,
        "fps": frames / policy_version / sum(seconds.values()),
        **rollouts,
        **state.episodes.averages(),
        **statistics,
        **seconds,
        **asdict(state.counters),
        "time": time.time(),
    }
