"""Who may write into a run directory, and what it says about its run."""

import dataclasses
import json
from pathlib import Path

import pytest

from common.config import ConfigError, resolve
from common.storage.run_directory import RunDirectory, config_from_dict


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "some" / "run")


@pytest.fixture
def config():
    return resolve("easy", {"num_actors": 4, "seed": 3})


def test_a_new_directory_is_made_with_its_parents_and_left_empty(run):
    run.create()
    assert run.path.is_dir() and list(run.path.iterdir()) == []


def test_an_empty_directory_can_become_a_run(run):
    run.path.mkdir(parents=True)
    run.create()


@pytest.mark.parametrize("trace", ["config.json", "metrics.jsonl", "checkpoints"])
def test_a_directory_that_holds_a_run_is_refused_and_left_as_it_was(run, trace):
    run.path.mkdir(parents=True)
    if trace == "checkpoints":
        (run.path / trace).mkdir()
    else:
        (run.path / trace).write_text("old")
    with pytest.raises(ConfigError, match=f"--run-dir {run.path} already holds a run.*--resume"):
        run.create()
    assert [path.name for path in run.path.iterdir()] == [trace]


def test_a_path_occupied_by_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("here first")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"--run-dir {path}"):
            RunDirectory(path).create()
    assert (tmp_path / "file").read_text() == "here first"


def test_a_name_the_file_system_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--run-dir"):
        RunDirectory(tmp_path / ("x" * 300)).create()


def test_a_directory_that_takes_no_files_is_not_writable():
    with pytest.raises(ConfigError, match="/proc/self is not writable"):
        RunDirectory(Path("/proc/self")).require_writable()


def test_the_settings_come_back_as_they_were(run, config):
    run.create()
    run.write_config(config, {"torch": "2"})
    assert run.read_config() == config
    stored = json.loads(run.config.read_text())
    assert stored["versions"] == {"torch": "2"}
    assert stored["settings"]["num_levels"] == 200
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_a_directory_without_a_run_is_said_to_hold_none(run):
    with pytest.raises(ConfigError, match=f"{run.path} holds no run"):
        run.read_config()


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "{}", '{"settings": 3}', '{"settings": {}}'])
def test_a_config_that_cannot_be_used_is_refused_and_named(run, text):
    run.create()
    run.config.write_text(text)
    with pytest.raises(ConfigError, match=str(run.config)):
        run.read_config()


def test_missing_and_unknown_settings_are_named(config):
    settings = dataclasses.asdict(config)
    without = {name: value for name, value in settings.items() if name != "gamma"}
    with pytest.raises(ConfigError, match=r"somewhere.*another version.*\['gamma', 'news'\]"):
        config_from_dict({**without, "news": 1}, "somewhere")


@pytest.mark.parametrize(("name", "value"), [("gamma", "much"), ("num_actors", None), ("env_name", ["coinrun"])])
def test_a_stored_setting_of_another_type_is_refused_and_not_a_traceback(config, name, value):
    with pytest.raises(ConfigError):
        config_from_dict({**dataclasses.asdict(config), name: value}, "somewhere")
