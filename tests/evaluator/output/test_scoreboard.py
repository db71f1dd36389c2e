from pathlib import Path

from evaluator.levels.level_sets import Split
from evaluator.output.scoreboard import LevelHistory, SplitBoard, most_forgotten, scoreboards, typical, worst
from evaluator.scores.statistics import LevelScore

HEADER = "policy_version,split,level,episodes,mean_return,success_rate,timeout_rate,mean_length\n"


def score(level: int, mean_return: float, split: Split = "validation") -> LevelScore:
    """A return of 0 to 10 and the success rate that matches it."""
    return LevelScore(split, level, 2, mean_return, mean_return / 10, 0.0, 50.0)


def history_of(*versions: tuple[int, dict[int, float]]) -> LevelHistory:
    history = LevelHistory()
    for version, returns in versions:
        history.add(version, [score(level, value) for level, value in returns.items()])
    return history


# 20 is scored last, as in a backfill.
HISTORY = history_of((10, {5: 0, 6: 10, 7: 10, 8: 0}), (30, {5: 5, 6: 0, 7: 10, 8: 0}), (20, {5: 0, 6: 10, 7: 0, 8: 0}))


def test_levels_are_compared_with_the_previous_version_in_any_scoring_order() -> None:
    assert scoreboards(HISTORY)[10]["validation"] == SplitBoard((6, 7), (6, 7), (), (5, 8))
    assert scoreboards(HISTORY)[20]["validation"] == SplitBoard((6,), (), (7,), (5, 8))
    assert scoreboards(HISTORY)[30]["validation"] == SplitBoard((5, 7), (5, 7), (6,), (8,))
    counts = {"solved": 2, "newly_solved": 2, "forgotten": 1, "never_solved": 1}
    assert scoreboards(HISTORY)[30]["validation"].counts() == counts


def test_level_is_solved_if_half_of_its_episodes_are_completed() -> None:
    assert scoreboards(history_of((0, {1: 5.0, 2: 4.9})))[0]["validation"].solved == (1,)


def test_comparison_skips_versions_that_did_not_play_the_split() -> None:
    history = history_of((10, {5: 10}), (30, {5: 0}))
    history.add(20, [score(1, 10, "train")])
    assert list(scoreboards(history)[20]) == ["train"]
    assert scoreboards(history)[30]["validation"].forgotten == (5,)


def test_worst_typical_and_most_forgotten_levels() -> None:
    assert worst(HISTORY, 30, "validation") == 8  # 6 has 0 too, but was solved at 20
    assert most_forgotten(HISTORY, 30, "validation") == 6
    assert most_forgotten(HISTORY, 10, "validation") is None
    assert typical(HISTORY, 30, "validation") == 8  # returns 0 (6), 0 (8), 5, 10: the lower median
    rising = history_of((0, {1: 0, 2: 0}), (1, {1: 1, 2: 0}))
    assert most_forgotten(rising, 1, "validation") is None
    assert worst(rising, 1, "validation") == 2


def test_levels_csv_is_read_without_damaged_lines_and_unscored_versions(tmp_path: Path) -> None:
    path = tmp_path / "levels.csv"
    path.write_text(
        HEADER + "0,train,3,2,5.0,0.5,0.0,80.0\n"
        '0,tra1n,3,2,0.0,0.0,0.0,80.0\n0,"train,3,2,0.0,0.0,0.0,80.0\n' + 200_000 * "\0" + "\n"
        "0,test,9,2,0.0,0.0,1.0,500.0\n"
        "10,train,3,2,0.0,0.0,0.0,80.0\n99,train,3,2,0.0,0.0,0.0,80.0\n10,train,4,2,0.0\n"
    )
    with open(path, "a") as file:
        file.write("0,train,5,2,nan,0.5,0.0,80.0\n0,train,6,2,5.0,0.5,0.0,inf\n10,train,7,2,5.0,0.5,0.0,80")  # of 800.5
    history = LevelHistory.read(path, {0, 10})
    assert history.versions("train") == [0, 10] and history.levels("train") == [3]
    assert history.at("train", 0)[3] == LevelScore("train", 3, 2, 5.0, 0.5, 0.0, 80.0)
    assert history.at("test", 0)[9].timeout_rate == 1.0
    assert scoreboards(history)[10]["train"].forgotten == (3,)
    assert LevelHistory.read(tmp_path / "none.csv", {0}).versions("train") == []
