"""Creating a run directory, and what it stores about its run."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest

from common.config import BEFORE_SETTING, ConfigError
from common.resolution import resolve
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory, config_from_dict


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "some" / "run")


@pytest.fixture
def config():
    return resolve("easy", {"num_actors": 4, "seed": 3})


def test_new_directory_is_created_with_its_parents_and_left_empty(run):
    run.create()
    assert run.path.is_dir() and list(run.path.iterdir()) == []


def test_empty_directory_can_become_a_run(run):
    run.path.mkdir(parents=True)
    run.create()


@pytest.mark.parametrize("trace", ["config.json", "metrics.jsonl", "checkpoints"])
def test_directory_that_holds_a_run_is_refused_and_unchanged(run, trace):
    run.path.mkdir(parents=True)
    if trace == "checkpoints":
        (run.path / trace).mkdir()
    else:
        (run.path / trace).write_text("old")
    with pytest.raises(ConfigError, match=f"--run-dir: {run.path} already holds a run.*--resume"):
        run.create()
    assert [path.name for path in run.path.iterdir()] == [trace]


def test_path_occupied_by_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("here first")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"--run-dir: cannot create {path}: .* not a writable directory"):
            RunDirectory(path).create()
    assert (tmp_path / "file").read_text() == "here first"


def test_name_too_long_for_the_file_system_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--run-dir"):
        RunDirectory(tmp_path / ("x" * 300)).create()


def test_directory_that_takes_no_files_is_not_writable():
    with pytest.raises(ConfigError, match="/proc/self is not writable"):
        RunDirectory(Path("/proc/self")).require_writable()


@pytest.mark.parametrize("name", ["checkpoints", "resume"])
def test_directory_of_checkpoints_that_takes_no_files_is_not_writable(run, name):
    run.create()
    run.require_writable()
    (run.path / name).symlink_to("/proc/self")
    with pytest.raises(ConfigError, match=f"run/{name} is not writable: .*; make it writable"):
        run.require_writable()


def test_full_disk_is_named_with_its_remedy_and_the_test_file_is_removed(run, monkeypatch):
    run.create()

    def fail(path, data):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ConfigError, match="is not writable: No space left on device; free some space"):
        run.require_writable()
    assert list(run.path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_stored_run_on_a_full_disk_is_not_sent_to_another_directory(run, config, monkeypatch, number):
    def fail(*args):
        raise OSError(number, os.strerror(number))

    run.create()
    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ConfigError, match=r"; free some space or choose a directory .* with --run-dir$"):
        run.check_file_system()
    run.config.touch()
    with pytest.raises(ConfigError, match=f"{os.strerror(number)}; free some space$"):
        run.check_file_system()


def test_settings_and_request_are_read_back_unchanged(run, config):
    run.create()
    run.write_config(config, {"torch": "2"}, {"seed": 3, "mode": "auto"})
    assert run.read_config() == config
    assert run.read_requested() == {"seed": 3, "mode": "auto"}
    stored = json.loads(run.config.read_text())
    assert stored["versions"] == {"torch": "2"}
    assert stored["settings"]["num_levels"] == 200
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_directory_without_a_run_is_reported(run):
    with pytest.raises(ConfigError, match=f"{run.path} is not a run directory"):
        run.read_config()


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{}", '{"settings": 3}', '{"settings": {}}'])
def test_unusable_config_is_refused_and_named(run, text):
    run.create()
    run.config.write_text(text)
    with pytest.raises(ConfigError, match=str(run.config)):
        run.read_config()


def test_settings_stored_before_a_setting_existed_mean_what_runs_did_then(config):
    settings = dataclasses.asdict(config)
    for name in BEFORE_SETTING:
        del settings[name]
    before = config_from_dict({**settings, "gamma": 0.9}, "somewhere")
    assert (before.reward_norm_gamma, before.initialization) == (0.9, "torch")
    assert (before.encoder, before.width, before.objective) == ("impala", 1, "standard")
    assert config_from_dict(dataclasses.asdict(config), "somewhere") == config


def test_missing_and_unknown_settings_are_named(config):
    settings = dataclasses.asdict(config)
    without = {name: value for name, value in settings.items() if name != "gamma"}
    with pytest.raises(ConfigError, match=r"somewhere .* another version of heldout \(unknown: news; missing: gamma\)"):
        config_from_dict({**without, "news": 1}, "somewhere")


@pytest.mark.parametrize("requested", [3, {"news": 1}, None])
def test_request_of_another_version_is_refused_and_named(run, config, requested):
    run.create()
    run.write_config(config, {})
    stored = json.loads(run.config.read_text())
    run.config.write_text(json.dumps({**stored, "requested": requested}))
    with pytest.raises(ConfigError, match=str(run.config)):
        run.read_requested()


@pytest.mark.parametrize(("name", "value"), [("gamma", "much"), ("num_actors", None), ("env_name", ["coinrun"])])
def test_stored_setting_of_another_type_is_refused(config, name, value):
    with pytest.raises(ConfigError):
        config_from_dict({**dataclasses.asdict(config), name: value}, "somewhere")


@pytest.mark.parametrize(("name", "value"), [("gamma", 7), ("gamma", "much"), ("num_levels", -1)])
def test_stored_setting_that_is_refused_is_named_with_its_file(run, config, name, value):
    run.create()
    run.write_config(config, {})
    stored = json.loads(run.config.read_text())
    stored["settings"][name] = value
    run.config.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match=f"^{run.config}: --{name.replace('_', '-')}"):
        run.read_config()


def test_rows_that_no_evaluator_wrote_are_ignored(tmp_path):
    run = RunDirectory(tmp_path)
    for text in ('{"policy_version": "x"}', '{"frames": 3}', "[1]", "7", '{"policy_version": 1, "frames": null}'):
        for path in (run.evaluations, run.metrics):
            path.write_text(text + "\n")
        assert run.read_evaluations() == run.read_metrics() == []
    run.metrics.write_text(
        "".join(json.dumps({"policy_version": n, "frames": n, "time": 1.5, "fps": 1}) + "\n" for n in (2, 1))
    )
    assert [row["policy_version"] for row in run.read_metrics()] == [1, 2]


SCORE = {"mean": 4.0, "interval": [3, 5.0], "levels": 2, "episodes": 2}
SHOWN = {**SCORE, "normalized": 0.4, "success_rate": 0.5, "timeout_rate": 0.0}
EVALUATION = {
    **dict.fromkeys(("policy_version", "frames", "updates_behind", "skipped"), 1),
    **dict.fromkeys(("train", "validation", "held_out"), SHOWN),
    **{"policy_sha256": "ab", "held_out_split": "validation", "generalization_gap": 0.5, "seconds": 1.0},
    "scoreboard": {"validation": {"solved": 1, "newly_solved": 0, "forgotten": 0, "never_solved": 1}},
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"validation": {}},
        {"validation": None},
        {"test": []},
        {"held_out": {**SHOWN, "mean": float("nan")}},  # null in the file
        {"train": {**SHOWN, "levels": 0}},
        {"train": {**SHOWN, "episodes": 1}},
        {"train": {**SHOWN, "interval": [3]}},
        {"train": {**SHOWN, "interval": ["3", 5]}},
    ],
)
def test_rows_with_what_is_no_score_are_ignored(tmp_path, wrong):
    run = RunDirectory(tmp_path)
    for row in (EVALUATION | wrong, EVALUATION):
        append_jsonl(run.evaluations, row)
    assert run.read_evaluations() == run.read_scores() == [EVALUATION]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scoreboard": {}},
        {"scoreboard": {"validation": {"solved": 1}}},
        {"scoreboard": {**EVALUATION["scoreboard"], "train": 3}},
        {"held_out_split": "nowhere"},
        {"generalization_gap_interval": 3},
        {"validation": SCORE},
    ],
)
def test_rows_that_cannot_be_shown_still_have_their_scores(tmp_path, wrong):
    run = RunDirectory(tmp_path)
    append_jsonl(run.evaluations, EVALUATION | wrong)
    assert run.read_evaluations() == [] and run.read_scores() == [EVALUATION | wrong]
