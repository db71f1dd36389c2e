"""New and resumed runs: what they are prepared from, when files are written, and who may use the directory."""

import dataclasses
import errno
import json
import os
import time

import pytest

from common.config import ConfigError
from common.process import set_file_modes
from common.storage import atomic_files, jsonl
from common.storage.checkpoints import list_checkpoints, save_checkpoint
from common.storage.run_directory import RunDirectory
from common.versions import named_build, procgen_build
from learner.ppo.learner import PPOLearner
from learner.startup import preparation
from learner.startup.flags import parse
from learner.startup.preparation import NewRun, ResumedRun, prepare_run

SMALL = ["--num-actors", "2", "--envs-per-actor", "2", "--unroll-length", "8", "--num-minibatches", "2"]


@pytest.fixture
def prepare():
    """Prepares a run from flags and releases its lock at the end of the test."""
    prepared = []

    def prepare(*flags):
        prepared.append(prepare_run(parse([str(flag) for flag in flags])))
        return prepared[-1]

    yield prepare
    for run in prepared:
        run.close()


@pytest.fixture
def run(prepare, tmp_path):
    """A stored run with checkpoints 0 and 1, rows of versions 1 and 2 in both logs, and no lock."""
    new = prepare(*SMALL, "--device", "cpu", "--run-dir", tmp_path / "run")
    new.begin()
    learner = PPOLearner(new.config)
    for version in (0, 1):
        state = {"learner": learner.state_dict()}
        save_checkpoint(new.run.checkpoints, new.config, version, 32 * version, learner.weights(), state)
    learner.close()
    for log in (new.run.metrics, new.run.evaluations):
        log.write_text('{"policy_version": 1}\n{"policy_version": 2}\n')
    new.close()
    return new.run


def stored(run: RunDirectory):
    return json.loads(run.config.read_text())


def test_empty_preset_is_refused_and_not_taken_for_the_default(prepare, tmp_path):
    with pytest.raises(ConfigError, match="--preset: unknown value ''; choose from lab, easy, hard"):
        prepare("--preset", "", "--run-dir", tmp_path / "run")


def test_new_run_writes_nothing_before_it_begins(prepare, tmp_path):
    new = prepare("--run-dir", tmp_path / "run")
    assert isinstance(new, NewRun) and not new.run.path.exists()
    new.begin()
    assert new.run.read_config() == new.config


def test_config_json_keeps_the_request_beside_the_resolved_settings(run):
    contents = stored(run)
    requested = {"num_actors": 2, "min_actors": 0, "envs_per_actor": 2, "unroll_length": 8, "num_minibatches": 2}
    assert contents["requested"] == {**requested, "device": "cpu"}
    assert contents["settings"]["mode"] == "sync" and contents["settings"]["min_actors"] == 2
    assert contents["settings"]["learner_threads"] >= 1 and contents["versions"]["torch"]


def test_resumed_run_continues_from_the_newest_checkpoint_with_the_stored_config(run, prepare):
    before = stored(run)
    resumed = prepare("--resume", run.path)
    assert isinstance(resumed, ResumedRun) and resumed.environments_continue
    assert resumed.checkpoint.policy_version == 1
    assert resumed.config == run.read_config()
    resumed.begin()
    assert stored(run) == before
    for log in (run.metrics, run.evaluations):
        assert log.read_text() == '{"policy_version": 1}\n'
        assert log.with_name(f"{log.name}.abandoned").read_text() == '{"policy_version": 2}\n'


def test_resume_sets_aside_videos_of_versions_after_its_checkpoint(run, prepare):
    run.videos.mkdir()
    kept = ["00000000-worst-level3.gif", "00000001-typical-level3.gif", "00000002-mine.gif", "notes.txt"]
    later = ["00000002-worst-level3.gif", "00000002-forgotten-level4.gif", "00000003-worst-level3.gif"]
    for name in kept + later:
        (run.videos / name).write_text(name)
    prepare("--resume", run.path).begin()
    (run.videos / later[0]).write_text("new")  # scored again, then abandoned again
    preparation._set_aside_after(run, policy_version=1)
    contents = {path.name: path.read_text() for path in run.videos.iterdir()}
    again = {f"{later[0]}.aside-2": "new"}
    assert contents == {name: name for name in kept} | {f"{name}.aside-1": name for name in later} | again


@pytest.mark.parametrize("stored_build", ["procgen", "procgen-mirror", "procgen-gym"])
def test_resume_with_another_build_of_procgen_names_both(run, prepare, stored_build):
    contents = stored(run)
    others = {name: version for name, version in contents["versions"].items() if not name.startswith("procgen")}
    run.config.write_text(json.dumps({**contents, "versions": {**others, stored_build: "0.9.9"}}))
    resumed = prepare("--resume", run.path)
    assert f"{stored_build} 0.9.9" in resumed.procgen_change and procgen_build() in resumed.procgen_change


def test_resume_of_a_run_with_an_older_preset_names_what_differs(prepare, tmp_path):
    """The run was started as `easy` when that meant other values, of which one setting did not exist."""
    new = prepare(*SMALL, "--preset", "easy", "--gamma", "0.9", "--device", "cpu", "--run-dir", tmp_path / "run")
    older = dataclasses.replace(new.config, vf_coef=0.5, reward_norm_gamma=0.9, initialization="torch")
    new.begin()
    learner = PPOLearner(older)
    learner.close()
    save_checkpoint(new.run.checkpoints, older, 0, 0, learner.weights(), {"learner": learner.state_dict()})
    new.run.write_config(older, {}, new.requested)
    contents = stored(new.run)
    del contents["settings"]["reward_norm_gamma"], contents["settings"]["initialization"]
    new.run.config.write_text(json.dumps(contents))
    new.close()
    resumed = prepare("--resume", new.run.path)
    # gamma and the sizes are what the user asked for.
    assert resumed.preset_change == (
        "preset easy has changed since this run was started; the run keeps vf_coef 0.5 instead of 0.25, "
        "reward_norm_gamma 0.9 instead of 0.99, initialization torch instead of glorot"
    )
    assert resumed.config == older


def test_resume_with_the_present_preset_says_nothing(run, prepare):
    assert prepare("--resume", run.path).preset_change is None


def test_resume_with_the_same_build_of_procgen_says_nothing(run, prepare):
    assert prepare("--resume", run.path).procgen_change is None


def test_change_of_procgen_is_reported_each_time_and_only_then(run, prepare, monkeypatch):
    def resume(build_version):
        now = {**stored(run)["versions"], procgen_build().split()[0]: build_version}
        monkeypatch.setattr(preparation, "versions", lambda: now)
        monkeypatch.setattr(preparation, "procgen_build", lambda: named_build(now))
        resumed = prepare("--resume", run.path)
        change = resumed.procgen_change
        resumed.begin()
        resumed.close()
        assert stored(run)["versions"] == now
        return change is not None

    assert [resume(version) for version in ("1.1", "1.1", "1.2", "1.1")] == [True, False, True, True]


def test_refused_resume_can_be_repeated_in_the_same_process(run, prepare):
    aside = run.path / "aside"
    run.checkpoints.rename(aside)
    for _ in range(2):
        with pytest.raises(ConfigError, match="no complete checkpoint"):
            prepare("--resume", run.path)
    aside.rename(run.checkpoints)
    assert isinstance(prepare("--resume", run.path), ResumedRun)


def test_refused_restart_can_be_repeated_in_the_same_process(run, prepare):
    run.checkpoints.rename(run.path / "aside")
    again = (*SMALL, "--resume", "auto", "--run-dir", run.path)
    for _ in range(2):
        with pytest.raises(ConfigError, match="--num-minibatches: 1000 does not divide"):
            prepare(*again, "--num-minibatches", "1000")
    assert prepare(*again).lock is not None


@pytest.mark.parametrize("versions", ["none", ["procgen 0.10.7"], None])
def test_damaged_versions_are_a_one_line_error(run, prepare, versions):
    run.config.write_text(json.dumps({**stored(run), "versions": versions}))
    with pytest.raises(ConfigError, match=r"config\.json was written by another version of heldout \(versions"):
        prepare("--resume", run.path)


def test_resumed_run_adds_new_flags_to_the_stored_request(run, prepare):
    resumed = prepare("--resume", run.path, "--mode", "overlap", "--num-actors", "4")
    assert not resumed.environments_continue
    assert (resumed.config.mode, resumed.config.envs_per_actor, resumed.config.device) == ("overlap", 1, "cpu")
    before = stored(run)
    resumed.begin()
    after = stored(run)
    # The actors still share the four environments: two for each no longer holds.
    assert after["requested"] == {**before["requested"], "mode": "overlap", "num_actors": 4, "envs_per_actor": 1}
    assert after["settings"]["mode"] == "overlap" and after["settings"]["min_actors"] == 4


def test_automatic_settings_are_resolved_again_on_resume_and_requested_ones_are_kept(run, prepare):
    contents = stored(run)
    contents["settings"] |= {"learner_threads": 999, "mode": "overlap", "max_policy_lag": 1, "micro_batch": 7}
    contents["requested"] |= {"micro_batch": 7}
    run.config.write_text(json.dumps(contents))
    config = prepare("--resume", run.path).config
    assert config.learner_threads != 999 and config.mode == "sync" and config.micro_batch == 7


def test_full_disk_refuses_a_resume_in_one_line_until_there_is_space(run, prepare, monkeypatch):
    def fail(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(jsonl, "write_atomically", fail)
        for _ in range(2):
            resumed = prepare("--resume", run.path)
            with pytest.raises(ConfigError, match=f"{run.path} cannot be changed: No space left .*; free some space"):
                resumed.begin()
            resumed.close()
    prepare("--resume", run.path).begin()
    for log in (run.metrics, run.evaluations):
        assert log.with_name(f"{log.name}.abandoned").read_text() == '{"policy_version": 2}\n'


def test_checkpoint_that_cannot_be_set_aside_refuses_a_resume_in_one_line(run, prepare, monkeypatch):
    (run.checkpoints / "00000001" / "learner.pt").write_bytes(b"")
    resumed = prepare("--resume", run.path)

    def fail(source, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(source))

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ConfigError, match=r"at .*checkpoints/00000001: Read-only file system; make it writable"):
        resumed.begin()


def test_full_disk_refuses_a_new_run_in_one_line(prepare, tmp_path, monkeypatch):
    new = prepare("--device", "cpu", "--run-dir", tmp_path / "run")

    def fail(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files, "write_durably", fail)
    with pytest.raises(ConfigError, match="run cannot be changed: No space left on device; free some space"):
        new.begin()


@pytest.mark.parametrize("version", ['"7"', "null", "[2]", "1.5"])
def test_rows_that_no_run_wrote_do_not_prevent_a_resume_and_stay(run, prepare, version):
    foreign = f'{{"policy_version": {version}}}\n'
    for log in (run.metrics, run.evaluations):
        log.write_text(log.read_text() + foreign)
    prepare("--resume", run.path).begin()
    for log in (run.metrics, run.evaluations):
        assert log.read_text() == '{"policy_version": 1}\n' + foreign


def test_run_is_locked_before_its_checkpoint_is_chosen(run, prepare):
    prepare("--resume", run.path)
    with pytest.raises(ConfigError, match="in use by another learner"):
        prepare("--resume", run.path)


def test_resume_auto_starts_continues_and_restarts_in_one_directory(prepare, tmp_path, run):
    assert isinstance(prepare("--resume", "auto", "--run-dir", tmp_path / "new"), NewRun)
    resumed = prepare("--resume", "auto", "--run-dir", run.path)
    assert isinstance(resumed, ResumedRun)
    resumed.close()
    for path in list_checkpoints(run.checkpoints):
        path.rename(path.with_name(f"{path.name}.aside-1"))
    again = prepare(*SMALL, "--seed", "5", "--resume", "auto", "--run-dir", run.path)
    assert isinstance(again, NewRun) and again.lock is not None
    again.begin()
    assert run.read_config().seed == 5
    for log in (run.metrics, run.evaluations):
        assert log.read_text() == ""
        assert len(log.with_name(f"{log.name}.abandoned").read_text().splitlines()) == 2


def test_runs_that_start_in_the_same_second_get_different_names(prepare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: "20260101-000000")
    runs = [prepare("--device", "cpu") for _ in range(3)]
    for run in runs:
        run.claim()
    name = "coinrun-lab-20260101-000000"
    assert [run.run.path.name for run in runs] == [name, f"{name}-2", f"{name}-3"]
    runs[1].begin()
    for run in runs:
        run.close()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [f"{name}-2"]  # only this one began


def test_refused_start_leaves_nothing_behind(prepare, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = prepare("--device", "cpu")
    run.claim()
    assert run.run.path.is_dir()
    run.close()
    assert list(tmp_path.iterdir()) == []


def test_a_name_given_by_the_user_is_not_changed(prepare, tmp_path):
    run = prepare("--device", "cpu", "--run-dir", tmp_path / "run")
    run.claim()
    assert run.run.path == tmp_path / "run" and list(tmp_path.iterdir()) == []


def test_run_can_be_opened_to_the_group_and_closed_again_when_it_is_resumed(run, prepare):
    def modes():
        return {path.stat().st_mode & 0o777 for path in (run.path, *run.path.rglob("*"))}

    for flag, expected in [("--group-readable", {0o750, 0o640}), ("--no-group-readable", {0o700, 0o600})]:
        resumed = prepare("--resume", run.path, flag)
        set_file_modes(resumed.config.group_readable)
        resumed.begin()
        resumed.close()
        assert modes() == expected


def test_only_the_runs_own_files_get_other_modes_when_it_is_opened_to_the_group(run, prepare, tmp_path):
    program, nested = run.path / "program.sh", run.path / "other-run" / "config.json"
    nested.parent.mkdir(mode=0o700)
    for path, mode in [(program, 0o755), (nested, 0o600)]:
        path.touch(mode)
        path.chmod(mode)
    abandoned = run.path / "metrics.jsonl.abandoned"
    abandoned.touch(0o600)
    link = tmp_path / "link"
    link.symlink_to(run.path)
    resumed = prepare("--resume", link, "--group-readable")
    resumed.begin()
    resumed.close()
    assert [path.stat().st_mode & 0o777 for path in (program, nested.parent, nested)] == [0o755, 0o700, 0o600]
    assert [path.stat().st_mode & 0o777 for path in (run.path, run.metrics, abandoned)] == [0o750, 0o640, 0o640]
    assert {path.stat().st_mode & 0o777 for path in run.checkpoints.rglob("*")} == {0o750, 0o640}


@pytest.mark.parametrize(("flag", "expected"), [("--group-readable", {0o750, 0o640}), (None, {0o700, 0o600})])
def test_new_run_has_the_modes_asked_for(prepare, tmp_path, flag, expected):
    new = prepare("--device", "cpu", "--run-dir", tmp_path / "a" / "run", *filter(None, [flag]))
    set_file_modes(new.config.group_readable)
    new.begin()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*")} == expected
