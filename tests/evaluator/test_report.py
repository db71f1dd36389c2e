import csv
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from common.checkpoints import Checkpoint
from common.config import Config
from common.run_directory import RunDirectory
from evaluator.evaluation import Evaluation, evaluate
from evaluator.film import encode_gif
from evaluator.report import Report

VERSION = 5


@pytest.fixture(scope="module")
def evaluation(checkpoint: Checkpoint) -> Evaluation:
    return evaluate(checkpoint, [("train", 0), ("train", 1), ("held_out", 3)], 2, seed=0, film_level=3)


@pytest.fixture(scope="module")
def written(evaluation: Evaluation, config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run directory with two scored versions, 5 and 6."""
    run = RunDirectory(tmp_path_factory.mktemp("run"))
    report = Report(run, config)
    report.add(evaluation, skipped=0)
    report.add(later(evaluation, VERSION + 1), skipped=3)
    report.close()
    return run


def later(evaluation: Evaluation, version: int) -> Evaluation:
    checkpoint = dataclasses.replace(evaluation.checkpoint, policy_version=version, frames=version * 1000)
    return dataclasses.replace(evaluation, checkpoint=checkpoint)


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.evaluations.read_text().splitlines()]


def level_rows(run: RunDirectory) -> list[dict[str, str]]:
    with open(run.levels, newline="") as file:
        return list(csv.DictReader(file))


def test_evaluations_jsonl_has_one_object_per_version_with_the_contracts_fields(
    written: RunDirectory, checkpoint: Checkpoint
) -> None:
    first, second = rows(written)
    assert (first["policy_version"], first["frames"], first["skipped"]) == (5, 5000, 0)
    assert (second["policy_version"], second["frames"], second["skipped"]) == (6, 6000, 3)
    assert {"mean", "stderr", "normalized", "success_rate", "episodes", "levels"} <= set(first["train"])
    assert (first["train"]["levels"], first["train"]["episodes"]) == (2, 4)
    assert (first["held_out"]["levels"], first["held_out"]["stderr"]) == (1, None)
    assert first["generalization_gap"] == first["train"]["mean"] - first["held_out"]["mean"]
    assert first["seconds"] > 0
    policy = (checkpoint.path / "policy.safetensors").read_bytes()
    assert first["policy_sha256"] == hashlib.sha256(policy).hexdigest()


def test_levels_csv_has_one_header_and_one_row_per_version_and_level(written: RunDirectory) -> None:
    levels = level_rows(written)
    expected = [("train", "0"), ("train", "1"), ("held_out", "3")]
    assert [(row["policy_version"], row["split"], row["level"]) for row in levels] == [
        (version, *level) for version in ("5", "6") for level in expected
    ]
    assert {row["episodes"] for row in levels} == {"2"}
    assert written.levels.read_text().count("policy_version") == 1
    own = [float(row["mean_return"]) for row in levels[:2]]
    assert rows(written)[0]["train"]["mean"] == sum(own) / 2


def test_scores_png_is_a_picture_with_both_lines(written: RunDirectory) -> None:
    picture = imageio.imread(written.scores_plot)[..., :3].astype(int)
    assert picture.shape[1] > 1000
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(picture - color).sum(axis=2) < 10).sum() > 500


def test_the_gif_shows_the_filmed_level_as_the_policy_saw_it(written: RunDirectory, evaluation: Evaluation) -> None:
    assert evaluation.film is not None
    names = sorted(path.name for path in written.videos.iterdir())
    assert names == ["00000005-level3.gif", "00000006-level3.gif"]
    frames = imageio.mimread(written.videos / names[0])
    assert evaluation.film.episode.length == len(evaluation.film.frames)
    assert frames[0].shape[:2] == (256, 256)
    shown = frames[0][2::4, 2::4, :3].astype(int)
    assert np.abs(shown - evaluation.film.frames[0]).mean() < 8  # a palette of 256 colours


def test_a_long_episodes_gif_stays_small_in_frames() -> None:
    frames = [np.full((64, 64, 3), i % 256, np.uint8) for i in range(1000)]
    assert 200 <= len(imageio.mimread(encode_gif(frames), memtest=False)) <= 252


def test_tensorboard_gets_scalars_at_the_runs_frames(written: RunDirectory) -> None:
    (events,) = (written.tensorboard / "evaluator").iterdir()
    data = events.read_bytes()
    for tag in (b"evaluation/train_return", b"evaluation/held_out_success_rate", b"evaluation/generalization_gap"):
        assert data.count(tag) == 2


def test_a_version_is_never_written_twice(written: RunDirectory, evaluation: Evaluation, config: Config) -> None:
    before = written.evaluations.read_bytes(), written.levels.read_bytes()
    with pytest.raises(ValueError, match="5 is scored already"):
        Report(written, config).add(evaluation, skipped=0)
    assert (written.evaluations.read_bytes(), written.levels.read_bytes()) == before


def test_rows_of_levels_csv_without_an_evaluation_are_set_aside_at_the_next_start(
    evaluation: Evaluation, config: Config, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path)
    Report(run, config).add(evaluation, skipped=0)
    whole = run.levels.read_text()
    crashed = "6,train,0,2,0.0,0.0,0.0,90.0\n6,tra"
    run.levels.write_text(whole + crashed)
    report = Report(run, config)
    assert run.levels.read_text() == whole
    assert (tmp_path / "levels.csv.abandoned").read_text() == crashed + "\n"
    report.add(later(evaluation, 6), skipped=0)
    assert [row["policy_version"] for row in level_rows(run)] == ["5"] * 3 + ["6"] * 3
