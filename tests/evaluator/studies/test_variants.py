"""How the variants of a study are named, and which differences between runs are noted."""

import json

import pytest

from common.cli import UsageError
from common.resolution import Machine
from evaluator.studies.runs import find_runs
from evaluator.studies.variants import by_variant
from tests.evaluator.studies.conftest import summary_of

GPU_MACHINE = Machine(cores=16, has_gpu=True, precision_on=lambda device: "bfloat16")


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
