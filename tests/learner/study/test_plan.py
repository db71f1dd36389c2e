"""The plan of a study: which runs, with which flags; what is refused, and what a used directory accepts."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.cli import UsageError
from common.config import SETTINGS, choices_of
from common.output import PATIENCE_SECONDS
from common.storage.file_lock import FileLock
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.startup.flags import parse
from learner.study import command
from learner.study.command import main
from learner.study.plan import Plan, Study, grown, make_plan, read_plan, write_plan
from tests.conftest import wait_until

PROJECT = Path(__file__).parents[3]
PROGRAM = ["python", "-m", "learner"]
LEARNER = [sys.executable, "-m", "learner"]


def study(games=("coinrun",), seeds=2, flags=("--total-frames", "1000"), **vary):
    return Study(tuple(games), seeds, {name: tuple(values) for name, values in vary.items()}, tuple(flags))


def test_plan_has_every_game_variant_and_seed_with_the_flags_of_each():
    plan = make_plan(study(["coinrun", "maze"], 2, gamma=[".99", ".999"], cuda_graphs=["no"], mode=["sync", "overlap"]))
    assert len(plan.runs) == 2 * 4 * 2 == len({run.name for run in plan.runs})
    last = plan.runs[-1]
    assert last.name == "maze/cuda-graphs=no_gamma=.999_mode=overlap/seed-1"
    parsed = parse(last.arguments(Path("/studies/s")))
    assert parsed.run_dir == Path("/studies/s") / last.name and str(parsed.resume) == "auto"
    expected = {"env_name": "maze", "seed": 1, "gamma": 0.999, "mode": "overlap", "cuda_graphs": False}
    assert parsed.overrides == expected | {"total_frames": 1000}
    assert last.frames == 64 * 256  # whole updates of preset lab


def test_names_of_variants_do_not_depend_on_the_order_of_vary():
    one = make_plan(study(gamma=[".9"], clip_coef=[".1", ".2"]))
    other = make_plan(study(clip_coef=[".1", ".2"], gamma=[".9"]))
    assert [run.name for run in one.runs] == [run.name for run in other.runs]
    assert make_plan(study()).runs[0].name == "coinrun/default/seed-0"


@pytest.mark.parametrize("name", [name for name, field in SETTINGS.items() if field.metadata["has_flag"]])
def test_every_learner_flag_can_be_varied_unless_the_study_sets_it(name):
    if name in ("seed", "env_name"):
        with pytest.raises(UsageError, match="is set by the study"):
            make_plan(study(**{name: ["1"]}))
        return
    with pytest.raises(UsageError, match=rf"--vary, .*--{name.replace('_', '-')}|expected yes or no"):
        make_plan(study(flags=(), **{name: ["nonsense"]}))
    field = SETTINGS[name]
    choices, default = choices_of(field), field.metadata["default"]
    if field.type is bool:
        value, parsed = "yes", True
    elif choices:
        value = parsed = choices[-1]
    else:
        parsed = {"num_actors": 4, "envs_per_actor": 16, "max_policy_lag": 1, "held_out_levels": 7}.get(name, default)
        value = str(parsed)
    (run,) = make_plan(study(seeds=1, flags=(), **{name: [value]})).runs
    assert run.variant == f"{name.replace('_', '-')}={value}"
    command_line = parse(list(run.flags))
    assert (command_line.preset if name == "preset" else command_line.overrides[name]) == parsed


@pytest.mark.parametrize(
    "vary",
    [{"num_actors": ["4:16", "8:16"]}, {"num_actors": ["max"]}, {"mode": ["auto"]}, {"preset": ["lab", "easy"]}],
    ids=str,
)
def test_different_variants_and_a_single_automatic_one_are_accepted(vary):
    assert len(make_plan(study(seeds=1, flags=(), **vary)).runs) == len(*vary.values())


def test_white_space_around_games_and_values_is_ignored(tmp_path, capsys):
    assert main([str(tmp_path), "--games", "maze, coinrun", "--vary", "gamma = .9, .99", "--seeds", "1", "--list"]) == 0
    names = [run.name for run in read_plan(tmp_path).runs]
    assert names == [f"{game}/gamma={value}/seed-0" for game in ("maze", "coinrun") for value in (".9", ".99")]


def test_plan_is_the_same_after_it_was_stored(tmp_path):
    plan = make_plan(study(gamma=[".9", ".99"]))
    assert read_plan(tmp_path) is None
    write_plan(tmp_path, plan, PROGRAM)
    assert read_plan(tmp_path) == plan
    stored = json.loads((tmp_path / "study.json").read_bytes())["runs"][0]
    assert stored["command"].startswith(f"python -m learner --resume auto --run-dir {tmp_path}/coinrun/gamma=.9/seed-0")


@pytest.mark.parametrize("contents", ["", "[]", '{"format": 1}', '{"format": 99}', '{"format": 1, "study": 3}'])
def test_damaged_plan_is_refused(tmp_path, contents):
    (tmp_path / "study.json").write_text(contents)
    with pytest.raises(UsageError, match=r"study\.json"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("study", {"games": "coinrun"}),
        ("study", {"games": [3]}),
        ("study", {"seeds": None}),
        ("study", {"vary": []}),
        ("study", {"vary": {"gamma": ".9"}}),
        ("study", {"flags": {}}),
        ("run", {"game": None}),
        ("run", {"variant": 3}),
        ("run", {"seed": "0"}),
        ("run", {"flags": "--gamma"}),
        ("run", {"frames": None}),
        ("run", {"frames": 0}),
        ("runs", []),
        ("runs", {}),
        ("runs", [3]),
    ],
)
def test_plan_with_a_wrong_type_is_one_line_and_exit_code_2(tmp_path, capsys, part, wrong):
    make_plan_of(tmp_path)
    path = tmp_path / "study.json"
    contents = json.loads(path.read_bytes())
    if part == "runs":
        contents["runs"] = wrong
    else:
        (contents["study"] if part == "study" else contents["runs"][0]).update(wrong)
    path.write_text(json.dumps(contents))
    for mode in (["--status"], ["--list"]):
        assert main([str(tmp_path), *mode]) == 2
        out, err = capsys.readouterr()
        assert out == "" and len(err.splitlines()) == 1 and "study.json cannot be read: not a study plan" in err


@pytest.mark.parametrize(
    "larger",
    [
        study(["coinrun"], 3, gamma=[".9"]),
        study(["maze", "coinrun"], 2, gamma=[".9"]),
        study(gamma=[".99", ".9"]),
        study(flags=("--address", "host:1", "--total-frames", "1000", "--allow-unauthenticated"), gamma=[".9"]),
        study(flags=("--total-frames", "1000", "--address=host:1"), gamma=[".9"]),
    ],
    ids=["seeds", "games", "variants", "address", "address with ="],
)
def test_used_directory_accepts_more_runs_and_another_cluster(larger):
    stored, plan = make_plan(study(gamma=[".9"])), make_plan(larger)
    result = grown(Path("s"), stored, plan)
    assert set(result.runs) == set(plan.runs) and result.study == larger
    assert [run.name for run in result.runs[:2]] == [run.name for run in stored.runs]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            study(["coinrun"], gamma=[".9"]),
            "game maze is missing; to add runs, name the old games, seeds and values of",
        ),
        (study(["coinrun", "maze"], 1, gamma=[".9"]), "seed 1 is missing"),
        (study(["coinrun", "maze"], gamma=[".8"]), r"variant gamma=\.9 is missing"),
        (
            study(["coinrun", "maze"], flags=("--total-frames", "2000"), gamma=[".9"]),
            "flags --total-frames 1000, now --total-frames 2000",
        ),
    ],
    ids=["games", "seeds", "variants", "flags"],
)
def test_changed_plan_is_refused_and_the_difference_named(changed, said):
    with pytest.raises(UsageError, match=said):
        grown(Path("s"), make_plan(study(["coinrun", "maze"], gamma=[".9"])), make_plan(changed))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--games", "coinrum"], "--games: unknown game 'coinrum'; did you mean 'coinrun'?"),
        (["--games", "all,maze"], "--games: all includes every game; give all alone or name the games, got all,maze"),
        (["--games", "maze,maze"], "--games: a game is named twice: maze,maze"),
        (["--games", "maze", "--seeds", "0"], "--seeds: expected a whole number of at least 1, got '0'"),
        (["--games", "all", "--seeds", "3e9"], "--seeds: 3,000,000,000 seeds of 16 games and 1 variant are 48,000,000"),
        (["--games", "maze", "--seeds", "1e308"], "runs; a study can have at most 100,000"),
        (["--games", "maze", "--vary", "gamma=.9,\n.99"], "--vary: values must be usable in a directory name"),
        (["--games", "maze", "--vary", "mode=sy\x1bnc"], "--vary: values must be usable in a directory name"),
        (["--games", "maze", "--vary", f"gamma=.{'9' * 250}"], "has a name of 257 bytes, but a directory's name can"),
        (["--games", "maze", "--list", "--jobs", "7"], "--list: trains nothing; leave out --jobs"),
        (["--games", "maze", "--list", "--", "--address", "a\nb:1"], "--list: DIR or a flag has a line break"),
        (
            [
                "--status",
                "--games",
                "maze",
                "--seeds",
                "9",
                "--vary",
                "gamma=.5",
                "--jobs",
                "3",
                "--",
                "--no-such-flag",
            ],
            "--status: shows the stored study and takes nothing but DIR; leave out --games, --seeds, --vary, --jobs",
        ),
        (["--games", "maze", "--vary", "gama=.9"], "--vary: the learner has no flag --gama; did you mean --gamma?"),
        (["--games", "maze", "--vary", "gamma"], "--vary: expected FLAG=VALUE,..., got 'gamma'"),
        (["--games", "maze", "--vary", "gamma=.9,"], "--vary: expected FLAG=VALUE,..., got 'gamma=.9,'"),
        (["--games", "maze", "--vary", "gamma=.9,.9"], "--vary: a value is given twice in 'gamma=.9,.9'"),
        (["--games", "maze", "--vary", "gamma=1", "--vary", "gamma=0"], "--vary: gamma is varied twice; separate its"),
        (["--games", "maze", "--vary", "gamma=.9,0.9"], "--vary: gamma=.9 and gamma=0.9 are the same settings"),
        (
            ["--games", "maze", "--vary", "num-actors=4,4:4"],
            "--vary: num-actors=4 and num-actors=4:4 are the same settings",
        ),
        (
            ["--games", "maze", "--vary", "gamma=.9,.99", "--vary", "mode=auto,sync"],
            "--vary: mode=auto is chosen for each machine and may be one of the other values; name the values",
        ),
        (["--games", "maze", "--vary", "precision=bfloat16,auto"], "--vary: precision=auto is chosen for each machine"),
        (["--games", "maze", "--vary", "repeatable=auto,no"], "--vary: repeatable=auto is chosen for each machine"),
        (["--games", "maze", "--vary", "num-actors=16,max"], "--vary: num-actors=max is chosen for each machine"),
        (["--games", "maze", "--vary", "learner-threads=2,0"], "--vary: learner-threads=0 is chosen for each machine"),
        (["--games", "maze", "--vary", "gamma=7"], "--vary, maze gamma=7: --gamma: must be between 0 and 1, got 7.0"),
        (["--games", "maze", "--vary", "preset=../lab"], "--vary: values must be usable in a directory name"),
        (["--games", "maze", "--vary", "address=a,b"], "--vary: --address is no setting of a run and cannot vary"),
        (["--games", "maze", "--", "doctor"], "flags after --: expected a flag of python -m learner, got 'doctor'"),
        (
            ["--games", "maze", "--", "--device", "cuda", "--mode", "sync", "--max-policy-lag", "2"],
            "flags after --: --max-policy-lag: 2 needs --mode overlap; this run's mode is sync (lag 0)",
        ),
        (["--games", "maze", "--", "--compile", "--learner-threads", "4"], "--learner-threads: has no effect because"),
        (["--games", "maze", "--", "--compile", "--device", "cpu"], "flags after --: --compile: needs a GPU"),
        (["--games", "maze", "--vary", "run-dir=x"], "--vary: --run-dir is set by the study"),
        (["--games", "maze", "--vary", "gamma=.9", "--", "--gamma", ".8"], "--vary: --gamma is also given after --"),
        (
            ["--games", "maze", "--", "--address", ""],
            "flags after --: --address: expected auto or HOST:PORT, got an empty",
        ),
        (["--games", "maze", "--", "--preset", ""], "flags after --: --preset: unknown value ''"),
        (["--games", "maze", "--", "--seed", "3"], "flags after --: --seed is set by the study; use --seeds"),
        (
            ["--games", "maze", "--", "--env-name", "maze"],
            "--env-name is set by the study; use --games",
        ),
        (["--games", "maze", "--", "--run-dir", "x"], "flags after --: --run-dir is set by the study"),
        (["--games", "maze", "--", "--resume", "x"], "flags after --: --resume is set by the study"),
        (["--games", "maze", "--", "--gamma", "x"], "flags after --: --gamma: expected a number, got 'x'"),
        (["--games", "maze", "--", "--num-actors", "3"], "flags after --: --num-actors: 3 does not divide the 64"),
        (["--games", "maze", "--gamma", ".9"], "--gamma: unknown flag; flags of the learner come after --"),
        (["--games", "maze", "--preset=easy"], "--preset: unknown flag; flags of the learner come after --"),
        (["--game", "maze"], "--game: unknown flag; did you mean --games?"),
        (["--games", "maze", "--no-such-flag"], "--no-such-flag: unknown flag; --help lists the flags"),
        (["maze"], "unexpected argument 'maze'; --help lists what is expected"),
        ([], "holds no study yet: --games says which games to train, or all"),
        (["--status"], "holds no study: study.json is missing"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2_and_writes_nothing(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr(command, "_train", lambda *_: 0)  # what is not refused must not train here
    try:
        exit_code = main([str(tmp_path / "study"), *arguments])
    except SystemExit as end:
        exit_code = end.code
    out, err = capsys.readouterr()
    assert exit_code == 2 and out == "" and len(err.splitlines()) == 1, (exit_code, out, err)
    assert err.startswith("learner study: ") and said in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "checkpoints"])
def test_directory_of_a_run_is_refused_for_a_new_study(tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    assert main([str(tmp_path), "--games", "maze", "--list"]) == 2
    said = f"learner study: {tmp_path} already holds a run; choose another directory for the study\n"
    assert capsys.readouterr().err == said and [path.name for path in tmp_path.iterdir()] == [name]


def test_list_prints_one_command_a_line_and_stores_the_plan(tmp_path, capsys):
    flags = ["--games", "coinrun,maze", "--seeds", "2", "--list", "--", "--preset", "easy"]
    assert main([str(tmp_path), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[3].endswith(f"-m learner --resume auto --run-dir {tmp_path}/maze/default/seed-1 --preset easy "
                             "--env-name maze --seed 1")  # fmt: skip
    assert isinstance(read_plan(tmp_path), Plan)
    assert main([str(tmp_path), "--seeds", "3", "--list"]) == 0  # what is left out is as stored
    larger = capsys.readouterr().out.splitlines()
    assert len(larger) == 6 and larger[:4] == lines  # a task of a job array finds its run in the same line
    assert [run.name for run in read_plan(tmp_path).runs[4:]] == ["coinrun/default/seed-2", "maze/default/seed-2"]
    assert main([str(tmp_path), "--status"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "6 runs: 6 waiting; - frames/s, left -"


def test_plan_of_a_moved_study_names_its_new_directory(tmp_path, capsys):
    old, new = tmp_path / "old", tmp_path / "new"
    assert main([str(old), "--games", "maze", "--seeds", "1", "--list"]) == 0
    old.rename(new)
    assert main([str(new), "--list"]) == 0
    command = json.loads((new / "study.json").read_bytes())["runs"][0]["command"]
    assert command == capsys.readouterr().out.splitlines()[1] and str(new) in command


@pytest.mark.parametrize("mode", [["--list"], []], ids=["list", "train"])
@pytest.mark.parametrize("order", ["maze,coinrun", "coinrun"])
def test_plan_that_another_study_wrote_meanwhile_is_kept(tmp_path, capsys, monkeypatch, order, mode):
    other = make_plan(study(["maze"], flags=()))

    def lock(directory):
        directory.mkdir()
        write_plan(directory, other, PROGRAM)
        return FileLock(directory / command.LOCK_FILE)

    monkeypatch.setattr(command, "_lock", lock)
    monkeypatch.setattr(command, "_train", lambda *_: 0)
    exit_code = main([str(tmp_path / "study"), "--games", order, "--seeds", "2", *mode])
    names = [run.name for run in read_plan(tmp_path / "study").runs]
    if order == "coinrun":
        assert exit_code == 2 and "holds another study: game maze is missing" in capsys.readouterr().err
        assert names == ["maze/default/seed-0", "maze/default/seed-1"]
    else:
        assert exit_code == 0 and [name.split("/")[0] for name in names] == ["maze", "maze", "coinrun", "coinrun"]


def test_list_needs_no_lock_where_the_plan_is_as_stored(tmp_path, capsys):
    assert main([str(tmp_path), "--games", "maze", "--seeds", "1", "--list"]) == 0
    stored = (tmp_path / "study.json").read_text()
    (tmp_path / "study.json").write_text(stored.replace(str(tmp_path), "/before"))  # it was moved
    lock = FileLock(tmp_path / command.LOCK_FILE)
    assert main([str(tmp_path), "--list"]) == 0
    assert main([str(tmp_path), "--seeds", "2", "--list"]) == 2
    lock.close()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "is in use by another study" in err


@pytest.mark.parametrize("mode", ["--list", "--status"])
def test_list_and_status_lose_no_line_into_a_pipe_that_is_read_late(tmp_path, mode):
    make_plan_of(tmp_path, seeds=200)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = subprocess.Popen([*LEARNER, "study", tmp_path, mode], cwd=PROJECT, stdout=writer)
    os.close(writer)
    with open(reader) as lines:
        first = lines.read(1)  # the pipe is full now, and stays so for longer than training would wait
        time.sleep(2 * PATIENCE_SECONDS)
        text = first + lines.read()
    assert process.wait() == 0
    assert text.count("coinrun/default/seed-") == 200


@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        ("> /dev/full", 1, "learner study: cannot write to standard output: No space left on device\n"),
        (">&-", 1, "learner study: cannot write to standard output: it is closed\n"),
        ("| true", 141, ""),
    ],
    ids=["full disk", "closed", "closed pipe"],
)
@pytest.mark.parametrize("mode", ["--list", "--status"])
def test_list_or_status_that_cannot_be_printed_is_an_error(tmp_path, mode, redirection, code, said):
    make_plan_of(tmp_path, seeds=2000)  # more than a pipe takes
    shell = f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}'
    command = ["bash", "-c", shell, "bash", *LEARNER, "study", tmp_path, mode]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (code, "", said)


@pytest.mark.parametrize(
    ("mode", "waits_for"),
    [
        (["--list"], "study.json"),
        (["--status"], "study.json"),
        (["--status"], "coinrun/default/seed-0/config.json"),
        ([], "study.json"),
        ([], "coinrun/default/seed-0/config.json"),
    ],
    ids=["list", "status: plan", "status: runs", "plan", "finished runs"],
)
def test_ctrl_c_before_training_is_one_line(tmp_path, popen, mode, waits_for):
    make_plan_of(tmp_path)
    run = RunDirectory(tmp_path / "coinrun" / "default" / "seed-0")
    run.path.mkdir(parents=True)
    append_jsonl(run.metrics, {"policy_version": 1, "frames": 1 << 14, "time": 0.0})
    file = tmp_path / waits_for
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    process = popen(
        [*LEARNER, "study", tmp_path, *mode], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    writer = []

    def is_read():
        with contextlib.suppress(OSError):  # nobody has opened it yet
            writer.append(os.open(file, os.O_WRONLY | os.O_NONBLOCK))
        return writer

    wait_until(is_read, process)
    # A signal between the file's opening and the read, which it would have to interrupt, would wait for the read's end.
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    os.close(writer[0])
    assert (process.returncode, out, err) == (130, "", "learner study: interrupted\n")


def make_plan_of(directory, **settings):
    """Stores the plan of a study in `directory`."""
    write_plan(directory, make_plan(study(**settings)), PROGRAM)


def test_study_imports_neither_torch_nor_ray():
    code = "import sys, learner.study.command; sys.exit(bool({'torch', 'ray', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT).returncode == 0
