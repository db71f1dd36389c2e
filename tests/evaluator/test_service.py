import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config import Config
from common.messages import CheckpointNotice
from common.storage.run_directory import RunDirectory
from evaluator import service as service_module
from evaluator.scores.evaluation import evaluate
from evaluator.service import EvaluationFailed, EvaluationService

DEADLINE = 60
PROJECT = Path(__file__).parents[2]
Save = Callable[[Path, int], Path]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


@pytest.fixture
def service(run: RunDirectory, config: Config) -> Iterator[EvaluationService]:
    running = EvaluationService(run, config)
    yield running
    running.close()


def notice(path: Path) -> CheckpointNotice:
    return CheckpointNotice(str(path), int(path.name), int(path.name) * 1000)


def stored(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.evaluations.read_text().splitlines()]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Scoring waits until the gate is set: what is notified meanwhile waits in the mailbox."""
    opened = threading.Event()

    def evaluate_later(*args: Any, **options: Any) -> Any:
        assert opened.wait(DEADLINE)
        return evaluate(*args, **options)

    monkeypatch.setattr(service_module, "evaluate", evaluate_later)
    yield opened
    opened.set()


def test_the_baseline_comes_first_then_the_newest_and_the_others_are_counted(
    service: EvaluationService, run: RunDirectory, save: Save, gate: threading.Event
) -> None:
    for version in (0, 10, 20, 30):
        service.notify(notice(save(run.checkpoints, version)))
    assert service.latest() is None
    gate.set()
    last = service.finish(DEADLINE)
    assert [(row["policy_version"], row["skipped"]) for row in stored(run)] == [(0, 0), (30, 2)]
    assert last == service.latest() == stored(run)[-1]
    assert last is not None and last["frames"] == 30_000 and last["checkpoint"] == "00000030"
    assert set(stored(run)[0]) >= {"train", "test", "held_out"} and "validation" not in stored(run)[0]
    assert set(stored(run)[1]) >= {"train", "test", "validation"}
    assert [row["updates_behind"] for row in stored(run)] == [30, 0]
    assert all(row["eval_seconds"] >= row["seconds"] > 0 for row in stored(run))
    names = sorted(path.name for path in run.videos.iterdir())
    assert any(name.startswith("00000000-worst-level") for name in names)
    assert any(name.startswith("00000030-worst-level") for name in names)
    assert json.loads(run.level_sets.read_text())["test"] == [2, 3]
    assert os.readlink(run.best) == "00000030"


def test_the_baseline_is_not_replaced_by_newer_notices_while_it_waits(
    service: EvaluationService, run: RunDirectory, save: Save, gate: threading.Event
) -> None:
    service.notify(notice(save(run.checkpoints, 10)))
    assert service.finish(0.5) is None  # 10 is taken and held at the gate
    for version in (0, 20, 30):
        service.notify(notice(save(run.checkpoints, version)))
    gate.set()
    assert service.finish(DEADLINE) is not None
    assert [(row["policy_version"], row["skipped"]) for row in stored(run)] == [(10, 0), (0, 0), (30, 1)]


def test_finish_gives_up_at_its_deadline(
    service: EvaluationService, run: RunDirectory, save: Save, gate: threading.Event
) -> None:
    service.notify(notice(save(run.checkpoints, 10)))
    assert service.finish(0.1) is None
    gate.set()
    assert service.finish(DEADLINE) is not None


def test_a_scored_version_is_not_scored_again_even_after_a_restart(
    service: EvaluationService, run: RunDirectory, config: Config, save: Save
) -> None:
    told = notice(save(run.checkpoints, 10))
    service.notify(told)
    assert service.finish(DEADLINE) is not None
    service.notify(told)
    assert service.finish(DEADLINE) is not None
    service.close()
    restarted = EvaluationService(run, config)
    restarted.notify(told)
    row = restarted.finish(DEADLINE)
    restarted.close()
    assert row is not None and row["policy_version"] == 10
    assert len(stored(run)) == 1
    assert len(run.levels.read_text().splitlines()) == 1 + 6


def test_started_on_a_run_it_finds_the_baseline_and_the_newest_checkpoint_by_itself(
    run: RunDirectory, config: Config, save: Save
) -> None:
    for version in (0, 10, 20):
        save(run.checkpoints, version)
    service = EvaluationService(run, config)
    assert service.finish(DEADLINE) is not None
    service.close()
    assert [row["policy_version"] for row in stored(run)] == [0, 20]


def test_backfill_scores_what_was_skipped_the_newest_first_but_not_what_cannot_be_read(
    run: RunDirectory, config: Config, save: Save
) -> None:
    paths = [save(run.checkpoints, version) for version in (0, 10, 20, 30)]
    (paths[1] / "policy.safetensors").write_bytes(b"abc")
    service = EvaluationService(run, dataclasses.replace(config, backfill=True))
    row = service.finish(DEADLINE)
    service.close()
    assert row is not None and row["policy_version"] == 30
    assert [row["policy_version"] for row in stored(run)] == [0, 30, 20]
    assert service.problem is not None and "00000010" in service.problem


def test_killed_while_scoring_it_comes_back_and_writes_nothing_twice_or_half(
    run: RunDirectory, config: Config, save: Save
) -> None:
    """A process of its own, killed at a random moment, again and again, until every checkpoint is scored."""
    run.write_config(config, {})
    for version in (0, 10, 20, 30):
        save(run.checkpoints, version)
    kills = 0
    for attempt in range(40):
        process = subprocess.Popen(
            [sys.executable, "-m", "evaluator", "score", str(run.path), "--backfill"],
            cwd=PROJECT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=3.5 + 0.37 * attempt)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    assert kills > 0 and process.returncode == 0
    assert sorted(row["policy_version"] for row in stored(run)) == [0, 10, 20, 30]
    lines = [line.split(",")[:3] for line in run.levels.read_text().splitlines()[1:]]
    assert len(lines) == len({tuple(line) for line in lines}) == 4 + 3 * 6


def test_damaged_and_deleted_checkpoints_are_reported_counted_and_skipped(
    service: EvaluationService, run: RunDirectory, save: Save, capfd: pytest.CaptureFixture[str]
) -> None:
    damaged, deleted, good = (save(run.checkpoints, version) for version in (10, 20, 30))
    data = bytearray((damaged / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "policy.safetensors").write_bytes(data)
    shutil.rmtree(deleted)
    for path, reason in ((damaged, "policy.safetensors is damaged"), (deleted, "manifest.json is missing")):
        service.notify(notice(path))
        assert service.finish(DEADLINE) is None
        assert service.problem is not None and reason in service.problem
    service.notify(notice(good))
    row = service.finish(DEADLINE)
    assert row is not None and (row["policy_version"], row["skipped"]) == (30, 2)
    assert service.problem is None
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 2 and all(line.startswith("evaluator: checkpoint skipped: ") for line in errors)


def test_an_error_while_scoring_reaches_whoever_asks(service: EvaluationService, run: RunDirectory, save: Save) -> None:
    run.level_sets.write_text("no JSON")
    service.notify(notice(save(run.checkpoints, 10)))
    with pytest.raises(EvaluationFailed, match="scoring stopped: ConfigError"):
        service.finish(DEADLINE)
    with pytest.raises(EvaluationFailed):
        service.latest()


def test_a_directory_that_cannot_be_written_is_waited_out(
    service: EvaluationService, run: RunDirectory, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.05)
    run.levels.mkdir()  # a directory where the file should be
    service.notify(notice(save(run.checkpoints, 10)))
    deadline = time.monotonic() + DEADLINE
    while service.problem is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "scores of 00000010 cannot be written" in service.problem
    run.levels.rmdir()
    last = service.finish(DEADLINE)
    assert last is not None and last["policy_version"] == 10
    assert service.problem is None and service.num_scored == 1
