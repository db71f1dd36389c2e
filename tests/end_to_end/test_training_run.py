"""The real main with tiny settings, seen from outside: what it prints, how it exits, what is in the run directory."""

import csv
import json
import shutil

import pytest

from common.storage.checkpoints import list_checkpoints, load_checkpoint

pytestmark = pytest.mark.smoke
TRAINED_FRAMES = 5 * 64


@pytest.fixture(scope="module")
def finished(run_learner, tiny_pair, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("sync") / "run"
    result = run_learner(*tiny_pair, "--run-dir", run_dir, "--mode", "sync", "--total-frames", TRAINED_FRAMES)
    assert result.returncode == 0, result.stdout + result.stderr
    return result, run_dir


def test_run_leaves_one_metrics_row_per_update_with_the_published_names(finished, rows):
    metrics = rows(finished[1] / "metrics.jsonl")
    assert [row["policy_version"] for row in metrics] == [1, 2, 3, 4, 5]
    assert [row["frames"] for row in metrics] == [64, 128, 192, 256, 320]
    assert metrics[-1].keys() >= {
        *("fps", "policy_lag", "policy_objective", "value_loss", "approx_kl", "clip_fraction", "explained_variance"),
        *("entropy", "episode_return", "episode_length", "seconds_waiting", "seconds_training", "learning_rate"),
        *("ratio_error", "lost_rollouts", "dropped_for_lag", "actors_ready"),
        *("actor_restarts", "actors_hung", "skipped_updates"),
    }
    assert all(row["policy_lag"] == 0 == row["max_policy_lag"] for row in metrics)
    assert all(row["lost_rollouts"] == row["dropped_for_lag"] == 0 for row in metrics)


def test_actor_and_learner_arithmetic_agree_before_the_first_step(finished, rows):
    # float32 rounding of other batch sizes, or bfloat16 where the machine has it
    assert all(row["ratio_error"] < 0.02 for row in rows(finished[1] / "metrics.jsonl"))


def test_checkpoints_are_written_at_the_start_the_interval_and_the_end(finished):
    checkpoints = list_checkpoints(finished[1] / "checkpoints")
    assert [path.name for path in checkpoints] == ["00000000", "00000002", "00000004", "00000005"]
    newest = load_checkpoint(checkpoints[-1])
    assert newest.policy_version == 5 and newest.frames == TRAINED_FRAMES
    first = load_checkpoint(checkpoints[0])
    assert any((newest.weights[name] != first.weights[name]).any() for name in first.weights)


def test_untrained_policy_and_last_checkpoint_are_scored_on_both_splits(finished, rows):
    evaluations = rows(finished[1] / "evaluations.jsonl")
    versions = [row["policy_version"] for row in evaluations]
    assert versions[0] == 0 and versions[-1] == 5 and versions == sorted(set(versions))
    for row in evaluations:
        assert row["train"]["levels"] == row["held_out"]["levels"] == 2
        assert row["train"]["episodes"] == row["held_out"]["episodes"] == 2
        assert row["generalization_gap"] == pytest.approx(row["train"]["mean"] - row["held_out"]["mean"])


def test_levels_csv_has_a_row_for_every_scored_level(finished, rows):
    with open(finished[1] / "levels.csv", newline="") as file:
        levels = list(csv.DictReader(file))
    evaluations = rows(finished[1] / "evaluations.jsonl")
    # The untrained policy cannot be the best: it is not scored on validation levels.
    assert len(levels) == 6 * len(evaluations) - 2
    assert {(row["split"], row["level"]) for row in levels} == {
        ("train", "0"),
        ("train", "1"),
        ("test", "2"),
        ("test", "3"),
        ("validation", "4"),
        ("validation", "5"),
    }


def test_plots_videos_and_tensorboard_events_are_written(finished):
    run_dir = finished[1]
    assert (run_dir / "scores.png").read_bytes().startswith(b"\x89PNG")
    videos = list((run_dir / "videos").glob("*.gif"))
    assert videos and all(video.read_bytes().startswith(b"GIF8") for video in videos)
    assert list((run_dir / "tensorboard" / "learner").glob("events.*"))
    assert list((run_dir / "tensorboard" / "evaluator").glob("events.*"))


def test_config_json_repeats_the_run(finished):
    stored = json.loads((finished[1] / "config.json").read_text())
    assert stored["settings"]["num_actors"] == 2 and stored["settings"]["total_frames"] == TRAINED_FRAMES
    assert stored["versions"]["torch"] and stored["versions"]["ray"]


def test_pipe_gets_a_plain_line_per_update_the_final_score_and_no_noise(finished):
    result, run_dir = finished
    lines = result.stdout.splitlines()
    assert sum(line.startswith("update ") for line in lines) == 5
    assert any(line.startswith("final score: train ") for line in lines)
    assert lines[-1] == f"curves: tensorboard --logdir {run_dir / 'tensorboard'}"
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_overlap_mode_trains_on_rollouts_one_version_old(run_learner, tiny, tmp_path, rows):
    result = run_learner(
        *tiny, "--run-dir", tmp_path / "run", "--mode", "overlap", "--total-frames", 256, "--no-evaluator"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["policy_lag"] for row in metrics] == [0, 1, 1, 1]
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()


def test_resume_continues_counters_and_logs_without_a_gap(finished, run_learner, rows, tmp_path):
    # a copy, so that the other tests keep what they look at
    run_dir = tmp_path / "run"
    shutil.copytree(finished[1], run_dir)
    policy = run_dir / "checkpoints" / "00000005" / "policy.safetensors"
    policy.write_bytes(policy.read_bytes()[:-1])
    result = run_learner("--resume", run_dir, "--total-frames", 6 * 64, "--no-evaluator")
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(policy) in result.stderr and "00000004" in result.stderr
    metrics = rows(run_dir / "metrics.jsonl")
    assert [row["policy_version"] for row in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["frames"] == 6 * 64
    assert [row["policy_version"] for row in rows(run_dir / "metrics.jsonl.abandoned")] == [5]
    assert (run_dir / "checkpoints" / "00000005.aside-1").is_dir()
    assert load_checkpoint(run_dir / "checkpoints" / "00000006").frames == 6 * 64
    # the optimizer continued: its step count is that of all six updates, two minibatches each
    state = load_checkpoint(run_dir / "checkpoints" / "00000006").learner_state["learner"]["optimizer"]["state"]
    assert int(state[0]["step"]) == 12
