"""The learner's handle of the evaluator: it never blocks the driver and survives the evaluator's death."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

import common.procgen_env
from common.config import Config
from common.messages import CheckpointNotice
from common.process import prepare_ray_environment
from common.storage.run_directory import RunDirectory
from learner.cluster.embedded import only_needed_processes
from learner.evaluator_handle import RemoteEvaluator
from tests.conftest import WORKER_SETTINGS, wait_until

pytestmark = pytest.mark.processes
DEADLINE = 180
Save = Callable[[Path, int], Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray whose only CPU is taken: the evaluator must not need one."""
    prepare_ray_environment()
    with only_needed_processes():
        ray.init(address="local", num_cpus=1, log_to_driver=False, _system_config=WORKER_SETTINGS)
    occupant = Occupant.options(num_cpus=1).remote()  # type: ignore[attr-defined]
    ray.get(occupant.ready.remote(), timeout=DEADLINE)
    yield
    ray.shutdown()


@ray.remote
class Occupant:
    def ready(self) -> None:
        """Answers once it holds the CPU."""


@pytest.fixture
def evaluator(cluster: None, config: Config, tmp_path: Path) -> Iterator[RemoteEvaluator]:
    RunDirectory(tmp_path).write_config(config, {})
    remote = RemoteEvaluator(tmp_path, config)
    yield remote
    remote.stop()


def notify(evaluator: RemoteEvaluator, path: Path) -> None:
    evaluator.notify(CheckpointNotice(str(path), int(path.name), 0))


def evaluator_processes() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "RemoteEvaluator" in command(child)]


def command(process: psutil.Process) -> str:
    """The command line; empty if the process has ended, reaped or not."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_killed_evaluator_is_restarted_and_scores_the_remaining_checkpoints(
    evaluator: RemoteEvaluator, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path)
    paths = [save(run.checkpoints, version) for version in (0, 10)]
    notify(evaluator, paths[0])
    notify(evaluator, paths[1])
    assert evaluator.latest() is None
    assert evaluator.finish(0.0) is None and evaluator.last_error is None
    last = evaluator.finish(DEADLINE) or evaluator.finish(DEADLINE)  # the first may answer finish(0.0)'s question
    assert last is not None and last["policy_version"] == 10
    assert evaluator.latest() == last and evaluator.last_error is None
    assert len(run.evaluations.read_text().splitlines()) == 2

    (process,) = evaluator_processes()
    os.kill(process.pid, signal.SIGSEGV)
    process.wait(timeout=DEADLINE)
    notify(evaluator, save(run.checkpoints, 20))
    deadline = time.monotonic() + DEADLINE
    while ((row := evaluator.finish(5.0)) is None or row["policy_version"] < 20) and time.monotonic() < deadline:
        pass
    assert row is not None and row["policy_version"] == 20
    assert evaluator.restarts == 1 and not evaluator.is_off
    (details,) = (
        getattr(record, "details", "")
        for record in caplog.records
        if record.name == "learner.evaluator_handle" and record.levelname == "WARNING"
    )
    assert f"-{process.pid}.err" in details and "Segmentation fault" in details
    rows = [json.loads(line) for line in run.evaluations.read_text().splitlines()]
    assert [row["policy_version"] for row in rows] == [0, 10, 20]


def test_frozen_evaluator_does_not_block_the_driver(
    evaluator: RemoteEvaluator, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 0)
    assert evaluator.finish(DEADLINE) is None  # nothing was notified, so it is running and idle
    (process,) = evaluator_processes()
    process.suspend()  # it answers nothing: what waits without a timeout waits forever
    waits: list[float] = []
    wait = ray.wait

    def record_wait(*args: Any, timeout: float, **options: Any) -> Any:
        waits.append(timeout)
        return wait(*args, timeout=timeout, **options)

    monkeypatch.setattr(ray, "wait", record_wait)
    notify(evaluator, path)
    assert evaluator.latest() is None and evaluator.finish(0.2) is None
    assert sum(waits) < 2  # seconds that they may take; how long they took depends on the machine
    evaluator.stop()
    process.wait(timeout=DEADLINE)


def test_evaluator_may_start_before_the_run_directory_exists(
    cluster: None, config: Config, save: Save, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    evaluator = RemoteEvaluator(run.path, config)
    ray.get(evaluator.actor.__ray_ready__.remote(), timeout=DEADLINE)  # type: ignore[attr-defined]
    assert not run.path.exists()
    actor: Any = evaluator.actor  # Ray's annotations lack `__ray_call__`
    only_game = actor.__ray_call__.remote(lambda _: common.procgen_env._only_game)
    assert ray.get(only_game, timeout=DEADLINE) == "leaper"  # of no other game are images loaded
    path = save(run.checkpoints, 0)
    run.write_config(config, {})
    notify(evaluator, path)
    row = evaluator.finish(DEADLINE)
    assert row is not None and row["policy_version"] == 0
    assert evaluator.restarts == 0 and evaluator.last_error is None
    evaluator.stop()


def test_evaluator_starts_scoring_when_its_directory_can_be_used_again(
    cluster: None, config: Config, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    run.levels.mkdir()
    evaluator = RemoteEvaluator(tmp_path, config)
    notify(evaluator, save(run.checkpoints, 0))
    wait_until(lambda: evaluator.finish(0.1) is None and evaluator.last_error is not None)
    assert evaluator.last_error is not None and evaluator.last_error.startswith("cannot start scoring: ")
    assert "levels.csv" in evaluator.last_error and "\n" not in evaluator.last_error
    assert evaluator.may_score(0)
    (record,) = (record for record in caplog.records if record.name.startswith("learner."))
    assert record.levelname == "WARNING"
    assert 'score_files.py", line' in run.evaluator_log.read_text()
    run.levels.rmdir()
    row = evaluator.finish(DEADLINE) or evaluator.finish(DEADLINE)
    assert row is not None and row["policy_version"] == 0
    assert evaluator.last_error is None and evaluator.restarts == 0
    evaluator.stop()


def test_evaluator_that_fails_gives_one_line_and_logs_the_traceback(
    cluster: None, config: Config, save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    run.level_sets.write_text("damaged")
    evaluator = RemoteEvaluator(tmp_path, config)
    notify(evaluator, save(run.checkpoints, 0))
    wait_until(lambda: evaluator.finish(1.0) is not None or evaluator.is_off)
    assert evaluator.is_off and evaluator.restarts == 0
    assert evaluator.last_error is not None and "\n" not in evaluator.last_error
    assert evaluator.last_error.startswith("the evaluator stopped: EvaluationFailed: scoring stopped: ConfigError: ")
    evaluator.stop()
    (record,) = (record for record in caplog.records if record.name.startswith("learner."))
    details = getattr(record, "details", "")
    assert record.levelname == "ERROR" and 'level_file.py", line' in details and "levels.json" in details


def test_evaluator_is_off_with_no_evaluator(config: Config, tmp_path: Path) -> None:
    evaluator = RemoteEvaluator(tmp_path, replace(config, evaluator=False))
    notify(evaluator, tmp_path / "00000000")
    assert evaluator.is_off and evaluator.latest() is None and evaluator.finish(60) is None
    assert evaluator.wait_for_score(0, 60, lambda: None) is None
    evaluator.stop()
