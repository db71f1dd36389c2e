import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from common.config import Config, resolve
from common.policy_network import PolicyNetwork
from common.storage.checkpoints import load_checkpoint, save_checkpoint
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from evaluator.__main__ import main
from evaluator.commands.playing import level_sets_of
from evaluator.levels.level_sets import draw_level_sets, live_splits
from evaluator.output.score_files import ScoreFiles
from evaluator.scores.evaluation import evaluate

PROJECT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def run(save: Callable[[Path, int], Path], config: Config, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run with checkpoints 0 and 10."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "run")
    run.path.mkdir()
    run.write_config(config, {})
    for version in (0, 10):
        save(run.checkpoints, version)
    return run


def files(run: RunDirectory) -> list[tuple[Path, int]]:
    return sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))


def test_a_runs_newest_checkpoint_is_scored_as_a_table_and_the_run_is_left_as_it_was(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    level_sets_of(load_checkpoint(run.checkpoints / "00000010", policy_only=True))  # levels.json, which is written once
    before = files(run)
    assert main([str(run.path), "--levels"]) == 0
    out = capsys.readouterr().out
    assert "leaper easy, policy_version 10, 10,000 frames" in out
    lines = [line.split() for line in out.splitlines()]
    (train,) = (line for line in lines if line[:3] == ["train", "2", "2"])
    assert train[5] == "to" and train[-1].endswith("%")
    assert [line[:3] for line in lines if line[:1] == ["validation"]] == [
        ["validation", "2", "2"],
        ["validation", "4", "1"],
        ["validation", "5", "1"],
    ]
    assert "generalization gap, training minus validation" in out
    assert files(run) == before


def test_json_is_one_object_and_repeats_the_live_evaluators_scores(
    run: RunDirectory, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(run.checkpoints / "00000010", policy_only=True)
    evaluation = evaluate(checkpoint, draw_level_sets(config)[0].slots(live_splits(config, 10)), 1, config.seed)
    report = ScoreFiles(RunDirectory(tmp_path), config)
    live = report.add(evaluation, skipped=0, eval_seconds=1.0, updates_behind=0)
    report.close()
    assert main(["score", str(run.path), "--json", "--levels"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["levels"] == [asdict(level) for level in evaluation.levels if level.split != "test"]
    same = ("policy_version", "frames", "train", "validation", "policy_sha256")
    assert {name: row[name] for name in same} == json.loads(json.dumps({name: live[name] for name in same}))


def test_one_split_of_a_checkpoint_given_by_path(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--split", "validation", "--episodes-per-level", "2", "--seed", "3", "--json", "--levels"]
    assert main(["score", str(run.checkpoints / "00000000"), *options]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["policy_version"] == 0 and "train" not in row and row["generalization_gap"] is None
    assert (row["held_out"]["episodes"], row["episodes_per_level"], row["seed"]) == (4, 2, 3)
    assert [level["level"] for level in row["levels"]] == [4, 5]


def test_every_use_of_the_test_levels_is_logged_and_counted(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(read_jsonl(run.test_uses))
    for use in (1, 2):
        assert main(["score", str(run.path), "--split", "test", "--json"]) == 0
        captured = capsys.readouterr()
        row = json.loads(captured.out)
        assert row["held_out_split"] == "test" and row["test"] == row["held_out"]
        assert f"use {before + use} of the test levels" in captured.err
    uses = read_jsonl(run.test_uses)[before:]
    assert [(use["command"], use["policy_version"]) for use in uses] == [("score", 10), ("score", 10)]
    assert main(["score", str(run.path), "--json"]) == 0
    assert len(read_jsonl(run.test_uses)) == before + 2


def test_comparing_a_policy_with_itself_shows_no_difference(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run.checkpoints / name) for name in ("00000000", "00000010")]  # the same weights
    assert main(["compare", *paths, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["validation"]["difference"] == 0 and result["validation"]["interval"] == [0, 0]
    assert main(["compare", *paths]) == 0
    assert "no difference was seen" in capsys.readouterr().out


def test_levels_prints_what_the_audit_removed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env-name", "jumper", "--num-levels", "2", "--held-out-levels", "20"]
    assert main(["levels", *options]) == 0
    out = capsys.readouterr().out
    assert "ends immediately under every action" in out and "train: [0, 2)" in out
    assert main(["levels", *options, "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert f"{len(contents['audit']['removed']) / contents['audit']['judged']:.1%}" in out


def test_backfill_scores_every_checkpoint_of_a_run_once(
    save: Callable[[Path, int], Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    for version in (0, 10, 20):
        save(run.checkpoints, version)
    assert main(["score", str(tmp_path), "--backfill"]) == 0
    assert "3 checkpoints scored, 3 in all" in capsys.readouterr().out
    assert sorted(row["policy_version"] for row in read_jsonl(run.evaluations)) == [0, 10, 20]
    assert main(["score", str(tmp_path), "--backfill"]) == 0
    assert "0 checkpoints scored, 3 in all" in capsys.readouterr().out
    for kind in ("worst", "typical"):
        assert main(["film", str(tmp_path), "--which", kind, "--output", str(tmp_path / f"{kind}.gif")]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "evaluation of policy_version 20" in capsys.readouterr().out


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_taken(
    save: Callable[[Path, int], Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    save(run.checkpoints, 0)
    (save(run.checkpoints, 10) / "manifest.json").unlink()
    assert main([str(run.path), "--json", "--split", "train"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["policy_version"] == 0
    assert "00000010/manifest.json is missing" in captured.err and captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/nowhere"], "evaluator: {tmp}/nowhere does not exist"),
        (["score", "{tmp}"], "evaluator: {tmp} is neither a run directory nor a checkpoint"),
        (["score", "{tmp}/empty"], "evaluator: there is no complete checkpoint in {tmp}/empty/checkpoints"),
        (["{tmp}/broken/00000010"], "evaluator: {tmp}/broken/00000010/policy.safetensors has 3 bytes, the manifest"),
        (["{run}", "--episodes-per-level", "0"], "evaluator score: argument --episodes-per-level: 0 must be at least"),
        (["{run}", "--episodes-per-level", "x"], "evaluator score: argument --episodes-per-level: 'x' is no whole nu"),
        (["{run}", "--split", "held_out"], "evaluator score: argument --split: invalid choice: 'held_out'"),
        (["score", "{tmp}", "--backfill"], "evaluator: {tmp} is no run directory (it has no config.json)"),
        (["film", "{run}", "--output", "{tmp}/n.gif", "--level", "2147483647"], "evaluator film: argument --level: 21"),
        (["film", "{run}", "--output", "{tmp}/n.gif", "--level", "-1"], "evaluator film: argument --level: -1 must be"),
        (["film", "{run}", "--output", "{tmp}/old.gif"], "evaluator: --output {tmp}/old.gif exists already and is no"),
        (["film", "{run}", "--output", "{tmp}/no/n.gif"], "evaluator: --output {tmp}/no/n.gif: {tmp}/no is no direct"),
        (
            ["film", "{run}", "--output", "{tmp}/n.gif", "--which", "worst"],
            "evaluator: {run}/checkpoints/00000010 has ",
        ),
        (["compare", "{run}", "{tmp}/nowhere"], "evaluator: {tmp}/nowhere does not exist"),
        (["compare", "{run}", "{tmp}/maze"], "evaluator: A plays leaper easy and B plays maze easy: they have no lev"),
        (["compare", "{run}"], "evaluator compare: the following arguments are required: B"),
        (["levels", "--env-name", "pong"], "evaluator levels: argument --env-name: invalid choice: 'pong'"),
        (["levels", "--num-levels", "-2"], "evaluator levels: argument --num-levels: -2 must be from 0"),
        (["report", "{run}"], "evaluator: {run} has no evaluations yet"),
        (["report", "{tmp}"], "evaluator: {tmp} is no run directory"),
        (["watch", "{tmp}"], "evaluator: {tmp} is no run directory"),
        (["watch", "{run}", "--interval", "0"], "evaluator watch: argument --interval: 0 must be from 0.1"),
        ([], "evaluator: the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    run: RunDirectory,
    save: Callable[[Path, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old.gif").write_bytes(b"mine")
    (save(tmp_path / "broken", 10) / "policy.safetensors").write_bytes(b"abc")
    maze = resolve("lab", {"env_name": "maze"}, available_cores=1)
    save_checkpoint(tmp_path / "maze" / "checkpoints", maze, 0, 0, PolicyNetwork(maze.network).weights(), {})
    try:
        code = main([part.format(tmp=tmp_path, run=run.path) for part in arguments])
    except SystemExit as exit:  # argparse ends the process itself
        code = exit.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith(message.format(tmp=tmp_path, run=run.path)) and captured.err.count("\n") == 1
    assert (tmp_path / "old.gif").read_bytes() == b"mine"


def test_ctrl_c_ends_with_130_and_one_line(run: RunDirectory) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluator", str(run.path), "--episodes-per-level", "1000"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        time.sleep(5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "evaluator: interrupted\n")


def test_help_needs_neither_torch_nor_procgen() -> None:
    code = "import sys, evaluator.__main__; print(sorted({'torch', 'procgen', 'matplotlib', 'ray'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "[]\n", result.stderr
