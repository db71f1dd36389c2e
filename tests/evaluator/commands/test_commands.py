import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.config import Config, ConfigError
from common.policy_network import PolicyNetwork
from common.resolution import resolve
from common.storage.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from common.storage.jsonl import read_jsonl
from common.storage.run_directory import RunDirectory
from evaluator import service
from evaluator.__main__ import main
from evaluator.commands import parser, playing
from evaluator.commands.playing import level_sets_of
from evaluator.levels import level_sets
from evaluator.levels.level_file import stored_level_sets
from evaluator.levels.level_sets import draw_level_sets, live_splits
from evaluator.output.score_files import ScoreFiles
from evaluator.scores.evaluation import Evaluation, evaluate
from tests.conftest import wait_until
from tests.evaluator.conftest import LEFT, UP, SaveBlind

PROJECT = Path(__file__).parents[3]
AT_LEAST_ONE = "evaluator score: --episodes-per-level: expected a whole number of at least 1, "
VIDEO = ["video", "{run}", "--output", "{tmp}/new.gif"]


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


def test_score_prints_the_newest_checkpoints_scores_and_leaves_the_run_unchanged(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    level_sets_of(load_checkpoint(run.checkpoints / "00000010", policy_only=True))  # levels.json, which is written once
    before = files(run)
    assert main([str(run.path), "--levels", "--episodes-per-level", "2"]) == 0
    out = capsys.readouterr().out
    assert "leaper easy, policy_version 10, 10,000 frames" in out
    lines = [line.split() for line in out.splitlines()]
    (train,) = (line for line in lines if line[:3] == ["train", "2", "4"])
    assert train[5] == "to" and train[-1].endswith("%")
    assert [line[:3] for line in lines if line[:1] == ["validation"]] == [
        ["validation", "2", "4"],
        ["validation", "4", "2"],
        ["validation", "5", "2"],
    ]
    assert "train: interval about these levels\nvalidation: interval about all levels\n" in out
    assert "generalization gap, training minus validation" in out
    assert files(run) == before


def test_score_json_equals_the_live_evaluators_scores(
    run: RunDirectory, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(run.checkpoints / "00000010", policy_only=True)
    evaluation = evaluate(checkpoint, draw_level_sets(config)[0].slots(live_splits(config, 10)), 1, config.seed)
    other = RunDirectory(tmp_path)
    other.write_config(config, {})
    report = ScoreFiles(other, config)
    live = report.add(evaluation, skipped=0, eval_seconds=0.0, updates_behind=0)
    report.close()
    assert main(["score", str(run.path), "--json", "--levels"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["levels"] == [asdict(level) for level in evaluation.levels if level.split != "test"]
    same = ("policy_version", "frames", "train", "validation", "policy_sha256")
    assert {name: row[name] for name in same} == json.loads(json.dumps({name: live[name] for name in same}))


def test_score_plays_one_split_of_a_checkpoint_path(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--split", "validation", "--episodes-per-level", "2", "--seed", "3", "--json", "--levels"]
    assert main(["score", str(run.checkpoints / "00000000"), *options]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["policy_version"] == 0 and "train" not in row and row["generalization_gap"] is None
    assert (row["held_out"]["episodes"], row["episodes_per_level"], row["seed"]) == (4, 2, 3)
    assert [level["level"] for level in row["levels"]] == [4, 5]


def test_score_of_all_levels_is_about_all_levels_and_logs_no_use_of_the_test_levels(
    run: RunDirectory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(level_sets, "ALL_LEVELS", 3)
    before = len(read_jsonl(run.test_uses))
    assert main(["score", str(run.path), "--split", "all", "--json", "--levels"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["all"]["levels"], row["all"]["about"]) == (3, "all levels") and "held_out" not in row
    assert row["held_out_split"] is None
    assert [(level["split"], level["level"]) for level in row["levels"]] == [
        ("all", level) for level in stored_level_sets(run, run.read_config()).of("all")
    ]
    assert main(["score", str(run.path), "--split", "train", "all"]) == 0
    assert re.search(r"^all +3 +3 ", capsys.readouterr().out, re.MULTILINE)
    assert len(read_jsonl(run.test_uses)) == before


def test_each_use_of_the_test_levels_is_logged_and_counted(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(read_jsonl(run.test_uses))
    for use in (1, 2):
        assert main(["score", str(run.path), "--split", "test", "--json"]) == 0
        captured = capsys.readouterr()
        row = json.loads(captured.out)
        assert row["held_out_split"] == "test" and row["test"] == row["held_out"]
        assert f"use number {before + use} of the test levels" in captured.err
    uses = read_jsonl(run.test_uses)[before:]
    assert [(use["command"], use["policy_version"]) for use in uses] == [("score", 10), ("score", 10)]
    assert main(["score", str(run.path), "--json"]) == 0
    assert len(read_jsonl(run.test_uses)) == before + 2


def test_each_video_of_a_test_level_is_logged_before_it_is_played(
    save: Callable[[Path, int], Path],
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.write_config(config, {})
    save(run.checkpoints, 10)
    assert main(["score", str(run.path), "--backfill"]) == 0  # levels: training 0, 1; test 2, 3; validation 4, 5
    for number, (flags, logs) in enumerate(
        [
            (["--split", "test"], True),
            ([], True),  # the live split
            (["--level", "3"], True),
            (["--level", "0"], False),
            (["--level", "4"], False),
            (["--split", "train"], False),
            (["--split", "validation", "--which", "typical"], False),
        ]
    ):
        before = len(read_jsonl(run.test_uses))
        capsys.readouterr()
        assert main(["video", str(run.path), "--output", str(tmp_path / f"{number}.gif"), *flags]) == 0
        assert len(read_jsonl(run.test_uses)) == before + logs
        assert (f"use number {before + 1} of the test levels" in capsys.readouterr().err) is logs, flags
    use = read_jsonl(run.test_uses)[-1]
    assert (use["command"], use["policy_version"], use["episodes_per_level"]) == ("video", 10, 1)
    assert main(["video", str(run.path), "--output", str(tmp_path / "0.gif"), "--split", "test"]) == 2  # it exists
    assert len(read_jsonl(run.test_uses)) == 3
    monkeypatch.setattr(os, "access", lambda path, mode: path != run.test_uses)  # root may write everywhere
    assert main(["video", str(run.path), "--output", str(tmp_path / "new.gif")]) == 2
    assert f"cannot log the use of the test levels in {run.test_uses}" in capsys.readouterr().err
    assert not (tmp_path / "new.gif").exists()


def test_score_says_why_one_episode_per_level_has_no_interval(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run.path)]) == 0  # the run's one episode per level
    out = capsys.readouterr().out
    assert "train: no interval, one episode per level; two are needed for an interval about these levels" in out
    (gap,) = (line for line in out.splitlines() if line.startswith("generalization gap"))
    assert "[" not in gap


def test_compare_shows_no_difference_between_equal_policies(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(run.checkpoints / name) for name in ("00000000", "00000010")]  # the same weights
    assert main(["compare", *paths, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    low, high = result["validation"]["interval"]
    assert result["validation"]["difference"] == 0 and low == -high < 0  # equal so far, which is not certainty
    assert (result["train"]["about"], result["validation"]["about"]) == ("these levels", "all levels")
    assert main(["compare", *paths]) == 0
    assert "no difference was seen" in capsys.readouterr().out


@pytest.fixture(scope="module")
def zigzag_and_up(config: Config, save_blind: SaveBlind, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two checkpoints of one run, on whose validation levels the first policy gets 0 and 0, the second 10 and 0."""
    run = RunDirectory(tmp_path_factory.mktemp("policies") / "run")
    run.create()
    run.write_config(config, {})
    return [str(save_blind(run.checkpoints, version, actions)) for version, actions in enumerate(([LEFT, UP], [UP]))]


def test_compare_shows_b_minus_a(zigzag_and_up: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for paths, means, difference in ((zigzag_and_up, "0.00 5.00", 5.0), (zigzag_and_up[::-1], "5.00 0.00", -5.0)):
        command = ["compare", *paths, "--split", "validation"]
        assert main([*command, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        low, high = result["validation"]["interval"]
        assert result["validation"]["difference"] == difference and low < difference < high
        assert [result["A"], result["B"]] == paths
        assert main(command) == 0
        (row,) = re.findall(r"^validation +2 +1 +(.*)$", capsys.readouterr().out, re.MULTILINE)
        assert " ".join(row.split()).startswith(f"{means} {difference:+.2f} ")


def test_compare_plays_both_on_the_same_levels_with_the_same_random_numbers(
    zigzag_and_up: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def record(checkpoint: Checkpoint, *how: Any) -> Evaluation:
        played.append((checkpoint.path, how))
        return evaluate(checkpoint, *how)

    monkeypatch.setattr(playing, "evaluate", record)
    assert main(["compare", *zigzag_and_up, "--split", "validation", "--seed", "3"]) == 0
    slots = [("validation", 4), ("validation", 5)]
    assert played == [(Path(path), (slots, 1, 3, False)) for path in zigzag_and_up]


def test_levels_prints_what_the_audit_removed(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env-name", "jumper", "--num-levels", "2", "--held-out-levels", "20"]
    assert main(["levels", *options]) == 0
    out = capsys.readouterr().out
    assert "ends immediately under every action" in out and "train: [0, 2)" in out
    assert main(["levels", *options, "--json"]) == 0
    contents = json.loads(capsys.readouterr().out)
    assert f"{len(contents['audit']['removed']) / contents['audit']['judged']:.1%}" in out


def test_backfill_scores_each_checkpoint_once_and_all_commands_show_it(
    save: Callable[[Path, int], Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    for version in (0, 10, 20):
        save(run.checkpoints, version)
    assert main(["score", str(tmp_path), "--backfill"]) == 0
    assert "3 checkpoints scored, 3 in total" in capsys.readouterr().out
    assert sorted(row["policy_version"] for row in read_jsonl(run.evaluations)) == [0, 10, 20]
    assert main(["score", str(tmp_path), "--backfill"]) == 0
    assert "0 checkpoints scored, 3 in total" in capsys.readouterr().out
    for kind in ("worst", "typical"):
        assert main(["video", str(tmp_path), "--which", kind, "--output", str(tmp_path / f"{kind}.gif")]) == 0
    assert main(["report", str(tmp_path)]) == 0
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "evaluation of policy_version 20" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], ["--backfill"]])
@pytest.mark.parametrize(
    ("change", "reason"), [('"test": [', "was edited: its sha256 does not match"), ("{", "cannot be read: Expecting")]
)
def test_changed_levels_are_refused_in_one_line(
    save: Callable[[Path, int], Path],
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    change: str,
    reason: str,
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    save(run.checkpoints, 10)
    stored_level_sets(run, config)
    run.level_sets.write_text(run.level_sets.read_text().replace(change, f"{change}6,", 1))
    assert main(["score", str(tmp_path), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evaluator: {run.level_sets} {reason}")


def test_video_of_a_run_uses_its_newest_checkpoint_with_scores(
    save: Callable[[Path, int], Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    save(run.checkpoints, 10)
    assert main(["score", str(tmp_path), "--backfill"]) == 0
    newest = save(run.checkpoints, 20)  # what Ctrl-C leaves
    capsys.readouterr()
    assert main(["video", str(tmp_path), "--output", str(tmp_path / "a.gif"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["policy_version"] == 10
    used = run.checkpoints / "00000010"
    assert captured.err.startswith(f"evaluator: the newest checkpoint has no scores yet; using {used}\n")
    assert main(["video", str(newest), "--output", str(tmp_path / "b.gif")]) == 2  # that one and no other


def test_best_is_scored_by_its_path_also_without_links(
    save: Callable[[Path, int], Path], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    for version in (10, 20):
        save(run.checkpoints, version)
    run.best_text.write_text("00000010\n")
    for command in ([], ["score"]):
        assert main([*command, str(run.best), "--split", "train", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["policy_version"] == 10


def test_backfill_of_damaged_checkpoints_alone_is_refused_and_names_them(
    save: Callable[[Path, int], Path],
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    (save(run.checkpoints, 10) / "manifest.json").unlink()
    assert main(["score", str(tmp_path), "--backfill"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"evaluator: no complete checkpoint in {run.checkpoints}\n")
    assert "00000010/manifest.json is missing" in caplog.text


def test_backfill_whose_scoring_is_refused_ends_in_one_line(
    save: Callable[[Path, int], Path],
    config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def edited(run: RunDirectory, config: Config) -> level_sets.LevelSets:
        raise ConfigError("levels.json was edited")

    run = RunDirectory(tmp_path)
    run.write_config(config, {})
    save(run.checkpoints, 10)
    monkeypatch.setattr(service, "stored_level_sets", edited)
    assert main(["score", str(tmp_path), "--backfill"]) == 2
    assert capsys.readouterr().err == "evaluator: levels.json was edited\n"


def test_damaged_newest_checkpoint_is_named_and_the_previous_one_used(
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
        (
            ["{tmp}/nowhere"],
            "evaluator: {tmp}/nowhere is neither a command (score, compare, video, levels, report, watch, aggregate)",
        ),
        (
            ["film", "{run}"],
            "evaluator: film is neither a command (score, compare, video, levels, report, watch, aggregate) nor",
        ),
        (["score", "{tmp}/nowhere"], "evaluator: {tmp}/nowhere does not exist"),
        (["score", "{tmp}"], "evaluator: {tmp} is neither a run directory nor a checkpoint"),
        (["score", "{tmp}/empty"], "evaluator: no complete checkpoint in {tmp}/empty/checkpoints"),
        (
            ["{tmp}/broken/00000010"],
            "evaluator: {tmp}/broken/00000010/policy.safetensors has 3 bytes, but the manifest",
        ),
        (["{tmp}/resume/00000011"], "evaluator: {tmp}/resume/00000011 is a resume point, which only --resume reads"),
        (["{run}", "--episodes-per-level", "0"], AT_LEAST_ONE + "got '0'"),
        (["{run}", "--episodes-per-level", "x"], AT_LEAST_ONE + "got 'x'"),
        (["{run}", "--split", "held_out"], "evaluator score: --split: unknown value 'held_out'; choose from train, "),
        (["score", "{run}", "--jsno"], "evaluator: --jsno: unknown flag; did you mean --json?"),
        (
            ["score", "{run}", "--backfill", "--seed", "3", "--split", "train", "validation"],
            "evaluator score: --backfill: scores as during training; leave --split, --seed out",
        ),
        (
            ["{run}", "--backfill", "--json", "--levels", "--policy", "greedy", "--episodes-per-level", "2"],
            "evaluator score: --backfill: scores as during training; leave --episodes-per-level, --policy, --json, --l",
        ),
        (["score", "{tmp}", "--backfill"], "evaluator: {tmp} is not a run directory (it has no config.json)"),
        ([*VIDEO, "--level", "2147483647"], "evaluator video: --level: expected a whole number from 0 to 21"),
        ([*VIDEO, "--level", "-1"], "evaluator video: --level: expected a whole number from 0 to 2147483646"),
        ([*VIDEO, "--episode", "10000"], "evaluator video: --episode: expected a whole number from 0 to 9999"),
        ([*VIDEO, "--resolution", "128"], "evaluator video: --resolution: unknown value '128'; choose from 64, 512"),
        ([*VIDEO, "--level", "1", "--split", "test"], "evaluator: --split and --level cannot be combined"),
        ([*VIDEO, "--output", "{tmp}/old.gif"], "evaluator: --output {tmp}/old.gif already exists and is not overwr"),
        ([*VIDEO, "--output", "{tmp}/no/n.gif"], "evaluator: --output {tmp}/no/n.gif: {tmp}/no is not a directory"),
        ([*VIDEO, "--which", "worst"], "evaluator: {run}/checkpoints/00000010 has no scores on test levels"),
        (["score", "/"], "evaluator: / is neither a run directory nor a checkpoint"),
        (["score", "/nowhere"], "evaluator: /nowhere does not exist"),
        (["compare", "{run}", "{tmp}/nowhere"], "evaluator: {tmp}/nowhere does not exist"),
        (["compare", "{run}", "{tmp}/maze"], "evaluator: A plays leaper easy and B plays maze easy: they have no lev"),
        (["compare", "{run}"], "evaluator compare: the following arguments are required: B"),
        (["levels", "--env-name", "pong"], "evaluator levels: --env-name: unknown value 'pong'; choose from bigfish, "),
        (["levels", "--num-levels", "-2"], "evaluator levels: --num-levels: expected a whole number from 0"),
        (["levels", "--num-levels", "2147483646", "--held-out", "next"], "evaluator: --"),
        (
            ["levels", "--num-levels", "5", "--held-out-levels", "2000000"],
            "evaluator: --held-out-levels: must be between 1 and 1000000, got 2000000",
        ),
        (["report", "{run}"], "evaluator: {run} has no evaluations yet"),
        (["report", "{run}", "--output", "{tmp}/old.gif"], "evaluator: {run} has no evaluations yet"),
        (["report", "{tmp}"], "evaluator: {tmp} is not a run directory"),
        (["watch", "{tmp}"], "evaluator: {tmp} is not a run directory"),
        (
            ["watch", "{run}", "--interval", "0"],
            "evaluator watch: --interval: expected a number of seconds fr",
        ),
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
    save(tmp_path / "resume", 11)
    maze = resolve("lab", {"env_name": "maze"})
    save_checkpoint(tmp_path / "maze" / "checkpoints", maze, 0, 0, PolicyNetwork(maze.network).weights(), {})
    try:
        code = main([part.format(tmp=tmp_path, run=run.path) for part in arguments])
    except SystemExit as exit:  # argparse ends the process itself
        code = exit.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2 and captured.out == ""
    assert captured.err.startswith(message.format(tmp=tmp_path, run=run.path)) and captured.err.count("\n") == 1
    assert (tmp_path / "old.gif").read_bytes() == b"mine"


@pytest.mark.parametrize("flag", ["--json", "--backfill"])
def test_ctrl_c_ends_with_130_and_one_line(flag: str, config: Config, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    endless = replace(config, eval_episodes_per_level=1000)
    run.write_config(endless, {})
    save_checkpoint(run.checkpoints, endless, 10, 10_000, PolicyNetwork(config.network).weights(), {})
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluator", "score", str(run.path), flag],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        watched = psutil.Process(process.pid)
        wait_until(lambda: any("procgen" in mapped.path for mapped in watched.memory_maps()), process)
        if flag == "--backfill":  # its own thread plays
            wait_until(run.evaluator_lock.exists, process)
        time.sleep(1)  # it plays now
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "evaluator: interrupted\n")


@pytest.mark.parametrize(
    ("redirection", "exit_code", "err"),
    [
        ("> /dev/full", 1, "evaluator: cannot write to standard output: No space left on device\n"),
        (">&-", 1, "evaluator: cannot write to standard output: it is closed\n"),
        ("| true", 141, ""),
        ("> /dev/full 2> /dev/full", 1, ""),
    ],
)
def test_output_that_was_not_written_is_not_success(
    redirection: str, exit_code: int, err: str, run: RunDirectory
) -> None:
    command = f'"{sys.executable}" -m evaluator watch "{run.path}" --once {redirection}; exit ${{PIPESTATUS[0]}}'
    result = subprocess.run(["bash", "-c", command], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (exit_code, err)


def test_help_of_every_command_imports_nothing_slow() -> None:
    code = """
import contextlib, io, sys
from evaluator.__main__ import main
for command in ([], ["score"], ["compare"], ["video"], ["levels"], ["report"], ["watch"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        main([*command, "--help"])
print(sorted({"torch", "numpy", "procgen", "matplotlib", "rich", "ray"} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=180)
    assert result.stdout == "[]\n", result.stderr


def test_every_argument_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("score", "compare", "video", "levels", "report", "watch"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        lines = capsys.readouterr().out.splitlines()
        unexplained = [
            line
            for line, following in pairwise([*lines, ""])
            if re.match(r"  \S+", line) and not re.search(r"\S  +\S", line) and not following.startswith(" " * 20)
        ]
        assert unexplained == [], command


def test_splits_of_the_parser_are_those_of_the_level_sets() -> None:
    assert (parser._SPLITS, parser._PLAYABLE_SPLITS) == (level_sets.SPLITS, level_sets.PLAYABLE_SPLITS)
