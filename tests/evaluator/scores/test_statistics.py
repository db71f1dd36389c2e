import dataclasses
import math

import pytest

from common.games import Game
from common.resolution import resolve
from evaluator.levels.level_sets import Split
from evaluator.scores.statistics import (
    Episode,
    generalization_gap,
    level_scores,
    split_score,
    split_scores,
    whole_splits,
)


def episode(split: Split, level: int, number: int, episode_return: float, length: int = 10) -> Episode:
    return Episode(
        split=split,
        level=level,
        episode=number,
        episode_return=episode_return,
        length=length,
        completed=episode_return > 0,
        timed_out=length == 1000,
        level_seed=level,
    )


COINRUN = Game("coinrun", "easy")
# Level means 10, 5, 0 (training) and 0, 10 (held-out).
EPISODES = [
    episode("train", 0, 0, 10, 20),
    episode("train", 0, 1, 10, 40),
    episode("train", 1, 0, 10),
    episode("train", 1, 1, 0),
    episode("train", 2, 0, 0, 1000),
    episode("train", 2, 1, 0, 500),
    episode("validation", 7, 0, 0),
    episode("validation", 8, 0, 10),
]
TRAIN = EPISODES[:6]


def test_level_score_averages_its_episodes() -> None:
    levels = level_scores(EPISODES)
    assert [(level.split, level.level) for level in levels] == [
        ("train", 0),
        ("train", 1),
        ("train", 2),
        ("validation", 7),
        ("validation", 8),
    ]
    assert dataclasses.astuple(levels[0]) == ("train", 0, 2, 10.0, 1.0, 0.0, 30.0)
    assert dataclasses.astuple(levels[2]) == ("train", 2, 2, 0.0, 0.0, 0.5, 750.0)


def test_split_score_averages_levels_and_its_error_depends_on_what_it_is_about() -> None:
    train = split_scores(EPISODES, COINRUN, {"train"})["train"]
    assert train.mean == 5.0
    assert train.stderr == pytest.approx(math.sqrt(50 / (2 * 9)), abs=1e-12)  # only level 1 varies: variance 50
    sampled = split_scores(EPISODES, COINRUN, ())["train"]
    assert sampled.stderr == pytest.approx(5.0 / math.sqrt(3), abs=1e-12)  # deviations 5, 0, -5: variance 50 / 2
    assert (train.about, sampled.about) == ("these levels", "all levels")
    assert train.normalized == 0.0  # coinrun's range is 5 to 10
    assert train.success_rate == pytest.approx(0.5)
    assert train.timeout_rate == pytest.approx(1 / 6)
    assert (train.episodes, train.levels) == (6, 3)


def test_normalization_uses_the_range_of_the_distribution_mode() -> None:
    played = [episode("train", 0, 0, 8.0)]
    assert split_score(played, Game("maze", "easy"), False).normalized == pytest.approx(0.6)  # 5 to 10
    assert split_score(played, Game("maze", "hard"), False).normalized == pytest.approx(4 / 6)  # 4 to 10


def test_different_numbers_of_episodes_are_refused() -> None:
    uneven = [episode("train", 0, 0, 10.0)] + [episode("train", 1, i, 0.0) for i in range(9)]
    with pytest.raises(ValueError, match="same number of episodes"):
        split_score(uneven, COINRUN, False)


def test_a_score_without_interval_says_why() -> None:
    level = split_score(EPISODES[:2], COINRUN, False)
    assert (level.stderr, level.interval) == (None, None)
    assert level.no_interval == "one level; two are needed for an interval about all levels"
    once = split_score(TRAIN[::2], COINRUN, True)
    assert (once.stderr, once.interval) == (None, None)
    assert once.no_interval == "one episode per level; two are needed for an interval about these levels"


def test_interval_contains_the_mean_in_any_order_of_levels() -> None:
    for whole in (True, False):
        score = split_score(TRAIN, COINRUN, whole)
        assert score.interval is not None and 0 <= score.interval[0] < 5 < score.interval[1] <= 10
        assert split_score(TRAIN[::-1], COINRUN, whole).interval == score.interval


def test_training_levels_are_the_whole_population_unless_sampled() -> None:
    assert whole_splits(resolve("easy", {})) == {"train"}
    assert whole_splits(resolve("easy", {"num_levels": 1001})) == set()  # a sample of 1,000 is scored
    assert whole_splits(resolve("easy", {"num_levels": 0})) == set()  # every level is trained on


def test_split_without_levels_is_refused() -> None:
    with pytest.raises(ValueError, match="without levels"):
        split_score([], COINRUN, False)


def test_gap_is_training_minus_held_out_and_combines_both_intervals() -> None:
    lucky = [*EPISODES, episode("train", 3, 0, 10.0), episode("train", 3, 1, 10.0)]  # train 25 / 4, held-out 5
    scores = split_scores(lucky, COINRUN, {"train"})
    train, held_out = scores["train"], scores["validation"]
    gap = generalization_gap(train, held_out)
    assert gap.value == 1.25 and train.interval and held_out.interval and gap.interval
    below = math.hypot(train.mean - train.interval[0], held_out.interval[1] - held_out.mean)
    above = math.hypot(train.interval[1] - train.mean, held_out.mean - held_out.interval[0])
    assert gap.interval == pytest.approx((1.25 - below, 1.25 + above))


def test_gap_without_interval_names_the_part_that_has_none() -> None:
    once = split_scores([e for e in EPISODES if e.episode == 0], COINRUN, {"train"})
    gap = generalization_gap(once["train"], once["validation"])
    assert gap.interval is None
    assert gap.no_interval == f"training levels: {once['train'].no_interval}"
