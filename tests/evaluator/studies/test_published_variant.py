"""OpenAI's runs as one more variant: where they are shown, and why not elsewhere."""

import json
import shutil

import numpy as np
import pytest

from evaluator.studies.published import NAME as PUBLISHED
from evaluator.studies.published import published_scores
from tests.evaluator.studies.conftest import summary_of


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


def test_published_scores_of_both_splits_and_modes(make_run, tmp_path):
    config = make_run("coinrun", 0, [5, 6]).read_config()
    assert published_scores(config, "train", 250_000) == (250_000, [5.65, 5.54, 5.96])
    assert published_scores(config, "validation", 25_165_824)[0] == 25_000_000


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
