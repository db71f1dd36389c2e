import dataclasses
import errno
import json
import logging
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
from common.messages import CheckpointNotice, EvaluatorStatus
from common.process import set_file_modes
from common.storage.atomic_files import write_atomically
from common.storage.checkpoints import Checkpoint
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import shown_points
from evaluator import service as service_module
from evaluator.output import score_files
from evaluator.output.log_file import LogFile
from evaluator.output.video import record_episode
from evaluator.scores.evaluation import Evaluation, evaluate
from evaluator.service import EvaluationFailed, EvaluationService
from tests.conftest import wait_until
from tests.evaluator.conftest import UP, SaveBlind

DEADLINE = 180
PROJECT = Path(__file__).parents[2]
Save = Callable[[Path, int], Path]


@pytest.fixture
def run(tmp_path: Path, config: Config) -> RunDirectory:
    run = RunDirectory(tmp_path / "run")
    run.create()
    run.write_config(config, {})
    return run


@pytest.fixture
def service(run: RunDirectory, config: Config) -> Iterator[EvaluationService]:
    running = EvaluationService(run, config)
    yield running
    running.close()


def fail_once(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """The disk is full at the first attempt to write one file."""
    failures = [OSError(errno.ENOSPC, "No space left on device", str(path))]

    def write(target: Path, data: bytes) -> None:
        if target == path and failures:
            raise failures.pop()
        write_atomically(target, data)

    monkeypatch.setattr(score_files, "write_atomically", write)


def run_beside(run: RunDirectory) -> RunDirectory:
    """Another run with the same settings."""
    other = RunDirectory(run.path.with_name("other"))
    other.path.mkdir(exist_ok=True)
    shutil.copy(run.config, other.config)
    return other


def notice(path: Path) -> CheckpointNotice:
    return CheckpointNotice(str(path), int(path.name), int(path.name) * 1000)


def stored(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.evaluations.read_text().splitlines()]


class Gate(threading.Event):
    """Scoring waits until it is set; notices that arrive before that wait in the mailbox."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()

    def evaluate(self, *args: Any, **options: Any) -> Evaluation:
        self.is_reached.set()
        assert self.wait(DEADLINE)
        return evaluate(*args, **options)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(service_module, "evaluate", gate.evaluate)
    yield gate
    gate.set()


def test_baseline_is_scored_first_then_the_newest_checkpoint(
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


def test_status_names_what_is_being_scored_or_waits_and_the_newest_known(
    service: EvaluationService, run: RunDirectory, save: Save, gate: threading.Event
) -> None:
    assert service.status(None) == EvaluatorStatus()
    service.notify(notice(save(run.checkpoints, 10)))
    wait_until(lambda: service._waiting is None)  # it is taken and held at the gate
    for version in (0, 20, 30):
        service.notify(notice(save(run.checkpoints, version)))
    assert service.status(None) == EvaluatorStatus(unfinished=frozenset({10, 0, 30}), newest_known=30)
    gate.set()
    row = service.finish(DEADLINE)
    assert service.status(row) == EvaluatorStatus(row, newest_known=30)


def test_slow_start_counts_each_skipped_version_once(
    run: RunDirectory, config: Config, save: Save, gate: threading.Event
) -> None:
    paths = [save(run.checkpoints, version) for version in (0, 10, 20, 30)]
    late = EvaluationService(run, config)
    for path in paths:
        late.notify(notice(path))
    gate.set()
    assert late.finish(DEADLINE) is not None
    late.close()
    assert [(row["policy_version"], row["skipped"]) for row in stored(run)] == [(0, 0), (30, 2)]


def test_waiting_baseline_is_not_replaced_by_newer_notices(
    service: EvaluationService, run: RunDirectory, save: Save, gate: Gate
) -> None:
    service.notify(notice(save(run.checkpoints, 10)))
    assert gate.is_reached.wait(DEADLINE)
    for version in (0, 20, 30):
        service.notify(notice(save(run.checkpoints, version)))
    gate.set()
    assert service.finish(DEADLINE) is not None
    assert [(row["policy_version"], row["skipped"]) for row in stored(run)] == [(10, 0), (0, 0), (30, 1)]


def test_finish_returns_none_at_its_deadline(
    service: EvaluationService, run: RunDirectory, save: Save, gate: threading.Event
) -> None:
    service.notify(notice(save(run.checkpoints, 10)))
    assert service.finish(0.1) is None
    gate.set()
    assert service.finish(DEADLINE) is not None


def test_scored_version_is_not_scored_again_after_a_restart(
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


def test_score_and_videos_use_the_seed_and_the_episodes_of_the_settings(
    run: RunDirectory, config: Config, save_blind: SaveBlind, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def record(checkpoint: Any, slots: Any, episodes_per_level: int, seed: int) -> Evaluation:
        seeds.append(seed)
        return evaluate(checkpoint, slots, episodes_per_level, seed)

    def record_video(policy: Any, game: Any, level: int, seed: int) -> Any:
        seeds.append(seed)
        return record_episode(policy, game, level, seed)

    monkeypatch.setattr(service_module, "evaluate", record)
    monkeypatch.setattr(service_module, "record_episode", record_video)
    service = EvaluationService(run, dataclasses.replace(config, eval_episodes_per_level=3))
    service.notify(notice(save_blind(run.checkpoints, 0, [UP])))
    row = service.finish(DEADLINE)
    service.close()
    assert row is not None and row["train"]["episodes"] == row["test"]["episodes"] == 3 * 2
    assert len(seeds) > 1 and set(seeds) == {config.seed}


def test_new_service_finds_the_unscored_baseline_and_newest_checkpoint(
    run: RunDirectory, config: Config, save: Save
) -> None:
    for version in (0, 10, 20):
        save(run.checkpoints, version)
    service = EvaluationService(run, config)
    assert service.finish(DEADLINE) is not None
    service.close()
    assert [row["policy_version"] for row in stored(run)] == [0, 20]


def test_backfill_scores_readable_skipped_checkpoints_oldest_first(
    run: RunDirectory, config: Config, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [save(run.checkpoints, version) for version in (0, 10, 15, 20, 30)]
    (paths[1] / "policy.safetensors").write_bytes(b"abc")
    service = EvaluationService(run, dataclasses.replace(config, backfill=True))
    row = service.finish(DEADLINE)
    service.close()
    assert row is not None and row["policy_version"] == 30
    assert [row["policy_version"] for row in stored(run)] == [0, 30, 15, 20]
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("checkpoint skipped: ") and "00000010" in warning


def test_tensorboard_shows_the_boards_that_a_backfill_corrected(
    service: EvaluationService, run: RunDirectory, save_blind: SaveBlind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alternate(checkpoint: Checkpoint, *args: Any) -> Evaluation:
        """Every second level is solved by every second version."""
        scored = evaluate(checkpoint, *args)
        rates = [float((checkpoint.policy_version // 10 + level.level) % 2) for level in scored.levels]
        levels = [dataclasses.replace(level, success_rate=r) for level, r in zip(scored.levels, rates, strict=True)]
        return dataclasses.replace(scored, levels=levels)

    monkeypatch.setattr(service_module, "evaluate", alternate)
    for version in (0, 30):
        service.notify(notice(save_blind(run.checkpoints, version, [UP])))
        assert service.finish(DEADLINE) is not None
    for version in (10, 20, 40):
        path = save_blind(run.checkpoints, version, [UP])
    (path / "policy.safetensors").write_bytes(b"abc")  # the last one to be scored
    service.backfill()
    assert service.finish(DEADLINE) is not None
    assert [row["policy_version"] for row in stored(run)] == [0, 30, 10, 20]
    shown = shown_points(run.tensorboard / "evaluator")
    assert len(shown) == 4
    for row in stored(run):
        for split, board in row["scoreboard"].items():
            assert (board["solved"], board["newly_solved"]) == (1, 1)
            assert board["forgotten"] == (1 if row["policy_version"] >= (20 if split == "validation" else 10) else 0)
            for name, count in board.items():
                assert shown[row["frames"]][f"scoreboard/{split}_{name}"] == [count]


@pytest.mark.processes
def test_killed_evaluator_writes_nothing_twice_or_partially(
    run: RunDirectory, config: Config, save: Save, popen: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """A separate process is killed as soon as it writes one of the files of a score, each time another one."""
    for version in (0, 10, 20):
        save(run.checkpoints, version)

    def sizes() -> list[int]:
        return [path.stat().st_size if path.exists() else 0 for path in (run.levels, run.evaluations)]

    def score() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "evaluator", "score", str(run.path), "--backfill"]
        return popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    for written in (0, 1):
        process, before = score(), sizes()
        while sizes()[written] == before[written]:
            assert process.poll() is None
            time.sleep(0.0005)
        process.kill()
        process.wait()
    assert score().wait(DEADLINE) == 0
    assert sorted(row["policy_version"] for row in stored(run)) == [0, 10, 20]
    lines = [line.split(",")[:3] for line in run.levels.read_text().splitlines()[1:]]
    assert len(lines) == len({tuple(line) for line in lines}) == 4 + 2 * 6


def test_damaged_and_deleted_checkpoints_are_skipped_and_logged(
    service: EvaluationService, run: RunDirectory, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, deleted, good = (save(run.checkpoints, version) for version in (10, 20, 30))
    data = bytearray((damaged / "policy.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "policy.safetensors").write_bytes(data)
    shutil.rmtree(deleted)
    for path, reason in ((damaged, "policy.safetensors is damaged"), (deleted, "manifest.json is missing")):
        service.notify(notice(path))
        assert service.finish(DEADLINE) is None
        assert service.last_error is not None and reason in service.last_error
    service.notify(notice(good))
    row = service.finish(DEADLINE)
    assert row is not None and (row["policy_version"], row["skipped"]) == (30, 2)
    assert service.last_error is None
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2 and all(message.startswith("checkpoint skipped: ") for message in warnings)


def test_error_while_scoring_is_raised_to_callers_and_logged(
    service: EvaluationService, run: RunDirectory, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    run.level_sets.write_text("no JSON")
    service.notify(notice(save(run.checkpoints, 10)))
    with pytest.raises(EvaluationFailed, match="scoring stopped: ConfigError"):
        service.finish(DEADLINE)
    with pytest.raises(EvaluationFailed):
        service.latest()
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.message == "scoring stopped" and record.exc_info is not None


def test_unwritable_run_directory_is_retried_until_it_works(
    service: EvaluationService,
    run: RunDirectory,
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "evaluator")
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.05)
    retries, reload = [], service._files.reload
    monkeypatch.setattr(service._files, "reload", lambda: (retries.append(time.monotonic()), reload()))
    run.levels.mkdir()  # a directory where the file should be
    service.notify(notice(save(run.checkpoints, 10)))
    wait_until(lambda: service.last_error is not None)
    assert "cannot write the scores of 00000010" in service.last_error
    wait_until(lambda: len(retries) >= 3)
    run.levels.rmdir()
    last = service.finish(DEADLINE)
    assert last is not None and last["policy_version"] == 10
    assert service.last_error is None and service.num_scored == 1
    messages = [record.message for record in caplog.records]
    assert [message.split(":")[0] for message in messages] == [
        "cannot write the scores of 00000010",  # logged once for all retries
        "scored policy_version 10 in " + messages[1].split(" in ")[1].split(":")[0],
        "the run directory can be written again",
    ]


@pytest.mark.parametrize("name", ["scores.png", "videos/00000020-worst-level2.gif"])
def test_write_error_after_the_row_delays_plots_and_videos_and_changes_no_count(
    name: str,
    service: EvaluationService,
    run: RunDirectory,
    save_blind: SaveBlind,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.05)
    fail_once(monkeypatch, run.path / name)
    for version in (0, 10, 20):
        service.notify(notice(save_blind(run.checkpoints, version, [UP])))
    wait_until(lambda: service._waiting_baseline is None)
    gate.set()
    assert service.finish(DEADLINE) is not None
    service.notify(notice(save_blind(run.checkpoints, 30, [UP])))
    assert service.finish(DEADLINE) is not None and service.last_error is None
    assert [(row["policy_version"], row["skipped"]) for row in stored(run)] == [(0, 0), (20, 1), (30, 0)]
    assert run.scores_plot.exists() and run.levels_plot.exists() and os.readlink(run.best) == "00000020"
    recorded = {path.name.split("-")[0] for path in run.videos.iterdir()}
    assert recorded == {"00000000", "00000020", "00000030"}
    for tags in shown_points(run.tensorboard / "evaluator").values():
        assert {len(points) for points in tags.values()} == {1}


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_run_directory_that_is_away_for_a_while_loses_and_repeats_no_score(
    is_mount_point: bool,
    service: EvaluationService,
    run: RunDirectory,
    save: Save,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.05)
    gate.set()
    for version in (0, 10):
        service.notify(notice(save(run.checkpoints, version)))
        assert service.finish(DEADLINE) is not None
    gate.clear()
    gate.is_reached.clear()
    paths = [save(run.checkpoints, version) for version in (20, 30)]
    service.notify(notice(paths[0]))
    assert gate.is_reached.wait(DEADLINE)
    away = run.path.rename(run.path.with_name("away"))
    if is_mount_point:
        run.path.mkdir()
    service.notify(notice(paths[1]))
    retries, reload = [], service._files.reload
    monkeypatch.setattr(service._files, "reload", lambda: (retries.append(time.monotonic()), reload()))
    gate.set()
    wait_until(lambda: len(retries) >= 3)
    assert service.last_error is not None and service.last_error.startswith("cannot write the scores of 00000020: ")
    assert service.status(None).unfinished == {20, 30}
    assert [path.name for path in away.parent.rglob("*.csv")] == ["levels.csv"]  # nothing was written elsewhere
    if is_mount_point:
        run.path.rmdir()
    away.rename(run.path)
    row = service.finish(DEADLINE)
    assert row is not None and row["policy_version"] == 30 and service.last_error is None
    assert [row["policy_version"] for row in service._files.rows] == [0, 10, 20, 30]
    assert [row["policy_version"] for row in stored(run)] == [0, 10, 20, 30]
    assert [row["scoreboard"]["train"]["newly_solved"] for row in stored(run)[1:]] == [0, 0, 0]  # the same weights
    levels = run.levels.read_text().splitlines()
    assert len(levels) == len(set(levels)) == 1 + 4 + 3 * 6 and not list(run.path.glob("*.abandoned"))


def test_checkpoint_that_is_away_with_its_run_is_scored_when_it_is_back(
    service: EvaluationService, run: RunDirectory, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.05)
    path = save(run.checkpoints, 10)
    away = run.path.rename(run.path.with_name("away"))
    service.notify(notice(path))
    wait_until(lambda: service.last_error is not None)
    away.rename(run.path)
    row = service.finish(DEADLINE)
    assert row is not None and (row["policy_version"], row["skipped"]) == (10, 0)


def test_service_does_not_start_in_an_empty_mount_point(config: Config, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        EvaluationService(RunDirectory(tmp_path), config)
    assert list(tmp_path.iterdir()) == []


def test_directory_of_checkpoints_that_cannot_be_read_does_not_end_the_service(
    service: EvaluationService, run: RunDirectory, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(directory: Path) -> list[Path]:
        raise OSError(errno.ESTALE, "Stale file handle", str(directory))

    with monkeypatch.context() as broken:
        broken.setattr(service_module, "list_checkpoints", stale)
        service.backfill()
        assert service.finish(DEADLINE) is None
        with pytest.raises(OSError, match="Stale"):
            EvaluationService(run_beside(run), service._config)
    save(run_beside(run).checkpoints, 10)
    again = EvaluationService(run_beside(run), service._config)  # the failed one has left no lock
    assert again.finish(DEADLINE) is not None
    again.close()
    save(run.checkpoints, 10)
    service.backfill()
    assert service.finish(DEADLINE) is not None


@pytest.mark.parametrize(("group_readable", "mode"), [(False, 0o600), (True, 0o640)])
def test_log_file_is_private_and_survives_what_cannot_be_written(
    tmp_path: Path, group_readable: bool, mode: int
) -> None:
    set_file_modes(group_readable)
    log = LogFile(tmp_path / "run" / "evaluator.log")
    log.handle(logging.makeLogRecord({"name": "evaluator.service", "levelname": "INFO", "msg": "too early"}))
    (tmp_path / "run").mkdir()
    log.handle(logging.makeLogRecord({"name": "evaluator.service", "levelname": "INFO", "msg": "scored"}))
    path = tmp_path / "run" / "evaluator.log"
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_text().endswith(" INFO evaluator.service: scored\n") and "too early" not in path.read_text()
    full_disk = LogFile(Path("/dev/full"))
    full_disk.handle(logging.makeLogRecord({"msg": "lost"}))
