"""Which runs are compared, at which frames, by which numbers; and what is refused."""

import json
import shutil

import numpy as np
import pytest

from common.cli import UsageError
from common.resolution import Machine
from common.storage.jsonl import append_jsonl
from evaluator.studies.figures import plots
from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import published_scores
from evaluator.studies.ranges import normalized
from evaluator.studies.runs import by_variant, find_runs
from evaluator.studies.selection import add_published, select
from evaluator.studies.summary import frames_text, played_text, sentence, summarize, verdict

# The note for numbers without an interval although there are several seeds.
NO_WIDTH = "no interval where the seeds agree so closely that all resamples are equal: more seeds are needed"

GPU_MACHINE = Machine(cores=16, has_gpu=True, precision_on=lambda device: "bfloat16")


@pytest.fixture
def study(make_run, tmp_path):
    """coinrun and maze, gamma .9 and .99, three seeds; version v of seed s scores 5 + v + s/10 (+ 1 for gamma .99)."""
    for game in ("coinrun", "maze"):
        for gamma in (0.9, 0.99):
            for seed in range(3):
                returns = [5 + version + seed / 10 + (gamma > 0.9) for version in range(4)]
                make_run(game, seed, returns, gamma=gamma)
    return tmp_path / "study"


def summary_of(path, split=None, at=None, ranges="openai", published=False):
    runs, left_out = find_runs([path])
    selection = select(runs, split, at, require_equal_evaluations=True)
    selection.notes[:0] = left_out
    if published:
        add_published(selection)
    return summarize(selection, ranges)


def test_summary_has_the_numbers_of_every_game_and_variant(study):
    summary = summary_of(study)
    assert summary["games"] == ["coinrun", "maze"] and summary["split"] == "test" and summary["at"] == 3 * 16_384
    assert summary["played"] == {game: {"levels": 4, "episodes_per_level": 1} for game in ("coinrun", "maze")}
    assert list(summary["variants"]) == ["gamma=0.9", "gamma=0.99"]
    own = summary["variants"]["gamma=0.9"]
    game = own["games"]["maze"]
    assert game["seeds"] == {"0": 8.0, "1": 8.1, "2": 8.2} and game["frames"] == [3 * 16_384] * 2
    assert game["mean"] == pytest.approx(8.1) and game["normalized"] == pytest.approx(3.1 / 5)
    low, high = game["interval"]
    # Student's interval of three seeds is 8.1 +- 4.303 x .1 / sqrt(3); the bootstrap's three values are coarser.
    assert low == pytest.approx(8.1 - 0.25, abs=0.05) and high == pytest.approx(8.1 + 0.25, abs=0.05)
    assert own["runs"] == 6 and own["frames_per_second"] == pytest.approx(1001) and own["parameters"] == 626_256
    assert own["mean"]["value"] == own["iqm"]["value"] == pytest.approx(0.62)
    assert own["optimality_gap"]["value"] == pytest.approx(0.38)


def test_same_seeds_are_compared_in_pairs(study):
    (comparison,) = summary_of(study)["comparisons"]
    assert comparison["paired"] and comparison["runs"] == [6, 6]
    assert comparison["mean_difference"]["value"] == pytest.approx(0.2)
    assert comparison["probability_of_improvement"] == {"value": 1.0, "interval": None}


def test_difference_that_is_the_same_with_every_seed_has_no_interval(study, make_run):
    summary = summary_of(study)
    (comparison,) = summary["comparisons"]
    assert comparison["mean_difference"]["interval"] is None
    assert comparison["says"].startswith("gamma=0.99 minus gamma=0.9: IQM +0.200, 6 pairs; the same with every seed")
    assert summary["notes"] == [NO_WIDTH]
    for game in ("coinrun", "maze"):
        make_run(game, 3, [5, 6, 7, 8.0], gamma=0.9)
        make_run(game, 3, [5, 6, 7, 8.5], gamma=0.99)
    says = summary_of(study)["comparisons"][0]["says"]
    assert says.startswith("gamma=0.99 is better than gamma=0.9: IQM +0.2") and ", 8 pairs" in says


def test_seeds_that_only_one_variant_has_are_left_out_of_pairs(study, make_run):
    assert not any("leave out" in note for note in summary_of(study)["notes"])
    for seed in (7, 8):
        make_run("coinrun", seed, [0.0] * 4, gamma=0.9)
    make_run("maze", 9, [0.0] * 4, gamma=0.99)
    summary = summary_of(study)
    (comparison,) = summary["comparisons"]
    assert comparison["paired"] and comparison["runs"] == [6, 6] and ", 6 pairs" in comparison["says"]
    assert [note for note in summary["notes"] if "leave out" in note] == [
        "gamma=0.9: pairs with gamma=0.99 leave out seeds 7, 8 of coinrun, so their difference is not that of the IQMs",
        "gamma=0.99: pairs with gamma=0.9 leave out seed 9 of maze, so their difference is not that of the IQMs",
    ]
    shutil.rmtree(study / "coinrun" / "gamma=0.99" / "seed-0")
    shutil.rmtree(study / "coinrun" / "gamma=0.99" / "seed-1")
    summary = summary_of(study)
    (comparison,) = summary["comparisons"]
    assert not comparison["paired"] and ", 8 and 5 runs" in comparison["says"]
    assert not any("leave out" in note for note in summary["notes"])


def test_one_seed_has_no_interval_and_the_summary_says_so(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], gamma=0.9)
    make_run("coinrun", 0, [5, 7], gamma=0.99)
    summary = summary_of(tmp_path / "study")
    assert all(own["iqm"]["interval"] is None for own in summary["variants"].values())
    assert "gamma=0.9, gamma=0.99: one seed in at least one game, so no interval over seeds" in summary["notes"][0]
    assert summary["comparisons"][0]["says"].endswith("one seed says nothing about other seeds")
    assert summary["profile"]["variants"]["gamma=0.9"]["low"] is None
    assert summary["curves"]["gamma=0.9"]["iqm"]["low"] == [None, None]


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


def test_directories_with_scores_but_without_settings_are_named(study, make_run):
    missing, dangling = study / "maze" / "gamma=0.9" / "seed-0", study / "maze" / "gamma=0.9" / "seed-1"
    (missing / "config.json").unlink()
    (dangling / "config.json").rename(dangling / "aside")
    (dangling / "config.json").symlink_to("nowhere")
    summary = summary_of(study)
    assert summary["variants"]["gamma=0.9"]["runs"] == 4
    assert summary["notes"][:2] == [
        f"{missing} is left out: it has evaluations.jsonl but no config.json",
        f"{dangling} is left out: its config.json is a link to a file that does not exist",
    ]
    for path in (missing, dangling):
        with pytest.raises(UsageError, match=f"{path} holds no runs"):
            find_runs([path])


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "evaluations.jsonl"])
def test_run_whose_files_cannot_be_read_is_refused_with_a_remedy(study, name):
    run = study / "maze" / "gamma=0.9" / "seed-0"
    (run / name).unlink()
    (run / name).mkdir()
    said = f"{run / name} cannot be read: Is a directory; to compare the other runs, move {run} away or name only them"
    with pytest.raises(UsageError, match=f"^{said}$"):
        find_runs([study])


@pytest.mark.parametrize("damage", [lambda text: "{", lambda text: text.replace("gamma", "gama")])
def test_run_whose_settings_cannot_be_read_is_refused_with_a_remedy(study, damage):
    run = study / "maze" / "gamma=0.9" / "seed-0"
    (run / "config.json").write_text(damage((run / "config.json").read_text()))
    with pytest.raises(
        UsageError, match=rf"{run}/config.json .*; to compare the other runs, move {run} away or name only"
    ):
        find_runs([study])


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


def test_variants_are_settings_that_somebody_asked_for_and_that_differ(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], gamma=0.9, num_actors=1)
    make_run("coinrun", 0, [5, 6], gamma=0.99, num_actors=2)
    make_run("coinrun", 1, [5, 6], mode="overlap", gamma=0.99)
    runs, _ = find_runs([tmp_path / "study"])
    assert sorted(by_variant(runs)) == ["mode=overlap gamma=0.99", "mode=sync gamma=0.9", "mode=sync gamma=0.99"]
    assert list(by_variant(runs[:1])) == ["default"]


def test_variants_are_in_the_order_of_their_numbers(make_run, tmp_path):
    for lag in (1, 4, 16):
        make_run("coinrun", 0, [5, 6], mode="overlap", max_policy_lag=lag)
    lags = [f"max-policy-lag={lag}" for lag in (1, 4, 16)]
    variants = summary_of(tmp_path / "study")["variants"]
    assert list(variants) == lags
    assert [own["settings"] for own in variants.values()] == [{"max_policy_lag": lag} for lag in (1, 4, 16)]


def test_study_that_varies_how_runs_are_carried_out_has_these_variants(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], num_actors=1)
    make_run("coinrun", 0, [5, 6], num_actors=2)
    (tmp_path / "study" / "study.json").write_text('{"study": {"vary": {"num_actors": ["1", "2"]}}}')
    assert sorted(by_variant(find_runs([tmp_path / "study"])[0])) == ["num-actors=1", "num-actors=2"]


def test_study_that_varies_the_range_of_actors_has_these_variants(make_run, tmp_path):
    for seed, (low, high) in enumerate([(4, 16), (8, 16), (16, 16)]):
        make_run("coinrun", seed, [5, 6], num_actors=high, min_actors=low)
    assert list(by_variant(find_runs([tmp_path / "study"])[0])) == ["default"]
    (tmp_path / "study" / "study.json").write_text('{"study": {"vary": {"num_actors": ["4:16", "8:16", "16"]}}}')
    summary = summary_of(tmp_path / "study")
    assert sorted(summary["variants"]) == ["min-actors=16", "min-actors=4", "min-actors=8"]
    assert not any("differ in settings" in note for note in summary["notes"])


def test_number_of_environments_names_variants_however_actors_share_them(make_run, tmp_path):
    for seed, (actors, envs) in enumerate([(2, 32), (4, 16), (2, 64)]):
        make_run("coinrun", seed, [5, 6], num_actors=actors, envs_per_actor=envs)
    make_run("coinrun", 3, [5, 6])
    summary = summary_of(tmp_path / "study", at=16_384)
    assert [own["settings"] for own in summary["variants"].values()] == [{"num_envs": 64}, {"num_envs": 128}]
    assert {variant: own["runs"] for variant, own in summary["variants"].items()} == {
        "num-envs=64": 3,
        "num-envs=128": 1,
    }


def test_total_frames_name_variants_where_the_learning_rate_depends_on_them(make_run, tmp_path):
    for schedule, expected in (("constant", ["default"]), ("linear", ["total-frames=16384", "total-frames=32768"])):
        for seed, updates in enumerate((1, 2)):
            make_run("coinrun", seed, [5, 6], updates=updates, learning_rate_schedule=schedule)
        (directory,) = (tmp_path / "study" / "coinrun").glob(f"*={schedule}")
        assert list(by_variant(find_runs([directory])[0])) == expected


def test_what_auto_chose_on_another_machine_is_named(make_run, tmp_path):
    cpu, gpu = make_run("coinrun", 0, [5, 6]), make_run("coinrun", 1, [5, 6], machine=GPU_MACHINE)
    (variant,) = summary_of(tmp_path / "study")["variants"].values()
    assert variant["runs"] == 2
    assert summary_of(tmp_path / "study")["notes"][0] == (  # not what follows from the mode, nor arithmetic and device
        f"default: its runs differ in settings that are not in its name: mode is sync in {cpu.path} and overlap in "
        f"{gpu.path}"
    )


def test_what_auto_chose_for_another_variant_is_named(make_run, tmp_path):
    cpu = make_run("coinrun", 0, [5, 6], gamma=0.9)
    gpu = make_run("coinrun", 0, [5, 6], gamma=0.99, machine=GPU_MACHINE)
    assert (
        f"variants differ in settings that are not in their names: mode is sync in {cpu.path} and overlap in {gpu.path}"
    ) in summary_of(tmp_path / "study")["notes"]


def test_consequences_of_what_a_variant_is_named_by_are_not_noted(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6], mode="sync")
    make_run("coinrun", 0, [5, 6], mode="overlap")
    make_run("coinrun", 0, [5, 6], preset="lab", mode="sync", held_out="sample", held_out_levels=200)
    summary = summary_of(tmp_path / "study")
    assert len(summary["variants"]) == 3
    assert not any("differ in settings" in note for note in summary["notes"])


def test_preset_of_an_earlier_version_is_named(make_run, tmp_path):
    old, new = (make_run("coinrun", seed, [5, 6]) for seed in (0, 1))
    contents = json.loads(old.config.read_text())
    contents["settings"] |= {"vf_coef": 0.5, "precision": "bfloat16", "importance_weight_cap": 2.0}
    old.config.write_text(json.dumps(contents))
    notes = summary_of(tmp_path / "study")["notes"]
    assert f"settings that are not in its name: vf_coef is 0.5 in {old.path} and 0.25 in {new.path}" in notes[0]


def test_runs_of_the_same_seed_are_refused_with_what_nobody_asked_for(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6]).path.rename(tmp_path / "study" / "cpu")
    make_run("coinrun", 0, [5, 6], machine=GPU_MACHINE)
    with pytest.raises(
        UsageError, match=r"variant and seed \(0\), although mode is overlap in .*seed-0 and sync in .*cpu"
    ):
        summary_of(tmp_path / "study")


def test_runs_are_found_once_below_any_directory_also_copied(study, tmp_path):
    shutil.copytree(study, tmp_path / "elsewhere" / "copy")
    copied, _ = find_runs([tmp_path / "elsewhere", tmp_path / "elsewhere" / "copy" / "maze"])
    assert len(copied) == 12
    assert summary_of(tmp_path / "elsewhere")["variants"] == summary_of(study)["variants"]
    (study / "loop").symlink_to(study)
    assert len(find_runs([study])[0]) == 12
    (tmp_path / "empty").mkdir()
    for path, said in (("empty", "holds no runs"), ("missing", "does not exist")):
        with pytest.raises(UsageError, match=said):
            find_runs([study, tmp_path / path])


def test_runs_of_a_study_in_the_directory_of_a_run_are_found(study, make_run):
    """Older versions began such studies."""
    run = make_run("coinrun", 9, [1.0, 2.0], gamma=0.9)
    for path in run.path.iterdir():
        path.rename(study / path.name)
    assert [found.run.path for found in find_runs([study])[0]] == [study]
    (study / "study.json").write_text("{}")
    assert len(find_runs([study])[0]) == 13


def test_parameters_are_those_of_the_settings_so_that_copies_need_no_checkpoints(make_run, tmp_path):
    for encoder in ("impala", "impoola"):
        make_run("coinrun", 0, [5, 6], encoder=encoder)
    variants = summary_of(tmp_path / "study")["variants"]
    assert variants["encoder=impala"]["parameters"] == 626_256
    assert variants["encoder=impoola"]["parameters"] == 110_160


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        None,
        {"mean": None, "levels": 4, "episodes": 4},
        {"mean": "6", "levels": 4, "episodes": 4},
        {"mean": 9.0, "levels": 0, "episodes": 0},
        {"mean": 9.0, "levels": 4},
        {"mean": 10**400, "levels": 4, "episodes": 4},
    ],
)
def test_rows_with_what_is_no_score_are_skipped(make_run, tmp_path, damaged):
    runs = [make_run("coinrun", seed, [5, 6]) for seed in range(2)]
    for run in runs:
        append_jsonl(run.evaluations, {"frames": 16_384, "test": damaged})
        append_jsonl(
            run.evaluations, {"frames": 16_384, "test": {"mean": 9.0, "levels": 4, "episodes": 4}, "train": damaged}
        )
    own = summary_of(tmp_path / "study")["variants"]["default"]
    assert own["games"]["coinrun"]["seeds"] == {"0": 6.0, "1": 6.0}


def test_damaged_rows_are_skipped(make_run, tmp_path):
    run = make_run("coinrun", 0, [5, 6])
    for path in (run.evaluations, run.metrics):
        append_jsonl(path, {"frames": "many", "test": {}})
        append_jsonl(path, {"policy_version": 1})
    append_jsonl(run.metrics, {"frames": 16_384, "fps": "fast"})
    own = summary_of(tmp_path / "study")["variants"]["default"]
    assert own["games"]["coinrun"]["seeds"] == {"0": 6.0} and own["frames_per_second"] == 1000.0


def test_profile_has_no_band_where_all_resamples_are_equal(study):
    profile = summary_of(study)["profile"]
    own = profile["variants"]["gamma=0.9"]
    ends = list(zip(profile["thresholds"], own["share"], own["low"], own["high"], strict=True))
    assert all(low is None and high is None for _, share, low, high in ends if share in (0, 1))
    inside = [(low, high) for _, share, low, high in ends if 0 < share < 1]
    assert inside and all(low < high for low, high in inside)


@pytest.mark.parametrize(
    ("episodes", "said"),
    [(1, "4 levels x 1 episode"), (2, "coinrun 4 levels x 1 episode, maze 4 levels x 2 episodes")],
)
def test_what_was_played_is_said_once_if_it_is_the_same_for_all_games(make_run, tmp_path, episodes, said):
    make_run("coinrun", 0, [5, 6])
    make_run("maze", 0, [5, 6], episodes=episodes)
    assert played_text(summary_of(tmp_path / "study")) == said


def test_frames_are_a_range_where_runs_differ(make_run, tmp_path):
    make_run("coinrun", 0, [5, 6, 7])
    late = make_run("coinrun", 1, [5, 6], updates=2)
    append_jsonl(late.metrics, {"policy_version": 2, "frames": 2 * 16_384, "time": 1.0})
    game = summary_of(tmp_path / "study")["variants"]["default"]["games"]["coinrun"]
    assert frames_text(game["frames"]) == "16,384 to 32,768" and frames_text([5, 5]) == "5"


def test_curves_have_the_scores_of_every_version(study):
    curves = summary_of(study)["curves"]["gamma=0.9"]
    assert curves["games"]["maze"]["frames"] == [16_384 * version for version in range(4)]
    assert curves["games"]["maze"]["value"] == pytest.approx([5.1, 6.1, 7.1, 8.1])
    assert curves["iqm"]["value"] == pytest.approx([0.02, 0.22, 0.42, 0.62])
    assert all(low < value < high for low, value, high in zip(*(curves["iqm"][k] for k in ("low", "value", "high")),
                                                              strict=True))  # fmt: skip


def test_variants_whose_runs_were_not_scored_over_the_same_frames_have_no_curve_and_are_named(study):
    def keep(game, seed, rows):
        path = study / game / "gamma=0.9" / f"seed-{seed}" / "evaluations.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[rows]))

    keep("maze", 0, slice(3, 4))
    keep("coinrun", 0, slice(0, 3))
    summary = summary_of(study, at=3 * 16_384)
    (note,) = [note for note in summary["notes"] if "curve" in note]
    assert note.startswith("gamma=0.9: no curve of the IQM: before the first score of a run, one of another game")
    assert not summary["curves"]["gamma=0.9"]["iqm"]["frames"]
    assert summary["curves"]["gamma=0.9"]["games"]["maze"]["frames"] == [3 * 16_384]
    keep("maze", 1, slice(0, 2))
    summary = summary_of(study, at=3 * 16_384)
    (note,) = [note for note in summary["notes"] if "curve" in note]
    assert note.startswith("gamma=0.9: no learning curve in maze and no curve of the IQM: before the first score of")
    assert plots(summary).keys() == {"curves", "iqm", "profile", "bars"}


@pytest.mark.parametrize(
    ("game", "ranges", "expected"),
    [
        ("jumper", "openai", 4 / 9),
        ("jumper", "paper", 2 / 7),
        ("leaper", "openai", 3.5 / 8.5),
        ("leaper", "paper", 2 / 7),
        ("maze", "paper", 0.0),
    ],
)
def test_both_ranges_normalize_as_their_sources_say(game, ranges, expected):
    assert normalized(5.0, game, "easy", ranges) == pytest.approx(expected)
    assert normalized(5.0, game, "hard", "paper") == normalized(5.0, game, "hard", "openai")


def test_published_runs_become_one_more_variant_where_settings_match(make_run, tmp_path):
    for seed in range(3):
        make_run("coinrun", seed, np.linspace(5, 8, 63))
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    own = summary["variants"][PUBLISHED]["games"]["coinrun"]
    assert list(own["seeds"].values()) == [7.71, 7.26, 6.99] and own["frames"] == [1_000_000] * 2
    assert not summary["comparisons"][0]["paired"]
    (note,) = [note for note in summary["notes"] if note.startswith(PUBLISHED)]
    assert "--rescore --split all plays levels like theirs" in note  # the runs' levels have no look-alikes


def test_published_runs_have_curves_up_to_the_frames_compared(make_run, tmp_path):
    make_run("coinrun", 0, np.linspace(5, 8, 63))
    curves = summary_of(tmp_path / "study", at=60 * 16_384, published=True)["curves"]  # 983,040: 1M is near enough
    own = curves[PUBLISHED]["games"]["coinrun"]
    assert own["frames"] == curves[PUBLISHED]["iqm"]["frames"] == [250_000, 500_000, 1_000_000]
    assert own["value"][-1] == pytest.approx((7.71 + 7.26 + 6.99) / 3)
    assert all(low < value < high for low, value, high in zip(own["low"], own["value"], own["high"], strict=True))
    middle_half = (0.25 * 6.99 + 7.26 + 0.25 * 7.71) / 1.5
    assert curves[PUBLISHED]["iqm"]["value"][-1] == pytest.approx((middle_half - 5) / 5)
    assert curves["default"]["games"]["coinrun"]["frames"][-1] == 1_015_808


@pytest.mark.parametrize(
    ("settings", "at", "said"),
    [
        ({"num_levels": 20}, 16_384, "no published scores: the published runs have 200 easy or 500 hard training"),
        ({}, 16_384, "no published scores: the logs have 0.25M, 0.5M, 1M"),
    ],
)
def test_why_published_runs_are_not_shown_is_said(make_run, tmp_path, settings, at, said):
    make_run("coinrun", 0, [5, 6], **settings)
    summary = summary_of(tmp_path / "study", at=at, published=True)
    assert PUBLISHED not in summary["variants"] and summary["notes"][0].startswith(said)


def test_published_runs_are_not_shown_beside_scores_of_other_frames(make_run, tmp_path):
    """Whatever --at says: the newest score before it can be much older."""
    for seed in range(2):
        run = make_run("coinrun", seed, np.linspace(5, 8, 63))
        rows = run.evaluations.read_text().splitlines(keepends=True)
        run.evaluations.write_text("".join(rows[::10]))
    summary = summary_of(tmp_path / "study", at=250_000, published=True)
    assert summary["variants"]["default"]["games"]["coinrun"]["frames"] == [163_840] * 2
    assert PUBLISHED not in summary["variants"]
    assert any("0.25M, 0.5M" in note and "none within 5% of a score at 163,840" in note for note in summary["notes"])
    first = tmp_path / "study" / "coinrun" / "default" / "seed-0"
    (first / "evaluations.jsonl").write_text("".join(rows[31:32]))
    run.evaluations.write_text("".join(rows[61:62]))
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    assert "no published scores: the scores are at 507,904 and 999,424 frames; choose with --at" in summary["notes"]


def test_settings_unlike_those_of_the_published_runs_are_named(make_run, tmp_path):
    for encoder in ("impala", "impoola"):
        make_run("coinrun", 0, np.linspace(5, 8, 63), encoder=encoder)
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    assert not any("not the settings of" in note for note in summary["notes"])  # the variants are named by theirs
    for game in ("coinrun", "maze"):
        make_run(game, 1, np.linspace(5, 8, 63), encoder="impala", mode="overlap", gamma=0.9)
    shutil.rmtree(tmp_path / "study" / "coinrun" / "encoder=impoola")
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    assert PUBLISHED in summary["variants"]
    assert [note for note in summary["notes"] if "not the settings of" in note] == []
    shutil.rmtree(tmp_path / "study" / "coinrun" / "encoder=impala")
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    (note,) = [note for note in summary["notes"] if "not the settings of" in note]
    assert note == "default: not the settings of PPO (OpenAI): mode overlap instead of sync, gamma 0.9 instead of 0.999"


@pytest.mark.parametrize("seed_left_out", [0, 9])
def test_run_that_is_left_out_counts_for_nothing(make_run, tmp_path, seed_left_out):
    """Neither its speed nor its settings, also if it comes before the others."""
    for seed in (1, 2):
        make_run("coinrun", seed, np.linspace(5, 8, 63))
    expected = summary_of(tmp_path / "study", at=1_000_000, published=True)
    out = make_run("coinrun", seed_left_out, [5, 6], updates=63)
    contents = json.loads(out.config.read_text())
    contents["settings"]["start_level"] = 100
    out.config.write_text(json.dumps(contents))
    summary = summary_of(tmp_path / "study", at=1_000_000, published=True)
    assert f"{out.path} is left out: trained 16,384 frames" in summary["notes"]
    assert PUBLISHED in summary["variants"] and summary["curves"][PUBLISHED] == expected["curves"][PUBLISHED]
    assert summary["variants"]["default"] == expected["variants"]["default"]


def test_published_scores_of_both_splits_and_modes(make_run, tmp_path):
    config = make_run("coinrun", 0, [5, 6]).read_config()
    assert published_scores(config, "train", 250_000) == (250_000, [5.65, 5.54, 5.96])
    assert published_scores(config, "validation", 25_165_824)[0] == 25_000_000


@pytest.mark.parametrize(
    ("difference", "interval", "fewest_seeds", "found", "said"),
    [
        (0.1, (0.02, 0.2), 3, "better", "B is better than A: IQM +0.100 [+0.020, +0.200], 3 pairs"),
        (-0.1, (-0.2, -0.02), 3, "worse", "B is worse than A: IQM -0.100 [-0.200, -0.020], 3 pairs"),
        (0.1, (-0.1, 0.3), 3, "cannot be told apart", "B and A cannot be told apart: IQM +0.100 [-0.100, +0.300], "
                              "3 pairs, so they differ by at most 0.300"),
        (0.0, None, 3, "seeds agree, too few", "B minus A: IQM +0.000, 3 pairs; the same with every seed"),
        (0.1, None, 1, "one seed", "B minus A: IQM +0.100, 3 pairs; one seed says nothing about other seeds"),
    ],
)  # fmt: skip
def test_verdict_and_sentence_say_what_an_interval_allows(difference, interval, fewest_seeds, found, said):
    assert verdict(interval, fewest_seeds) == found
    assert sentence("A", "B", difference, interval, "3 pairs", found) == said
