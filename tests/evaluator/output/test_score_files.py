import csv
import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from common.config import Config
from common.resolution import resolve
from common.storage.checkpoints import Checkpoint
from common.storage.jsonl import append_jsonl, read_jsonl, set_aside_rows
from common.storage.run_directory import RunDirectory
from common.storage.tensorboard import EventFile, shown_points
from common.storage.videos import video_name
from evaluator.commands.watch_view import evaluation_line
from evaluator.levels.level_sets import Split
from evaluator.output import score_files
from evaluator.output.html_report import render_report
from evaluator.output.score_files import RunIsBeingScored, ScoreFiles
from evaluator.output.video import record_episode
from evaluator.scores.evaluation import Evaluation, evaluate
from evaluator.scores.play import load_policy

VERSION = 5
CIRCUMSTANCES: Any = {"skipped": 0, "eval_seconds": 1.0, "updates_behind": 0}
SLOTS: list[tuple[Split, int]] = [("train", 0), ("train", 1), ("validation", 5), ("test", 3)]


@pytest.fixture(scope="module")
def evaluation(checkpoint: Checkpoint) -> Evaluation:
    return evaluate(checkpoint, SLOTS, 2, seed=0)


@pytest.fixture(scope="module")
def written(evaluation: Evaluation, config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory with two scored versions, 5 and 6."""
    run = new_run(tmp_path_factory.mktemp("run"), config)
    files = ScoreFiles(run, config)
    score(files, evaluation, **CIRCUMSTANCES)
    score(files, later(evaluation, VERSION + 1), skipped=3, eval_seconds=1.5, updates_behind=2)
    files.close()
    return run


def new_run(path: Path, config: Config) -> RunDirectory:
    run = RunDirectory(path)
    run.write_config(config, {})
    return run


def score(files: ScoreFiles, evaluation: Evaluation, **circumstances: Any) -> None:
    files.add(evaluation, **circumstances)
    files.draw(evaluation.checkpoint.policy_version)


def later(evaluation: Evaluation, version: int) -> Evaluation:
    checkpoint = dataclasses.replace(evaluation.checkpoint, policy_version=version, frames=version * 1000)
    return dataclasses.replace(evaluation, checkpoint=checkpoint)


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.evaluations.read_text().splitlines()]


def level_rows(run: RunDirectory) -> list[dict[str, str]]:
    with open(run.levels, newline="") as file:
        return list(csv.DictReader(file))


def test_row_compares_a_run_on_published_levels_with_the_learners_training_episodes(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    published = resolve("easy", {})
    run = new_run(tmp_path, published)
    append_jsonl(run.metrics, {"policy_version": 61, "episode_return": 6.25})
    files = ScoreFiles(run, published)
    scored = later(evaluation, 61)
    scored = dataclasses.replace(scored, checkpoint=dataclasses.replace(scored.checkpoint, frames=1_000_000))
    score(files, scored, **CIRCUMSTANCES)
    files.close()
    (row,) = rows(run)
    assert row["published"]["training_episodes"] == 6.25
    assert row["published"]["training_levels"] == row["train"]["mean"]
    assert row["published"]["held_out_levels"] == row["validation"]["mean"]
    assert row["published"]["train"]["runs"] == [7.96, 7.83, 7.22]


def test_evaluations_jsonl_has_one_object_per_version_with_all_fields(
    written: RunDirectory, checkpoint: Checkpoint
) -> None:
    first, second = rows(written)
    assert (first["policy_version"], first["frames"], first["skipped"]) == (5, 5000, 0)
    assert (second["policy_version"], second["frames"], second["skipped"]) == (6, 6000, 3)
    assert first["published"] is None  # nobody published this run's levels
    assert {"mean", "stderr", "normalized", "success_rate", "episodes", "levels"} <= set(first["train"])
    assert (first["train"]["levels"], first["train"]["episodes"]) == (2, 4)
    assert (first["held_out"]["levels"], first["held_out"]["stderr"], first["held_out"]["interval"]) == (1, None, None)
    assert first["held_out"] == first["test"] and first["held_out_split"] == "test"  # lab's live split
    assert first["held_out"]["no_interval"] == "one level; two are needed for an interval about all levels"
    assert first["generalization_gap_interval"] is None
    assert first["generalization_gap_no_interval"] == f"held-out levels: {first['held_out']['no_interval']}"
    assert (first["train"]["about"], first["held_out"]["about"]) == ("these levels", "all levels")
    assert first["validation"]["levels"] == 1
    assert first["generalization_gap"] == first["train"]["mean"] - first["held_out"]["mean"]
    low, high = first["train"]["interval"]
    assert low <= first["train"]["mean"] <= high and low < high and first["train"]["no_interval"] is None
    assert (second["eval_seconds"], second["updates_behind"]) == (1.5, 2)
    assert first["scoreboard"]["train"]["forgotten"] == 0
    assert sum(first["scoreboard"]["train"][name] for name in ("solved", "never_solved")) == 2
    assert first["seconds"] > 0
    policy = (checkpoint.path / "policy.safetensors").read_bytes()
    assert first["policy_sha256"] == hashlib.sha256(policy).hexdigest()


def test_levels_csv_has_one_header_and_one_row_per_version_and_level(written: RunDirectory) -> None:
    levels = level_rows(written)
    expected = [(split, str(level)) for split, level in SLOTS]
    assert [(row["policy_version"], row["split"], row["level"]) for row in levels] == [
        (version, *level) for version in ("5", "6") for level in expected
    ]
    assert {row["episodes"] for row in levels} == {"2"}
    assert written.levels.read_text().count("policy_version") == 1
    own = [float(row["mean_return"]) for row in levels[:2]]
    assert rows(written)[0]["train"]["mean"] == sum(own) / 2


def test_scores_png_shows_both_lines(written: RunDirectory) -> None:
    picture = imageio.imread(written.scores_plot)[..., :3].astype(int)
    assert picture.shape[1] > 1000
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(picture - color).sum(axis=2) < 10).sum() > 500


def test_levels_png_is_an_image(written: RunDirectory) -> None:
    assert min(imageio.imread(written.levels_plot).shape[:2]) > 300


def test_videos_are_named_by_version_kind_and_level(checkpoint: Checkpoint, config: Config, tmp_path: Path) -> None:
    files = ScoreFiles(new_run(tmp_path, config), config)
    video = record_episode(load_policy(checkpoint), config.game, 3, seed=0)
    files.add_video(VERSION, "worst", video)
    files.close()
    (path,) = (tmp_path / "videos").iterdir()
    assert path.name == "00000005-worst-level3.gif"
    assert len(imageio.mimread(path)) > 5


def test_levels_to_record_are_of_the_live_split(written: RunDirectory, config: Config) -> None:
    files = ScoreFiles(written, config)
    assert files.levels_to_record(VERSION) == {"worst": 3}  # the only one; each level is recorded once
    files.close()


def test_best_links_to_the_best_existing_checkpoint_on_validation(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    files = ScoreFiles(run, config)
    assert not run.best.is_symlink()
    for version, (validation, test) in {10: (2.0, 9.0), 20: (5.0, 1.0), 30: (5.0, 9.0), 40: (3.0, 9.0)}.items():
        (run.checkpoints / f"{version:08d}").mkdir(parents=True)
        means = {"train": 9.0, "validation": validation, "test": test}
        scored = later(evaluation, version)
        splits = {split: dataclasses.replace(score, mean=means[split]) for split, score in scored.splits.items()}
        path = run.checkpoints / f"{version:08d}"
        renamed = dataclasses.replace(scored.checkpoint, path=path)
        score(files, dataclasses.replace(scored, splits=splits, checkpoint=renamed), **CIRCUMSTANCES)
    assert os.readlink(run.best) == "00000020"
    files.close()
    (run.checkpoints / "00000020").rmdir()
    ScoreFiles(run, config).close()
    assert os.readlink(run.best) == "00000030"


def test_only_one_evaluator_writes_a_run(config: Config, tmp_path: Path) -> None:
    first = ScoreFiles(new_run(tmp_path, config), config)
    with pytest.raises(RunIsBeingScored, match="another evaluator is scoring"):
        ScoreFiles(new_run(tmp_path, config), config)
    first.close()
    ScoreFiles(new_run(tmp_path, config), config).close()


def test_tensorboard_has_every_scalar_once_per_version(written: RunDirectory) -> None:
    (events,) = (written.tensorboard / "evaluator").iterdir()
    data = events.read_bytes()
    for tag in (
        b"evaluation/train_return",
        b"evaluation/validation_success_rate",
        b"scoreboard/test_forgotten",
        b"evaluation/levels",
        b"evaluation/generalization_gap",
    ):
        assert data.count(tag) == 2, tag


def test_version_is_never_written_twice(written: RunDirectory, evaluation: Evaluation, config: Config) -> None:
    before = written.evaluations.read_bytes(), written.levels.read_bytes()
    files = ScoreFiles(written, config)
    with pytest.raises(ValueError, match="5 is already scored"):
        files.add(evaluation, **CIRCUMSTANCES)
    files.close()
    assert (written.evaluations.read_bytes(), written.levels.read_bytes()) == before


def test_levels_without_an_evaluation_are_set_aside_at_the_next_start(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    crashing = ScoreFiles(run, config)
    score(crashing, evaluation, **CIRCUMSTANCES)
    crashing.close()
    whole = run.levels.read_text()
    crashed = "6,train,0,2,0.0,0.0,0.0,90.0\n6,tra"
    run.levels.write_text(whole + crashed)
    files = ScoreFiles(run, config)
    assert run.levels.read_text() == whole
    assert (tmp_path / "levels.csv.abandoned").read_text() == crashed + "\n"
    score(files, later(evaluation, 6), **CIRCUMSTANCES)
    assert [row["policy_version"] for row in level_rows(run)] == ["5"] * 4 + ["6"] * 4


def test_levels_are_set_aside_once_while_the_disk_is_full(
    evaluation: Evaluation, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(tmp_path, config)
    files = ScoreFiles(run, config)
    score(files, evaluation, **CIRCUMSTANCES)
    whole = run.levels.read_text()
    run.levels.write_text(whole + "6,train,0,2,0.0,0.0,0.0,90.0\n")

    def write(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as full:
        full.setattr(score_files, "write_atomically", write)
        for _ in range(3):
            with pytest.raises(OSError, match="No space"):
                files.reload()
    files.reload()
    files.close()
    assert run.levels.read_text() == whole
    assert (tmp_path / "levels.csv.abandoned").read_text() == "6,train,0,2,0.0,0.0,0.0,90.0\n"


def test_rows_of_older_versions_without_all_fields_are_shown(written: RunDirectory, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(written.path, run.path)
    shutil.rmtree(run.tensorboard)
    older = [{name: value for name, value in row.items() if name != "eval_seconds"} for row in rows(run)]
    run.evaluations.write_text("".join(json.dumps(row) + "\n" for row in older))
    ScoreFiles(run, run.read_config()).close()
    assert shown_steps(run) == {5000: {1}, 6000: {1}}


def test_versions_are_scored_whatever_the_order_in_which_they_were_added(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    files = ScoreFiles(new_run(tmp_path, config), config)
    for version in (8, 2, 6):  # as --backfill does
        assert not files.is_scored(version)
        score(files, later(evaluation, version), **CIRCUMSTANCES)
    assert [version for version in range(10) if files.is_scored(version)] == [2, 6, 8]
    files.close()


SOLVED = {0: {0, 5}, 2: {1, 3}, 4: {0, 1}, 6: set(), 8: {0, 1, 5}}  # levels by version


def solving(evaluation: Evaluation, version: int) -> Evaluation:
    levels = [
        dataclasses.replace(each, success_rate=float(each.level in SOLVED[version])) for each in evaluation.levels
    ]
    return dataclasses.replace(later(evaluation, version), levels=levels)


def boards_of_levels_csv(run: RunDirectory) -> dict[int, Any]:
    """By version and split, level by level from the oldest version to the newest."""
    boards: dict[int, Any] = {}
    for split in dict.fromkeys(split for split, _ in SLOTS):
        last: dict[str, bool] = {}
        ever: set[str] = set()
        for version in SOLVED:
            counts = dict.fromkeys(("solved", "newly_solved", "forgotten", "never_solved"), 0)
            for row in level_rows(run):
                if (int(row["policy_version"]), row["split"]) != (version, split):
                    continue
                level, is_solved = row["level"], float(row["success_rate"]) >= 0.5
                was_solved, last[level] = last.get(level, False), is_solved
                if is_solved:
                    ever.add(level)
                counts["solved"] += is_solved
                counts["newly_solved"] += is_solved and not was_solved
                counts["forgotten"] += was_solved and not is_solved
                counts["never_solved"] += level not in ever
            boards.setdefault(version, {})[split] = counts
    return boards


def scored_in_order(run: RunDirectory, config: Config, evaluation: Evaluation, versions: Iterable[int]) -> ScoreFiles:
    """Scores the versions in this order; the files are open."""
    files = ScoreFiles(run, config)
    for version in versions:
        files.add(solving(evaluation, version), **CIRCUMSTANCES)
    return files


def shown_boards(run: RunDirectory) -> dict[int, Any]:
    boards: dict[int, Any] = {}
    for step, tags in shown_points(run.tensorboard / "evaluator").items():
        for tag, points in tags.items():
            if tag.startswith("scoreboard/"):
                split, name = tag.removeprefix("scoreboard/").split("_", 1)
                (boards.setdefault(step // 1000, {}).setdefault(split, {})[name],) = points
    return boards


@pytest.mark.parametrize("order", [(0, 2, 4, 6, 8), (0, 8, 6, 4, 2), (0, 8, 2, 4, 6), (8, 4, 0, 6, 2)])
def test_boards_are_those_of_the_order_of_versions_whatever_was_scored_first(
    order: tuple[int, ...], evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    files = scored_in_order(run, config, evaluation, order)
    files.show_corrections()
    expected = boards_of_levels_csv(run)
    assert {row["policy_version"]: row["scoreboard"] for row in files.rows} == expected
    files.close()
    assert {row["policy_version"]: row["scoreboard"] for row in rows(run)} == expected
    assert shown_boards(run) == expected
    table = re.sub("<[^>]+>|\\s+", " ", render_report(run)).split("All evaluations")[1]
    for row in run.read_evaluations():
        board = expected[row["policy_version"]]["test"]
        solved, newly_solved, forgotten = (board[name] for name in ("solved", "newly_solved", "forgotten"))
        assert f"solved {solved} of 1 ({newly_solved} newly, {forgotten} forgotten)" in evaluation_line(row, False)
        gap, seconds = f"{row['generalization_gap']:.2f}", f"{row['seconds']:.0f}"
        cells = (gap, solved, newly_solved, forgotten, seconds)
        assert re.search(rf" {row['frames']:,} .* {' +'.join(map(re.escape, map(str, cells)))} ", table)


def test_boards_that_a_crash_left_uncorrected_are_corrected_at_the_next_start(
    evaluation: Evaluation, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, change: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    run = new_run(tmp_path, config)
    files = scored_in_order(run, config, evaluation, (0, 8, 6, 4))
    with monkeypatch.context() as full:
        full.setattr(score_files, "change_rows", fail)
        with pytest.raises(OSError, match="No space"):
            files.add(solving(evaluation, 2), **CIRCUMSTANCES)
    files.close()
    expected = boards_of_levels_csv(run)
    assert {row["policy_version"]: row["scoreboard"] for row in rows(run)} != expected
    ScoreFiles(run, config).close()
    assert {row["policy_version"]: row["scoreboard"] for row in rows(run)} == expected == shown_boards(run)


def test_boards_are_corrected_when_rows_of_other_weights_are_set_aside(
    evaluation: Evaluation, config: Config, save: Callable[[Path, int], Path], tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    scored_in_order(run, config, evaluation, SOLVED).close()
    save(run.checkpoints, 4)
    run.evaluations.write_text("".join(json.dumps(row | {"policy_sha256": "ab"}) + "\n" for row in rows(run)))
    ScoreFiles(run, config).close()
    expected = boards_of_levels_csv(run)
    assert 4 not in {row["policy_version"] for row in rows(run)}
    assert all(row["scoreboard"] == expected[row["policy_version"]] for row in rows(run))


def test_boards_stay_as_stored_where_levels_csv_lacks_levels(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    scored_in_order(run, config, evaluation, SOLVED).close()
    before = run.evaluations.read_bytes()
    run.levels.write_text("".join(line for line in run.levels.open() if not line.startswith("2,")))
    ScoreFiles(run, config).close()
    assert run.evaluations.read_bytes() == before


def shown_steps(run: RunDirectory) -> dict[int, set[int]]:
    """For each step that TensorBoard shows: how often its scalars are shown (pictures may be missing)."""
    shown = shown_points(run.tensorboard / "evaluator")
    return {step: {len(points) for tag, points in tags.items() if "/train" in tag} for step, tags in shown.items()}


def test_tensorboard_shows_every_step_once_after_a_resume_backfill_and_restart(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    files = ScoreFiles(run, config)
    for version in (2, 6, 8):
        score(files, later(evaluation, version), **CIRCUMSTANCES)
    files.close()
    set_aside_rows(run.evaluations, lambda row: row["policy_version"] <= 6)  # resumed at version 6
    files = ScoreFiles(run, config)
    score(files, later(evaluation, 8), **CIRCUMSTANCES)
    score(files, later(evaluation, 4), **CIRCUMSTANCES)  # as --backfill does
    files.close()
    ScoreFiles(run, config).close()
    assert shown_steps(run) == {2000: {1}, 4000: {1}, 6000: {1}, 8000: {1}}


def test_tensorboard_gets_what_a_crash_or_a_full_disk_kept_from_it(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = new_run(tmp_path, config)
    files = ScoreFiles(run, config)
    score(files, later(evaluation, 2), **CIRCUMSTANCES)
    row = rows(run)[0]
    files.close()
    append_jsonl(run.evaluations, {**row, "policy_version": 4, "frames": 4000})  # crashed before TensorBoard
    file = EventFile(run.tensorboard / "evaluator")
    file.add_scalars({"evaluation/train_return": 1.0}, 6000)  # crashed in between
    file.close()
    append_jsonl(run.evaluations, {**row, "policy_version": 6, "frames": 6000})
    ScoreFiles(run, config).close()
    assert shown_steps(run) == {2000: {1}, 4000: {1}, 6000: {1}}


def test_best_is_a_text_file_without_symbolic_links(
    evaluation: Evaluation, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def symlink(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", symlink)
    run = new_run(tmp_path, config)
    files = ScoreFiles(run, config)
    for version in (2, 4):
        path = run.checkpoints / f"{version:08d}"
        path.mkdir(parents=True)
        scored = later(evaluation, version)
        checkpoint = dataclasses.replace(scored.checkpoint, path=path)
        score(files, dataclasses.replace(scored, checkpoint=checkpoint), **CIRCUMSTANCES)
    files.close()
    assert run.best_checkpoint() == "00000002" and not run.best.is_symlink()


def test_row_of_another_run_is_named_set_aside_and_its_version_scored_again(
    written: RunDirectory,
    config: Config,
    save: Callable[[Path, int], Path],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(written.path, run.path)
    path = save(run.checkpoints, 6)
    foreign = rows(run)[1] | {"policy_sha256": "ab"}
    run.videos.mkdir()
    for version in (5, 6, 7):  # 7: its row was set aside by a resume
        (run.videos / video_name(version, "worst", 3)).touch()
    run.evaluations.write_text(json.dumps(rows(run)[0]) + "\n" + json.dumps(foreign) + "\n" + '{"frames": "many"}\n')
    files = ScoreFiles(run, config)
    assert [row["policy_version"] for row in files.rows] == [5] and path.is_dir()
    files.close()
    assert "rows with policy_version 6 do not match the weights of their checkpoints; they are set aside" in caplog.text
    assert read_jsonl(run.evaluations.with_name("evaluations.jsonl.abandoned")) == [foreign]
    assert sorted(path.name for path in run.videos.iterdir()) == [
        "00000005-worst-level3.gif",
        "00000006-worst-level3.gif.aside-1",
        "00000007-worst-level3.gif.aside-1",
    ]
