"""What the learner knows about its evaluator's work; without Ray, whose part is a stand-in."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import learner.evaluator_handle as handle_module
from common.messages import CheckpointNotice, EvaluatorStatus
from learner.evaluator_handle import RemoteEvaluator
from tests.conftest import tiny_config


class Actor:
    """Answers `latest` with `status`, and `finish` as if there were more to score."""

    def __init__(self) -> None:
        self.status = EvaluatorStatus()
        self.latest = SimpleNamespace(remote=lambda: self.status)
        self.finish = SimpleNamespace(remote=lambda timeout: EvaluatorStatus())
        self.notify = SimpleNamespace(remote=lambda notice: None)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> list[Actor]:
    """Those that were started."""
    started: list[Actor] = []
    stand_in = SimpleNamespace(
        wait=lambda calls, timeout: (calls, []),
        get=lambda call, timeout: call,
        kill=lambda actor, no_restart: None,
    )
    monkeypatch.setattr(handle_module, "ray", stand_in)
    monkeypatch.setattr(RemoteEvaluator, "_start_actor", lambda self: started.append(Actor()) or started[-1])
    return started


def new_evaluator(path: Path, **settings: bool) -> RemoteEvaluator:
    return RemoteEvaluator(path, tiny_config(**settings))


def test_checkpoints_being_scored_waiting_or_unknown_may_be_scored(actors: list[Actor], tmp_path: Path) -> None:
    evaluator = new_evaluator(tmp_path)
    assert evaluator.may_score(0) and evaluator.may_score(10)  # it has not answered yet
    actors[0].status = EvaluatorStatus(unfinished=frozenset({10, 30}), newest_known=30)
    evaluator.latest()
    evaluator.notify(CheckpointNotice("00000040", 40, 0))
    assert [version for version in range(0, 50, 10) if evaluator.may_score(version)] == [10, 30, 40]


def test_restarted_evaluator_may_score_every_checkpoint_until_it_answers(actors: list[Actor], tmp_path: Path) -> None:
    evaluator = new_evaluator(tmp_path)
    actors[0].status = EvaluatorStatus(newest_known=30)
    evaluator.latest()
    assert not evaluator.may_score(10)
    evaluator._restart(handle_module.GetTimeoutError("no answer"))
    assert len(actors) == 2 and evaluator.may_score(10)


def test_evaluator_that_is_off_scores_nothing(actors: list[Actor], tmp_path: Path) -> None:
    assert not new_evaluator(tmp_path, evaluator=False).may_score(10)
    stopped = new_evaluator(tmp_path)
    stopped.stop()
    assert not stopped.may_score(10)


@pytest.mark.parametrize("newest", [4, 5])
def test_score_that_was_written_before_a_backfill_ran_out_of_time_is_returned(
    newest: int, actors: list[Actor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluator = new_evaluator(tmp_path)
    actors[0].status = EvaluatorStatus({"policy_version": newest})
    evaluator._calls["latest"] = EvaluatorStatus({"policy_version": 0}), 0.0  # asked while training
    row = evaluator.wait_for_score(5, 0.01, lambda: None)
    assert row == ({"policy_version": 5} if newest == 5 else None)
    assert ("policy_version 5 was not scored" in caplog.text) == (row is None)
