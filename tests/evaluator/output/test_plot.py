from typing import Any

import imageio.v3 as iio
import numpy as np

from common.config import Config
from common.resolution import resolve
from evaluator.output.plot import levels_figure, png, scores_figure
from evaluator.output.scoreboard import LevelHistory
from evaluator.scores.statistics import LevelScore

EASY = resolve("easy", {})


def row(frames: int, width: float = 1.0) -> dict[str, Any]:
    def score(mean: float) -> dict[str, Any]:
        return {"mean": mean, "interval": [mean - width, mean + width], "levels": 200}

    return {
        "frames": frames,
        "train": score(9.0),
        "held_out": score(7.0),
        "held_out_split": "validation",
        "generalization_gap": 2.0,
        "generalization_gap_interval": [2 - width, 2 + width],
    }


def words(config: Config, frames: int = 3_000_000) -> str:
    axes = scores_figure([row(0), row(frames)], config).axes[0]
    return " | ".join(text.get_text() for text in axes.texts)


def test_lines_are_named_with_their_split() -> None:
    assert "training levels 9.00" in words(EASY) and "held-out levels (validation) 7.00" in words(EASY)


def test_published_score_is_drawn_only_for_matching_settings() -> None:
    assert "published PPO, 25M frames, train 9.5" in words(EASY)
    for given in ({"num_levels": 100}, {"distribution_mode": "hard"}, {"start_level": 5}):
        assert "published" not in words(resolve("easy", given))
    assert "published" not in words(resolve("lab", {}))
    assert "train 9.4" in words(resolve("easy", {"env_name": "maze"}))


def test_published_points_do_not_stretch_the_axis_of_a_short_run() -> None:
    axes = scores_figure([row(0), row(600_000)], EASY).axes[0]
    axes.figure.canvas.draw()
    assert axes.get_xlim()[1] < 700_000


def test_wider_interval_is_drawn_as_a_wider_band() -> None:
    def colored(width: float) -> int:
        figure = scores_figure([row(0, width), row(10, width)], EASY)
        picture = iio.imread(png(figure), extension=".png")[..., :3].astype(int)
        return int((picture.max(axis=2) - picture.min(axis=2) > 15).sum())

    assert colored(0.9) > 1.5 * colored(0.3)


def test_missing_interval_is_named_and_draws_no_band() -> None:
    rows = [row(0), row(10)]
    for each in rows:
        each["train"]["interval"] = each["generalization_gap_interval"] = None
        each["generalization_gap_no_interval"] = "training levels: one episode per level"
    figure = scores_figure(rows, EASY)
    assert png(figure).startswith(b"\x89PNG")
    scores, gap = figure.axes
    training, held_out = scores.collections[:2]
    assert len(training.get_paths()) == 0 and len(held_out.get_paths()) == 1
    assert "training levels 9.00 (no interval)" in [text.get_text() for text in scores.texts]
    assert gap.get_title(loc="left") == "no interval for the gap: training levels: one episode per level"


def history(levels: int, versions: int) -> LevelHistory:
    made = LevelHistory()
    for version in range(versions):
        for split in ("train", "validation"):
            made.add(version, [LevelScore(split, level, 1, float(level), 1.0, 0.0, 9.0) for level in range(levels)])
    return made


def test_levels_are_rows_with_the_easiest_on_top_and_gaps_empty() -> None:
    made = history(3, 2)
    made.add(2, [LevelScore("train", 0, 1, 9.0, 1.0, 0.0, 9.0)])
    train, validation = levels_figure(made, EASY).axes[:2]
    table = np.ma.filled(train.images[0].get_array(), np.nan)
    assert table.shape == (3, 3) and [label.get_text() for label in train.get_yticklabels()] == ["0", "2", "1"]
    assert np.array_equal(table, [[0, 0, 9], [2, 2, np.nan], [1, 1, np.nan]], equal_nan=True)
    assert validation.images[0].get_array().shape == (3, 2)
    assert train.images[0].get_clim() == validation.images[0].get_clim() == (0, 9)


def test_a_thousand_levels_and_a_single_level_are_drawn() -> None:
    for levels, versions in ((1000, 60), (1, 1)):
        assert max(iio.imread(png(levels_figure(history(levels, versions), EASY)), extension=".png").shape) < 2500
