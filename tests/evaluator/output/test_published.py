"""A run is compared with the published one on the same levels, at the same frames, like with like."""

import json
from importlib import resources
from typing import Any

import pytest

from common.games import GAMES
from common.resolution import resolve
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.output.published import compare_with_published, published_runs, training_return

EASY = resolve("easy", {})


def row(frames: int, train: float = 7.0, held_out: float = 6.0) -> dict[str, Any]:
    return {"frames": frames, "train": {"mean": train}, "held_out": {"mean": held_out}}


def compare(frames: int, training_episodes: float | None = 6.5) -> dict[str, Any]:
    comparison = compare_with_published(EASY, row(frames), training_episodes)
    assert comparison is not None
    return comparison


def test_training_episodes_and_levels_are_each_compared_with_their_kind() -> None:
    comparison = compare(1_000_000)
    # CoinRun easy at 1M: 7.96, 7.83, 7.22 on training levels, 7.71, 7.26, 6.99 on all levels.
    assert comparison["train"] == {"mean": pytest.approx(7.67), "runs": [7.96, 7.83, 7.22]}
    assert comparison["test"] == {"mean": pytest.approx(7.32), "runs": [7.71, 7.26, 6.99]}
    assert (comparison["training_episodes"], comparison["training_levels"], comparison["held_out_levels"]) == (
        6.5,
        7,
        6,
    )
    assert comparison["train_difference"] == pytest.approx(6.5 - 7.67)
    assert "test_difference" not in comparison  # theirs is of all levels, the held-out score without look-alikes
    assert comparison["differing_settings"] == {}
    json.dumps(comparison)


def test_without_training_episodes_nothing_else_takes_their_place() -> None:
    comparison = compare(1_000_000, None)
    assert (comparison["training_episodes"], comparison["train_difference"]) == (None, None)
    assert comparison["training_levels"] == 7


def test_scores_between_published_points_are_interpolated() -> None:
    # At 1M 7.96 and at 2M 8.57, so at 1.25M a quarter of the way.
    assert compare(1_250_000)["train"]["runs"][0] == pytest.approx(7.96 + 0.61 / 4)


@pytest.mark.parametrize("frames", [0, 249_999, 50_000_001])
def test_nothing_is_extrapolated(frames: int) -> None:
    assert compare_with_published(EASY, row(frames), 6.5) is None


@pytest.mark.parametrize("given", [{"num_levels": 100}, {"start_level": 5}, {"held_out": "next"}])
def test_runs_on_other_levels_are_not_compared(given: dict[str, Any]) -> None:
    assert compare_with_published(resolve("easy", given), row(1_000_000), 6.5) is None


def test_settings_that_differ_from_the_published_algorithm_are_named() -> None:
    config = resolve("lab", {"num_levels": 200, "held_out": "sample", "initialization": "glorot"})
    comparison = compare_with_published(config, row(1_000_000), 6.5)
    assert comparison is not None
    differing = comparison["differing_settings"]
    assert differing["vf_coef"] == [1.0, 0.25] and differing["reward_transform"] == ["sign", "running_return"]
    assert "initialization" not in differing and "num_levels" not in differing


def test_every_game_was_published_with_three_runs_in_both_modes() -> None:
    points = {"easy": 11, "hard": 8}
    for mode in points:
        for game in GAMES:
            runs = published_runs(resolve(mode, {"env_name": game}))
            assert runs is not None and sorted(runs.frames) == list(runs.frames)
            assert runs.train.shape == runs.test.shape == (points[mode], 3) == (len(runs.frames), 3)


def test_data_names_its_source() -> None:
    contents = json.loads(resources.files("evaluator.output").joinpath("published.json").read_bytes())
    assert "openai/train-procgen, commit 1a2ae21" in contents["source"]


def test_training_return_is_the_mean_of_the_ten_updates_up_to_that_version(tmp_path: Any) -> None:
    run = RunDirectory(tmp_path)
    assert training_return(run, 1) is None
    for version, value in ((1, None), (2, 5.5), (3, 6.5), *((version, 7.0) for version in range(4, 14))):
        append_jsonl(run.metrics, {"policy_version": version, "episode_return": value})
    assert [training_return(run, version) for version in (1, 2, 3, 14)] == [None, 5.5, 6.0, None]
    assert training_return(run, 12) == pytest.approx((6.5 + 9 * 7) / 10)
    assert training_return(run, 13) == 7.0
