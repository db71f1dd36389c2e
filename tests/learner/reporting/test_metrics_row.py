"""The row of metrics.jsonl against numbers worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.resolution import resolve
from learner.reporting.metrics_row import metrics_row, rollout_columns
from learner.rollouts.counters import RunCounters
from learner.rollouts.staging import RolloutSource, StagedBatch
from learner.run_state import RunState

CONFIG = resolve("lab", {"num_actors": 2, "envs_per_actor": 2, "unroll_length": 8, "num_minibatches": 2})
TIME_LIMIT = 1000  # CoinRun's


def source(version, returns, collecting, transfer, num_bytes, actor_id=0, steps=8):
    return RolloutSource(
        actor_id=actor_id,
        policy_version=version,
        episode_envs=np.arange(len(returns)),
        episode_returns=np.array(returns, np.float32),
        episode_lengths=np.full(len(returns), 7, np.int32),
        collect_seconds=collecting,
        transfer_seconds=transfer,
        frame_bytes=num_bytes,
        next_state=SimpleNamespace(steps=steps),
    )


@pytest.fixture
def batch():
    staged = StagedBatch(CONFIG, torch.device("cpu"))
    staged.sources = {
        1: source(4, [10.0], 2.0, 0.25, 640, actor_id=1, steps=TIME_LIMIT),
        0: source(5, [], 3.0, 0.5, 320, actor_id=0, steps=TIME_LIMIT),
    }
    staged.staging_seconds = 0.125
    return staged


def test_columns_of_a_batch_are_its_lags_episodes_slowest_times_and_bytes(batch):
    assert rollout_columns(batch, policy_version=5) == {
        "policy_lag": 0.5, "max_policy_lag": 1, "episodes": 1, "seconds_collecting": 3.0, "seconds_transfer": 0.5,
        "seconds_staging": 0.125, "bytes_per_frame": 30.0,
    }  # fmt: skip


def test_row_has_the_totals_of_the_run_and_the_means_of_recent_episodes(batch):
    state = RunState.new(CONFIG)
    state.counters = RunCounters(lost_rollouts=3, actors_ready=2)
    state.record(batch)
    seconds = {"seconds_waiting": 1.0, "seconds_training": 0.5, "seconds_publishing": 0.25, "seconds_saving": 0.25}
    row = metrics_row(6, 6 * 32, {"policy_lag": 0.5}, {"value_loss": 0.75}, seconds, state)
    del row["time"]
    assert row == {
        "policy_version": 6, "frames": 192, "fps": 16.0, "policy_lag": 0.5, "episode_return": 10.0,
        "episode_length": 7.0, "value_loss": 0.75, **seconds, "actor_restarts": 0, "actors_hung": 0,
        "lost_rollouts": 3, "dropped_for_lag": 0, "skipped_updates": 0, "actors_ready": 2,
    }  # fmt: skip


def test_means_are_none_until_every_environment_had_time_to_finish_an_episode(batch):
    state, seconds = RunState.new(CONFIG), {"seconds_waiting": 1.0}
    batch.sources[0].next_state.steps = TIME_LIMIT - 1
    state.record(batch)
    row = metrics_row(1, 32, {}, {}, seconds, state)
    assert row["episode_return"] is None and row["episode_length"] is None
