"""Which runs are found below a directory, and what happens if their files cannot be read."""

import shutil

import pytest

from common.cli import UsageError
from common.storage.jsonl import append_jsonl
from evaluator.studies.runs import find_runs
from tests.evaluator.studies.conftest import summary_of


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
