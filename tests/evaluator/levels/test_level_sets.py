from collections.abc import Sequence
from typing import Any

import pytest

from common.config import Config, ConfigError
from common.games import MAX_LEVEL_SEED
from common.resolution import Machine, resolve
from evaluator.levels import level_sets
from evaluator.levels.level_sets import ALL_LEVELS, Finding, LevelSets, Split, draw_level_sets, live_splits


def sets(preset: str, **given: Any) -> LevelSets:
    return draw_level_sets(resolve(preset, given, Machine()))[0]


def test_lab_tests_on_the_notebook_levels_and_validates_on_the_next() -> None:
    assert sets("lab") == LevelSets(train=tuple(range(20)), validation=tuple(range(40, 60)), test=tuple(range(20, 40)))


def test_next_levels_follow_the_training_levels() -> None:
    moved = sets("lab", start_level=100, num_levels=3, held_out_levels=2)
    assert moved == LevelSets(train=(100, 101, 102), validation=(105, 106), test=(103, 104))


def test_easy_scores_fixed_samples_of_the_full_range() -> None:
    easy = sets("easy")
    assert easy.train == tuple(range(200))
    assert easy.validation[:3] == (1443321519, 972243685, 122776971)
    assert len(set(easy.validation)) == len(set(easy.test)) == 200
    assert max(easy.validation + easy.test) < MAX_LEVEL_SEED
    assert not set(easy.validation) & set(easy.test)


def test_samples_do_not_depend_on_seed_or_number_of_training_levels() -> None:
    for split in ("validation", "test"):
        assert sets("easy").of(split) == sets("easy", seed=9).of(split) == sets("hard").of(split)


def test_all_levels_are_one_sample_of_everything_for_every_run() -> None:
    every = sets("lab").of("all")
    assert every == sets("hard", seed=9, env_name="maze", start_level=5).of("all")
    assert len(set(every)) == ALL_LEVELS and min(every) >= 0 and max(every) < MAX_LEVEL_SEED
    assert 0.45 < sum(level < MAX_LEVEL_SEED / 2 for level in every) / ALL_LEVELS < 0.55
    assert sets("lab").slots(["all", "train"]) == [
        *(("train", level) for level in range(20)),
        *(("all", level) for level in every),
    ]


def test_larger_sample_begins_with_the_smaller_one() -> None:
    for split in ("validation", "test"):
        assert sets("easy", held_out_levels=300).of(split)[:200] == sets("easy").of(split)


def test_sampled_levels_are_never_training_levels() -> None:
    drawn = sets("easy").validation[1]
    moved = sets("easy", start_level=drawn - 5, num_levels=10)
    assert not set(moved.train) & set(moved.validation + moved.test)
    assert len(moved.validation) == 200


def test_training_on_all_levels_is_scored_on_a_disjoint_sample() -> None:
    every = sets("easy", num_levels=0)
    assert len(every.train) == len(every.validation) == len(every.test) == 200
    assert len(set(every.train + every.validation + every.test)) == 600


def test_level_sets_are_disjoint_even_if_their_samples_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(level_sets, "_SAMPLES", dict.fromkeys(level_sets._SAMPLES, 1))  # real ones hardly ever meet
    every = sets("easy", num_levels=0, held_out_levels=20)
    assert len(every.train) == len(every.validation) == len(every.test) == 20
    assert len(set(every.train + every.validation + every.test)) == 60


def test_next_levels_are_kept_and_flagged() -> None:
    def check(split: Split, levels: Sequence[int]) -> list[Finding | None]:
        return [Finding(split, level, "ends_at_once") if level in (21, 40, 60) else None for level in levels]

    lab, findings = draw_level_sets(resolve("lab", {}, Machine()), check)
    assert lab == sets("lab")
    assert [(finding.split, finding.level) for finding in findings] == [("test", 21), ("validation", 40)]


def test_unfit_level_of_a_sample_is_replaced_by_the_next_of_its_sequence() -> None:
    easy = draw_level_sets(resolve("easy", {}, Machine()))[0].validation

    def check_second(split: Split, levels: Sequence[int]) -> list[Finding | None]:
        return [Finding(split, level, "ends_at_once") if level == easy[1] else None for level in levels]

    assert draw_level_sets(resolve("easy", {}, Machine()), check_second)[0].validation == (
        easy[0],
        *easy[2:],
        sets("easy", held_out_levels=201).validation[200],
    )


def test_slots_list_the_requested_splits_with_training_levels_first() -> None:
    small = LevelSets((4, 5), (9,), (7,))
    assert small.slots(["train", "validation"]) == [("train", 4), ("train", 5), ("validation", 9)]
    assert small.slots(["test", "train"]) == [("train", 4), ("train", 5), ("test", 7)]


def test_test_levels_are_live_only_with_live_split_test() -> None:
    easy, lab = (resolve(preset, {}, Machine()) for preset in ("easy", "lab"))
    assert live_splits(easy, 0) == live_splits(easy, 10) == ("train", "validation")
    assert live_splits(lab, 10) == ("train", "validation", "test")
    assert live_splits(lab, 0) == ("train", "test")  # version 0 is never the best, so it needs no validation


def test_next_levels_beyond_the_last_level_are_refused() -> None:
    last = {"start_level": MAX_LEVEL_SEED - 7, "num_levels": 3}
    assert sets("lab", **last, held_out_levels=2).validation[-1] == MAX_LEVEL_SEED - 1
    with pytest.raises(ConfigError, match=r"--held-out: 2 x 3 levels .* 2147483646"):
        sets("lab", **last, held_out_levels=3)


def test_training_range_that_leaves_too_few_levels_is_refused() -> None:
    nearly_all: Config = resolve("easy", {"num_levels": MAX_LEVEL_SEED - 1, "held_out_levels": 2}, Machine())
    with pytest.raises(ConfigError, match="--held-out-levels 2 is too many"):
        draw_level_sets(nearly_all)


def test_large_training_range_is_scored_on_a_sample_of_a_thousand() -> None:
    assert sets("easy", num_levels=1000).train == tuple(range(1000))
    many = sets("easy", start_level=7, num_levels=2_000_000_000)
    assert len(many.train) == len(set(many.train)) == 1000
    assert all(7 <= level < 2_000_000_007 for level in many.train)
    assert many == sets("easy", start_level=7, num_levels=2_000_000_000, seed=3)
