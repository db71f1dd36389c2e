"""Which scores are compared, at which frames; what is left out, and what is refused."""

import shutil

import pytest

from common.cli import UsageError
from common.storage.jsonl import append_jsonl
from tests.evaluator.studies.conftest import summary_of

# The note for numbers without an interval although there are several seeds.
NO_WIDTH = "no interval where the seeds agree so closely that all resamples are equal: more seeds are needed"


def test_scores_are_those_at_or_before_the_frames_asked_for(study):
    summary = summary_of(study, at=2 * 16_384 + 5)
    assert summary["variants"]["gamma=0.9"]["games"]["maze"]["seeds"]["0"] == 7.0
    assert summary["variants"]["gamma=0.9"]["games"]["maze"]["frames"] == [2 * 16_384] * 2


def test_frames_beyond_what_was_trained_are_refused(study):
    with pytest.raises(UsageError, match=r"--at: no run has trained 1,000,000 frames; the most is 49,152"):
        summary_of(study, at=1_000_000)


def test_unfinished_runs_are_left_out_and_named(study, make_run):
    run = make_run("coinrun", 3, [5, 6], updates=3, gamma=0.9)
    summary = summary_of(study)
    assert summary["at"] == 3 * 16_384
    assert summary["notes"] == [f"{run.path} is left out: trained 16,384 frames", NO_WIDTH]
    assert not any("left out" in note for note in summary_of(study, at=16_384)["notes"])


def test_without_finished_runs_all_are_compared_at_what_all_have(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], updates=9)
    make_run("coinrun", 1, [5, 6, 7], updates=9)
    assert summary_of(tmp_path / "study")["at"] == 16_384


def test_run_that_has_trained_nothing_is_left_out_and_named(make_run, tmp_path):
    for seed in range(2):
        make_run("coinrun", seed, [5, 6, 7], updates=9)
    young = make_run("coinrun", 2, [5], updates=9)
    summary = summary_of(tmp_path / "study")
    assert summary["at"] == 2 * 16_384 and summary["variants"]["default"]["runs"] == 2
    assert f"{young.path} is left out: trained 0 frames" in summary["notes"]
    append_jsonl(young.metrics, {"policy_version": 9, "frames": 9 * 16_384, "time": 1.0})  # not scored since
    summary = summary_of(tmp_path / "study")
    assert summary["at"] == 2 * 16_384 and f"{young.path}: its nearest score is at 0 frames" in summary["notes"]
    assert summary_of(tmp_path / "study", at=0)["variants"]["default"]["runs"] == 3


def test_untrained_runs_are_compared_if_there_are_no_others(make_run, tmp_path):
    make_run("coinrun", 0, [5], updates=9)
    assert summary_of(tmp_path / "study")["at"] == 0


def test_score_long_before_the_frames_asked_for_is_named(make_run, tmp_path):
    run = make_run("coinrun", 0, [5, 6], updates=4)
    with open(run.metrics, "a") as file:
        file.write('{"policy_version": 4, "frames": 65536, "time": 1}\n')
    assert summary_of(tmp_path / "study", at=60_000)["notes"][0] == (
        f"{run.path}: its nearest score is at 16,384 frames"
    )


def test_game_that_a_variant_lacks_is_left_out_and_named(study):
    shutil.rmtree(study / "maze" / "gamma=0.99")
    summary = summary_of(study)
    assert summary["games"] == ["coinrun"]
    assert "maze is left out: no score of it at these frames from gamma=0.99" in summary["notes"]


def test_runs_of_different_games_are_refused(study):
    shutil.rmtree(study / "maze" / "gamma=0.99")
    shutil.rmtree(study / "coinrun" / "gamma=0.9")
    with pytest.raises(
        UsageError, match=r"no game has scores of every variant: gamma=0\.99 has coinrun; gamma=0\.9 has maze"
    ):
        summary_of(study)


def test_variants_that_have_games_in_common_only_in_pairs_are_refused(make_run, tmp_path):
    for gamma, games in ((0.7, "coinrun maze"), (0.8, "maze ninja"), (0.9, "ninja coinrun")):
        for game in games.split():
            make_run(game, 0, [5, 6], gamma=gamma)
    with pytest.raises(UsageError, match=r"gamma=0\.7 has coinrun, maze; gamma=0\.9 has coinrun, ninja; gamma=0\.8"):
        summary_of(tmp_path / "study")


def test_frames_before_the_first_score_are_refused(make_run, tmp_path):
    run = make_run("coinrun", 0, [5, 6], split="validation")
    rows = run.evaluations.read_text().splitlines()
    run.evaluations.write_text(rows[1] + "\n")  # version 0 has no validation score with preset lab
    with pytest.raises(UsageError, match=r"--at: no run that has trained 10,000 frames has a validation score"):
        summary_of(tmp_path / "study", at=10_000)


def test_easy_and_hard_runs_are_refused(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6])
    make_run("coinrun", 1, [5, 6], distribution_mode="hard")
    with pytest.raises(UsageError, match="easy and hard levels cannot be compared"):
        summary_of(tmp_path / "study")


def test_two_runs_of_the_same_seed_are_refused(study):
    shutil.copytree(study / "maze" / "gamma=0.9" / "seed-0", study / "copy")
    with pytest.raises(UsageError, match=r"have the same game, variant and seed \(0\); give one"):
        summary_of(study)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"levels": [1, 2, 3, 4]}, "have different test levels; --rescore scores them all again"),
        (
            {"episodes": 5},
            "on 4 test levels with 1 episode each and .* on 4 test levels with 5 episodes each; --rescore",
        ),
        ({"held_out_levels": 100}, "--held-out-levels is 200 in .* and 100 in"),
    ],
)
@pytest.mark.parametrize("without_levels", [None, 0])
def test_runs_that_were_scored_differently_are_named_and_refused(make_run, tmp_path, other, said, without_levels):
    runs = [make_run("coinrun", seed, [5, 6], **(other if seed == 2 else {})) for seed in range(3)]
    if without_levels is not None:
        runs[without_levels].level_sets.unlink()
    with pytest.raises(UsageError, match=said) as refused:
        summary_of(tmp_path / "study")
    assert str(runs[2].path) in str(refused.value)


@pytest.mark.parametrize(
    "damage", ['{"test": 3}', '{"test": [[1], [2]]}', '{"test": "1234"}', '{"test": {"1": 2}}', "{"]
)
def test_runs_whose_levels_are_not_known_are_named(study, damage):
    assert not any("levels.json" in note for note in summary_of(study)["notes"])
    missing, damaged = (study / "maze" / "gamma=0.9" / f"seed-{seed}" for seed in (0, 2))
    (missing / "levels.json").unlink()
    (damaged / "levels.json").write_text(damage)
    assert (
        f"not checked for the same levels, without a levels.json that can be read: {missing}, {damaged}"
    ) in summary_of(study)["notes"]
    shutil.rmtree(study / "maze")
    (study / "coinrun" / "gamma=0.9" / "seed-0" / "levels.json").unlink()
    shutil.rmtree(study / "coinrun" / "gamma=0.99")
    for seed in (1, 2):
        shutil.rmtree(study / "coinrun" / "gamma=0.9" / f"seed-{seed}")
    assert not any("levels.json" in note for note in summary_of(study)["notes"])  # nothing to compare it with


def test_split_without_scores_is_refused_and_the_default_is_what_all_have(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], split="validation")
    assert summary_of(tmp_path / "study")["split"] == "validation"
    with pytest.raises(UsageError, match=r"no run has test scores, only validation; choose another --split"):
        summary_of(tmp_path / "study", split="test")


@pytest.mark.parametrize("split", ["validation", None])
def test_run_without_scores_on_the_split_is_left_out_and_named(make_run, tmp_path, split):
    make_run("coinrun", 0, [5, 6], split="validation")
    # Version 0 of preset lab is not scored on validation levels.
    young = make_run("coinrun", 1, [5], split="train", updates=1)
    append_jsonl(young.metrics, {"policy_version": 1, "frames": 16_384, "time": 1.0})
    summary = summary_of(tmp_path / "study", split=split)
    assert summary["split"] == "validation" and summary["variants"]["default"]["runs"] == 1
    assert f"{young.path} is left out: no validation score at or before 16,384 frames" in summary["notes"]


def test_runs_without_scores_are_refused(make_run, tmp_path):
    make_run("coinrun", 0, [], updates=3)
    with pytest.raises(UsageError, match="no run has a score yet; --rescore plays their newest checkpoints"):
        summary_of(tmp_path / "study")
