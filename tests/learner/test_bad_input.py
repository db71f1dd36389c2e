"""Wrong input gives one clear line on stderr and exit code 2, and changes no file."""

import json
import os
import resource
import shutil
import socket
import subprocess

import pytest
import torch

from common.resolution import resolve
from common.storage.checkpoints import save_checkpoint
from common.storage.file_lock import FileLock
from common.storage.run_directory import RunDirectory
from learner.main import main
from learner.ppo.learner import PPOLearner
from learner.run_state import RunState
from learner.startup import flags
from learner.startup.preparation import prepare_run

SMALL = {"num_actors": 1, "envs_per_actor": 2, "unroll_length": 8, "num_minibatches": 2, "device": "cpu"}


@pytest.fixture
def refused(capsys):
    """Runs main in this process and returns its one line; these mistakes are found before Ray starts."""

    def run(*args):
        try:
            exit_code = main([str(arg) for arg in args])
        except SystemExit as end:
            exit_code = end.code
        out, err = capsys.readouterr()
        assert exit_code == 2, (exit_code, out, err)
        lines = err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("learner: "), err
        return lines[0]

    return run


@pytest.fixture
def stored_run(tmp_path):
    """A run directory with two complete checkpoints, versions 0 and 1."""
    run = RunDirectory(tmp_path / "stored")
    config = resolve("lab", SMALL)
    run.create()
    run.write_config(config, {}, SMALL)
    learner = PPOLearner(config)
    for version in (0, 1):
        stored = {"learner": learner.state_dict(), "run": RunState.new(config).state_dict()}
        save_checkpoint(run.checkpoints, config, version, 16 * version, learner.weights(), stored)
    return run


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--env-name", "coinrum"], "did you mean 'coinrun'?"),
        (["--distribution-mode", "esay"], "did you mean 'easy'?"),
        (["--mode", "synk"], "did you mean 'sync'?"),
        (["--preset", "labs"], "did you mean 'lab'?"),
        (["--num-actors", "0"], "--num-actors: must be at least 1, got 0"),
        (["--num-actors", "-3"], "--num-actors: must be at least 1, got -3"),
        (["--envs-per-actor", "-1"], "--envs-per-actor: must be at least 1, got -1"),
        (["--total-frames", "0"], "--total-frames: must be at least 1, got 0"),
        (["--eval-episodes-per-level", "-1"], "--eval-episodes-per-level: must be at least 1, got -1"),
        (["--checkpoint-interval", "0"], "--checkpoint-interval: must be at least 1, got 0"),
        (["--num-actors", "3"], "--num-actors: 3 does not divide the 64 environments"),
        (["--num-minibatches", "7"], "--num-minibatches: 7 does not divide the batch of 16384 frames"),
        (["--gamma", "1.5"], "--gamma: must be between 0 and 1, got 1.5"),
        (["--actor-gpus", "-0.5"], "--actor-gpus: must be between 0 and 1, got -0.5"),
        (["--actor-gpus", "2"], "--actor-gpus: must be between 0 and 1, got 2.0"),
        (["--half-batches", "maybe"], "--half-batches: expected one of auto, yes, no, got 'maybe'"),
        (["--device", "cpu", "--compile"], "--compile: needs a GPU, and the learner uses none"),
        (["--device", "cpu", "--cuda-graphs"], "--cuda-graphs: needs a GPU, and neither learner nor"),
        (["--num-actors", "many"], "--num-actors: expected N, LOW:HIGH with 1 <= LOW <= HIGH, or max, got 'many'"),
        (["--num-actors", "4:2"], "--num-actors: expected N, LOW:HIGH with 1 <= LOW <= HIGH, or max, got '4:2'"),
        (["--num-actors", "4:12"], "--num-actors: 12 does not divide the 64 environments"),
        (["--keep-checkpoints", "-1"], "--keep-checkpoints: must be at least 0, got -1"),
        (["--keep-every", "-1"], "--keep-every: must be at least 0, got -1"),
        (["--learning-rate", "nan"], "--learning-rate: must be a finite number, got nan"),
        (["--gamma", "x"], "--gamma: expected a number, got 'x'"),
        (["--seed", "1.5"], "--seed: expected a whole number, got '1.5'"),
        (["--compression", "lz4"], "--compression: unknown value 'lz4'; choose from none, remote, zstd"),
        (["--mode", "overlap", "--max-policy-lag", "0"], "--max-policy-lag: must be at least 1 in overlap mode, got 0"),
        (["--mode", "sync", "--max-policy-lag", "1"], "--max-policy-lag: 1 needs --mode overlap; this run's mode is"),
        (["--mode", "overlap", "--max-policy-lag", "-1"], "--max-policy-lag: must be at least 0, got -1"),
        (["--mode", "overlap", "--num-actors", "1:2", "--repeatable", "yes"], "--num-actors is 1:2"),
        (
            ["--mode", "sync", "--repeatable", "no"],
            "--repeatable: has no effect because --mode sync collects every batch",
        ),
        (["--mode", "sync", "--importance-weight-cap", "2"], "--importance-weight-cap: has no effect"),
        (["--mode", "overlap", "--importance-weight-cap", ".5"], "--importance-weight-cap: must be at least 1, got"),
        (["--objective", "vtrace"], "--objective: unknown value 'vtrace'; choose from auto, standard, decoupled"),
        (["--no-such-flag"], "--no-such-flag: unknown flag; --help lists the flags"),
        (["--num-actor", "4"], "--num-actor: unknown flag; did you mean --num-actors?"),
        (["--mode", "sync", "4"], "unexpected argument '4'; --help lists what is expected"),
    ],
)
def test_wrong_setting_is_named_with_the_remedy(refused, tmp_path, args, said):
    run_dir = tmp_path / "run"
    assert said in refused("--run-dir", run_dir, *args)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("word", "remedy"), [("docter", "did you mean 'doctor'?"), ("train", "choose from doctor, study")]
)
def test_unknown_command_is_named_with_the_remedy(refused, word, remedy):
    assert f"unknown command {word!r} (without a command it trains); {remedy}" in refused(word)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_is_refused(refused, tmp_path):
    assert "--device: cuda is not available: torch finds no GPU on this machine" in refused(
        "--run-dir", tmp_path / "run", "--device", "cuda"
    )
    assert not (tmp_path / "run").exists()


def test_directory_that_holds_a_run_is_refused_and_unchanged(refused, stored_run):
    before = {path: path.read_bytes() for path in stored_run.path.rglob("*") if path.is_file()}
    assert f"already holds a run; continue it with --resume {stored_run.path}" in refused("--run-dir", stored_run.path)
    assert {path: path.read_bytes() for path in stored_run.path.rglob("*") if path.is_file()} == before


def test_run_directory_that_cannot_be_created_is_refused(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not a writable directory" in refused("--run-dir", tmp_path / "file" / "run")


def test_resuming_a_directory_without_a_run_is_refused(refused, tmp_path):
    assert "is not a run directory (it has no config.json)" in refused("--resume", tmp_path / "nowhere")


def test_resuming_with_contradicting_settings_lists_them(refused, stored_run):
    line = refused("--resume", stored_run.path, "--gamma", "0.9", "--env-name", "maze", "--preset", "easy")
    assert "--gamma (run has 0.999, asked for 0.9)" in line
    assert "--env-name (run has coinrun, asked for maze)" in line
    assert "--preset (run has lab, asked for easy)" in line


def test_resuming_with_another_number_of_environments_is_refused(refused, stored_run):
    assert "run has 2 environments, asked for 8" in refused(
        "--resume", stored_run.path, "--num-actors", "2", "--envs-per-actor", "4"
    )


def test_resuming_without_checkpoints_is_refused(refused, stored_run):
    shutil.rmtree(stored_run.checkpoints)
    assert "has no complete checkpoint" in refused("--resume", stored_run.path)


def test_resume_auto_without_a_directory_is_refused(refused):
    assert "--resume: auto needs --run-dir DIR" in refused("--resume", "auto")


def test_resume_auto_never_restarts_a_run_with_damaged_checkpoints(stored_run, capsys):
    for path in stored_run.checkpoints.glob("*/learner.pt"):
        path.write_bytes(b"")
    assert main(["--resume", "auto", "--run-dir", str(stored_run.path)]) == 2
    assert "has no complete checkpoint" in capsys.readouterr().err


def test_resume_auto_contradicting_the_run_is_refused(refused, stored_run):
    line = refused("--resume", "auto", "--run-dir", stored_run.path, "--gamma", "0.9")
    assert "--gamma (run has 0.999, asked for 0.9)" in line


@pytest.mark.parametrize("auto", [False, True])
def test_run_in_use_by_another_learner_is_refused_naming_its_process(refused, stored_run, auto):
    lock = FileLock(stored_run.learner_lock)
    resume = ("auto", "--run-dir", stored_run.path) if auto else (stored_run.path,)
    line = refused("--resume", *resume)
    assert f"in use by another learner (process {os.getpid()} on {socket.gethostname()})" in line
    lock.close()


def test_resuming_with_only_damaged_checkpoints_names_the_files(stored_run, capsys):
    damaged = [stored_run.checkpoints / name / "learner.pt" for name in ("00000000", "00000001")]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:100])
    assert main(["--resume", str(stored_run.path)]) == 2
    err = capsys.readouterr().err
    assert all(str(path) in err for path in damaged) and "has no complete checkpoint" in err


def test_config_of_another_version_is_refused_and_named(refused, stored_run):
    stored = json.loads(stored_run.config.read_text())
    del stored["settings"]["gamma"]
    stored_run.config.write_text(json.dumps(stored))
    assert "was written by another version of heldout (missing: gamma)" in refused("--resume", stored_run.path)


def test_address_without_a_cluster_is_refused_after_the_deadline(refused, tmp_path):
    line = refused("--run-dir", tmp_path / "run", "--address", "127.0.0.1:1", "--cluster-timeout", "1")
    assert "no Ray cluster answered at --address 127.0.0.1:1 within 1 s" in line


def test_malformed_address_is_refused(refused, tmp_path):
    assert "neither auto nor HOST:PORT" in refused("--run-dir", tmp_path / "run", "--address", "somewhere")


def in_new_namespace(*flags):
    """The prefix of a command that is to run in new namespaces; skips the test where the kernel forbids them."""
    own_user = [] if os.getuid() == 0 else ["--map-root-user"]
    prefix = ["unshare", *own_user, *flags]
    if (tried := subprocess.run([*prefix, "true"], capture_output=True, text=True)).returncode != 0:
        pytest.skip(f"this machine does not allow {' '.join(prefix)}: {tried.stderr.strip()}")
    return prefix


def test_address_auto_without_a_cluster_is_refused(run_learner, tmp_path):
    """Alone among the processes that it sees: `auto` would join any Ray of this machine, another test's too."""
    alone = in_new_namespace("--pid", "--fork", "--kill-child", "--mount-proc")
    # Ray also looks for an address that `ray start` has left in its directory.
    environment = {"RAY_TMPDIR": str(tmp_path), "RAY_ADDRESS": ""}
    result = run_learner("--run-dir", tmp_path / "run", "--address", "auto", prefix=alone, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("learner: no Ray cluster could be joined at --address auto: ")
    assert not (tmp_path / "run").exists()


def test_more_staging_buffers_than_memory_are_refused_with_their_bytes(refused, tmp_path):
    # 10^6 + 1 buffers of 64 environments x (256 steps x 12,305 bytes + a frame of 12,288)
    line = refused("--run-dir", tmp_path / "run", "--mode", "overlap", "--max-policy-lag", 10**6)
    assert "1,000,001 staging buffers of 202,391,552 bytes, 202,391,754,391,552 bytes of memory, and " in line
    assert not (tmp_path / "run").exists()


def test_too_little_shared_memory_for_the_rollouts_is_refused(refused, tmp_path):
    # 64 environments x 2^21 steps x 12 kB: more than any machine's shared memory
    line = refused("--run-dir", tmp_path / "run", "--unroll-length", 2**21)
    assert "/dev/shm has " in line and "the rollouts in flight need " in line
    assert not (tmp_path / "run").exists()


def test_file_size_limit_below_the_object_store_is_refused(refused, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 20, hard))
    try:
        line = refused("--run-dir", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert line.startswith("learner: sizes: ulimit -f is 100 MiB; a run needs ")
    assert not (tmp_path / "run").exists()


def test_network_without_loopback_is_refused_before_ray_waits_for_it(run_learner, tmp_path):
    result = run_learner("--run-dir", tmp_path / "run", prefix=in_new_namespace("--net"))  # in which nothing is up
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("learner: loopback: 127.0.0.1 cannot be reached: ") and "ip link set lo up" in line
    assert not (tmp_path / "run").exists()


def test_config_edited_by_hand_is_refused_with_file_setting_and_both_values(stored_run, refused):
    stored = json.loads(stored_run.config.read_text())
    stored["settings"]["learning_rate"] = 0.05
    stored_run.config.write_text(json.dumps(stored))
    line = refused("--resume", stored_run.path)
    assert f"{stored_run.config} was edited: learning_rate is 0.05, the checkpoint has 0.0005" in line
    # The lock is released: the restored file can be used.
    stored["settings"]["learning_rate"] = 0.0005
    stored_run.config.write_text(json.dumps(stored))
    prepare_run(flags.parse(["--resume", str(stored_run.path)])).close()


def test_edited_levels_of_a_resumed_run_are_refused_before_anything_starts(stored_run, refused):
    edited = {"format": 2, "settings": {}, "train": [0], "validation": [1], "test": [2], "sha256": "of other contents"}
    stored_run.level_sets.write_text(json.dumps(edited))
    assert f"{stored_run.level_sets} was edited" in refused("--resume", stored_run.path)
