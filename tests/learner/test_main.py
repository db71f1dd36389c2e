"""What a resumed run says about how exactly it continues, and which checkpoint is the best one then."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.storage.checkpoints import save_checkpoint
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.main import _announce, _begin, _continuation
from learner.run_state import RunState
from learner.startup.flags import parse
from learner.startup.preparation import NewRun, ResumedRun, prepare_run
from tests.conftest import tiny_config

EXACT = "it continues bit for bit if the machine, the software and the settings are the same"
LAG_2 = {"mode": "overlap", "max_policy_lag": 2}


def continuation(version, weights=(), actors=(0, 1), num_actors=2, on_gpu=None, **settings):
    """Of a run with `settings`, resumed from a checkpoint of two actors that holds `weights` of these versions."""
    config = tiny_config(num_actors=num_actors, envs_per_actor=4 // num_actors, **settings)
    config = replace(config, **(on_gpu or {}))
    checkpoint = SimpleNamespace(policy_version=version, config=tiny_config())
    prepared = ResumedRun(config, {}, None, checkpoint, None, {})
    state = RunState.new(config)
    state.actors, state.weights = dict.fromkeys(actors), {v: {} for v in weights}
    return _continuation(prepared, state)


@pytest.mark.parametrize(
    ("version", "weights", "settings"),
    [(0, (), {}), (5, (), {}), (0, (), LAG_2), (1, (0,), LAG_2), (5, (3, 4), LAG_2)],
)
def test_run_continues_bit_for_bit_with_every_weight_in_use(version, weights, settings):
    assert continuation(version, weights, **settings) == EXACT


def test_reason_is_given_where_a_run_does_not_continue_bit_for_bit():
    assert "newest weights (--repeatable no, or" in continuation(5, **LAG_2, repeatable=False)
    for weights in ((), (4,)):  # written in sync mode, or with a smaller lag
        assert "the checkpoint lacks the weights" in continuation(5, weights, **LAG_2)
    assert "environments of 1 of 2 actors continue" in continuation(5, (3, 4), actors=(1,), **LAG_2)
    assert "only while all 2 actors are ready" in continuation(5, min_actors=1)
    assert "environments start again" in continuation(5, (3, 4), num_actors=4, **LAG_2)
    for on_gpu in ({"device": "cuda"}, {"actor_gpus": 0.5}):
        assert "a GPU's algorithms need not repeat bits" in continuation(5, on_gpu=on_gpu)


@pytest.mark.parametrize(
    ("settings", "warnings"),
    [
        ({}, []),
        ({"learner_threads": 1, "micro_batch": 32}, []),
        ({"learner_threads": 10_000}, ["--learner-threads 10000 is more than the"]),
        ({"micro_batch": 33}, ["--micro-batch 33 exceeds the minibatch of 32 samples"]),
    ],
)
def test_setting_beyond_what_there_is_gives_a_warning(settings, warnings, caplog):
    prepared = NewRun(tiny_config(**settings), dict(settings), RunDirectory(Path("run")))
    _announce(prepared, None, None, SimpleNamespace(note=lambda text: None), "embedded local Ray")
    assert len(caplog.messages) == len(warnings)
    assert all(text.startswith(start) for text, start in zip(caplog.messages, warnings, strict=True))


def begin_after_a_damaged_checkpoint(run, scores):
    """Resumes `run` from checkpoint 4 after checkpoint 6, which is damaged, was the best; `scores` by version."""
    config = tiny_config()
    run.create()
    run.write_config(config, {})
    for version in (0, 2, 4, 6):
        save_checkpoint(run.checkpoints, config, version, 64 * version, {}, {})
    run.set_best_checkpoint("00000006")
    for version, mean in scores.items():
        shown = {"mean": mean, "interval": [mean - 1, mean + 1], "levels": 2, "episodes": 2}
        shown |= dict.fromkeys(("normalized", "success_rate", "timeout_rate"), 0.0)
        numbers = ("frames", "updates_behind", "skipped", "generalization_gap", "seconds")
        row = {"policy_version": version, **dict.fromkeys(numbers, 1), "policy_sha256": "", "held_out_split": "test"}
        scoreboard = {"test": dict.fromkeys(("solved", "newly_solved", "forgotten"), 0)}
        splits = dict.fromkeys(("train", "validation", "held_out"), shown)
        append_jsonl(run.evaluations, {**row, **splits, "scoreboard": scoreboard})
    (run.checkpoints / "00000006" / "learner.pt").write_bytes(b"")
    prepared = prepare_run(parse(["--resume", str(run.path)]))
    try:
        _begin(prepared, SimpleNamespace(open=lambda path: None))
    finally:
        prepared.close()


def test_best_checkpoint_that_was_set_aside_is_replaced_by_the_best_that_remains(tmp_path):
    run = RunDirectory(tmp_path / "run")
    begin_after_a_damaged_checkpoint(run, {0: 3.0, 2: 5.0, 3: 7.0, 4: 4.0, 6: 9.0})  # 3 was pruned
    assert run.best_checkpoint() == "00000002" and (run.best / "manifest.json").exists()


def test_no_checkpoint_is_best_where_the_only_scored_one_was_set_aside(tmp_path):
    run = RunDirectory(tmp_path / "run")
    begin_after_a_damaged_checkpoint(run, {6: 9.0})
    assert run.best_checkpoint() is None and not run.best.is_symlink()
