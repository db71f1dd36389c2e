"""What a study's summary says: numbers, pairs, intervals, curves."""

import shutil

import pytest

from common.storage.jsonl import append_jsonl
from evaluator.studies.figures import plots
from evaluator.studies.ranges import normalized
from evaluator.studies.summary import frames_text, played_text, sentence, verdict
from tests.evaluator.studies.conftest import summary_of

# The note for numbers without an interval although there are several seeds.
NO_WIDTH = "no interval where the seeds agree so closely that all resamples are equal: more seeds are needed"


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


def test_parameters_are_those_of_the_settings_so_that_copies_need_no_checkpoints(make_run, tmp_path):
    for encoder in ("impala", "impoola"):
        make_run("coinrun", 0, [5, 6], encoder=encoder)
    variants = summary_of(tmp_path / "study")["variants"]
    assert variants["encoder=impala"]["parameters"] == 626_256
    assert variants["encoder=impoola"]["parameters"] == 110_160


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
