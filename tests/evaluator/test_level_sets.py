from typing import Any

import pytest

from common.config import Config, ConfigError, resolve
from common.games import MAX_LEVEL_SEED
from evaluator.level_sets import LevelSets, level_sets


def sets(preset: str, **given: Any) -> LevelSets:
    return level_sets(resolve(preset, given, available_cores=1))


def test_lab_scores_the_notebooks_levels() -> None:
    assert sets("lab") == LevelSets(train=tuple(range(20)), held_out=tuple(range(20, 40)))


def test_next_levels_follow_wherever_training_levels_start() -> None:
    assert sets("lab", start_level=100, num_levels=3, held_out_levels=2) == LevelSets((100, 101, 102), (103, 104))


def test_easy_scores_a_fixed_sample_of_the_full_range() -> None:
    easy = sets("easy")
    assert easy.train == tuple(range(200))
    assert easy.held_out[:3] == (1443321519, 972243685, 122776971)
    assert len(set(easy.held_out)) == 200
    assert max(easy.held_out) < MAX_LEVEL_SEED


def test_the_sample_does_not_depend_on_seed_or_number_of_training_levels() -> None:
    assert sets("easy").held_out == sets("easy", seed=9).held_out == sets("hard").held_out


def test_a_larger_sample_begins_with_the_smaller_one() -> None:
    assert sets("easy", held_out_levels=300).held_out[:200] == sets("easy").held_out


def test_sampled_levels_are_never_training_levels() -> None:
    drawn = sets("easy").held_out[1]
    moved = sets("easy", start_level=drawn - 5, num_levels=10)
    assert not set(moved.train) & set(moved.held_out)
    assert len(moved.held_out) == 200


def test_training_on_all_levels_is_represented_by_a_disjoint_sample() -> None:
    every = sets("easy", num_levels=0)
    assert len(every.train) == len(every.held_out) == 200
    assert not set(every.train) & set(every.held_out)


def test_slots_list_training_levels_first_and_only_the_splits_asked_for() -> None:
    small = LevelSets((4, 5), (9,))
    assert small.slots() == [("train", 4), ("train", 5), ("held_out", 9)]
    assert small.slots(["held_out"]) == [("held_out", 9)]


def test_next_levels_beyond_procgens_last_are_refused() -> None:
    last = {"start_level": MAX_LEVEL_SEED - 5, "num_levels": 3}
    assert sets("lab", **last, held_out_levels=2).held_out[-1] == MAX_LEVEL_SEED - 1
    with pytest.raises(ConfigError, match=r"--held-out next: 3 levels .* 2147483646"):
        sets("lab", **last, held_out_levels=3)


def test_a_training_range_that_leaves_no_others_is_refused() -> None:
    nearly_all: Config = resolve("easy", {"num_levels": MAX_LEVEL_SEED - 1, "held_out_levels": 2}, available_cores=1)
    with pytest.raises(ConfigError, match="--held-out-levels 2 are too many"):
        level_sets(nearly_all)


def test_of_very_many_training_levels_a_fixed_sample_of_a_thousand_is_scored() -> None:
    assert sets("easy", num_levels=1000).train == tuple(range(1000))
    many = sets("easy", start_level=7, num_levels=2_000_000_000)
    assert len(many.train) == len(set(many.train)) == 1000
    assert all(7 <= level < 2_000_000_007 for level in many.train)
    assert many == sets("easy", start_level=7, num_levels=2_000_000_000, seed=3)
