import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import imageio.v2 as imageio
import pytest

from common.config import Config
from common.run_directory import RunDirectory
from evaluator.__main__ import main
from evaluator.report import Report

PROJECT = Path(__file__).parents[2]


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
    before = files(run)
    assert main([str(run.path), "--levels"]) == 0
    out = capsys.readouterr().out
    assert "leaper easy, policy_version 10, 10,000 frames" in out
    lines = [line.split() for line in out.splitlines()]
    (train,) = (line for line in lines if line[:3] == ["train", "2", "2"])
    assert train[4] == "±" and train[-1].endswith("%")
    assert [line[:3] for line in lines if line[:1] == ["held_out"]] == [
        ["held_out", "2", "2"],
        ["held_out", "2", "1"],
        ["held_out", "3", "1"],
    ]
    assert "generalization gap" in out
    assert files(run) == before


def test_json_is_one_object_and_repeats_the_live_evaluators_scores(
    run: RunDirectory, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from common.checkpoints import load_checkpoint
    from evaluator.evaluation import evaluate
    from evaluator.level_sets import level_sets

    checkpoint = load_checkpoint(run.checkpoints / "00000010", policy_only=True)
    evaluation = evaluate(checkpoint, level_sets(config).slots(), 1, config.seed)
    live = Report(RunDirectory(tmp_path), config).add(evaluation, skipped=0)
    assert main([str(run.path), "--json", "--levels"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["levels"] == [asdict(level) for level in evaluation.levels]
    same = ("policy_version", "frames", "train", "held_out", "generalization_gap", "policy_sha256")
    assert {name: row[name] for name in same} == {name: live[name] for name in same}


def test_one_split_of_a_checkpoint_given_by_path_and_with_a_film(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gif = tmp_path / "level.gif"
    path = run.checkpoints / "00000000"
    options = ["--split", "held_out", "--episodes-per-level", "2", "--seed", "3", "--json", "--levels"]
    assert main([str(path), *options, "--gif", str(gif), "--level", "77"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["policy_version"] == 0 and "train" not in row and row["generalization_gap"] is None
    assert (row["held_out"]["episodes"], row["episodes_per_level"], row["seed"]) == (4, 2, 3)
    assert [level["level"] for level in row["levels"]] == [2, 3]
    assert row["film"]["level"] == 77
    assert len(imageio.mimread(gif, memtest=False)) > 5


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
        (["{tmp}/nowhere"], "{tmp}/nowhere does not exist"),
        (["{tmp}"], "{tmp} is neither a run directory nor a checkpoint"),
        (["{tmp}/empty"], "there is no complete checkpoint in {tmp}/empty/checkpoints"),
        (["{tmp}/broken/00000010"], "{tmp}/broken/00000010/policy.safetensors has 3 bytes, the manifest says"),
        (["{run}", "--episodes-per-level", "0"], "argument --episodes-per-level: 0 must be at least 1"),
        (["{run}", "--episodes-per-level", "many"], "argument --episodes-per-level: 'many' is no whole number"),
        (["{run}", "--gif", "{tmp}/new.gif", "--level", "2147483647"], "argument --level: 2147483647 must be from 0"),
        (["{run}", "--gif", "{tmp}/new.gif", "--level", "-1"], "argument --level: -1 must be from 0"),
        (["{run}", "--level", "3"], "--level says which level to film; give --gif FILE too"),
        (["{run}", "--gif", "{tmp}/old.gif"], "--gif {tmp}/old.gif exists already and is not overwritten"),
        (["{run}", "--gif", "{tmp}/no/new.gif"], "--gif {tmp}/no/new.gif: {tmp}/no is no directory"),
        (["{run}", "--split", "test"], "argument --split: invalid choice: 'test'"),
        ([], "the following arguments are required: RUN_DIR_OR_CHECKPOINT"),
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
    try:
        code = main([part.format(tmp=tmp_path, run=run.path) for part in arguments])
    except SystemExit as exit:  # argparse ends the process itself
        code = exit.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith("evaluator: " + message.format(tmp=tmp_path)) and captured.err.count("\n") == 1
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
