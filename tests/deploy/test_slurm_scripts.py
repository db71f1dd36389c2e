"""The job scripts of Slurm, with stand-ins for Slurm and the learner."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from learner.startup.flags import parse
from tests.conftest import PROJECT, kill_all, wait_until
from tests.deploy.conftest import (
    SLURM,
    STUDY,
    TRAIN,
    assert_only_the_owner_reaches,
    assert_shellcheck_finds_nothing,
    own_address,
)

each_script = pytest.mark.parametrize("script", [TRAIN, STUDY], ids=lambda path: path.name)

# Stand-ins: each writes how it was called. The learner makes the directory FAKE_SAVES in its run's and ends as FAKE_END
# says; with `wait`, only after a signal.
FAKES = {
    "python": f"""case "$1 $2 $3" in
"-m learner study") printf '%s\\n' "python -m learner --run-dir '$CALLS/a  b'" 'python -m learner second' ;;
"-m learner"*)
  printf '<%s>' "$@" >"$CALLS/learner"
  env >"$CALLS/learner-environment"
  for word; do
    case $before in --run-dir | --resume) run=$word ;; esac
    case $word in --run-dir=* | --resume=*) run=${{word#*=}} ;; esac
    before=$word
  done
  [ -z "$FAKE_SAVES" ] || mkdir -p "$run/$FAKE_SAVES"
  [ -z "$FAKE_SCORES" ] || echo "$FAKE_SCORES" >>"$run/evaluations.jsonl"
  trap 'echo HUP >>"$CALLS/signals"; exit 138' HUP
  trap 'echo TERM >>"$CALLS/signals"; exit 143' TERM
  trap 'echo USR1 >>"$CALLS/signals"; exit 138' USR1
  touch "$CALLS/started"
  [ "$FAKE_END" = wait ] || exit "$FAKE_END"
  for _ in {{1..300}}; do sleep 0.1; done ;;
*) exec {shlex.quote(sys.executable)} "$@" ;;
esac
""",
    # Ray opens its directories to everybody, whatever the umask.
    "ray": """printf "<%s>" "$@" >"$CALLS/ray"; env >"$CALLS/ray-environment"; cp "$RAY_AUTH_TOKEN_PATH" "$CALLS/token"
for word; do
  if [ "$before" = --temp-dir ]; then mkdir -p "$word/sockets"; chmod 777 "$word" "$word/sockets"; fi
  before=$word
done
echo $$ >"$CALLS/ray-pid"; exec sleep 100
""",
    "srun": 'printf "<%s>" "$@" >"$CALLS/srun"; env >"$CALLS/srun-environment"; cat >"$CALLS/srun-input"\n',
    # Fails as often as SCONTROL_FAILURES says for the question SCONTROL_FAILS.
    "scontrol": """echo "$*" >>"$CALLS/scontrol"
if [ "$1 $2" = "$SCONTROL_FAILS" ]; then
  [ "$(grep -c "^$1 $2" "$CALLS/scontrol")" -gt "$SCONTROL_FAILURES" ] || exit 1
fi
case "$1 $2" in
"show hostnames") printf 'n1\\nn2\\nn3\\n' ;;
"show node") echo "   NodeAddr=$NODE_ADDRESS NodeHostName=$3" ;;
esac
""",
}


class BatchShell:
    """A job script run as Slurm's batch step runs it, with stand-ins for everything it starts."""

    started: ClassVar[list[subprocess.Popen[Any]]] = []  # those of the present test

    def __init__(
        self,
        directory: Path,
        script: Path,
        *arguments: str,
        end: str = "0",
        nodes: int = 1,
        task: int = 1,
        variables: Mapping[str, str] | None = None,  # more of the environment
    ):
        self.calls, self.temporary = directory / "calls", directory / "t"
        environment = directory / "environment"
        for path in (self.calls, self.temporary, environment / "bin"):
            path.mkdir(parents=True, exist_ok=True)
        for name, text in FAKES.items():
            path = environment / "bin" / name
            path.write_text(f"#!/bin/bash\n{text}")
            path.chmod(0o755)
        job = {"JOB_ID": "7", "JOB_NUM_NODES": nodes, "CPUS_PER_TASK": 3, "SUBMIT_DIR": PROJECT, "ARRAY_TASK_ID": task}
        self.job = "7"
        if script == STUDY:  # the last task of an array, whose number stands for all of them
            job["ARRAY_JOB_ID"], self.job = "7", f"7_{task}"
        self.process = subprocess.Popen(
            ["bash", script, *arguments],
            env={
                **{"PATH": os.environ["PATH"], "SLURMD_NODENAME": "n1", "FAKE_END": end, "CALLS": str(self.calls)},
                **{"HELDOUT_ENV": str(environment), "HELDOUT_TMP": str(self.temporary)},
                **({"NODE_ADDRESS": own_address()} if nodes > 1 else {}),
                **{f"SLURM_{name}": str(value) for name, value in job.items()},
                **(variables or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(self.process)

    def exit_code(self) -> int:
        self.output, _ = self.process.communicate(timeout=60)
        print(self.output)
        return self.process.returncode

    def call(self, name: str) -> str:
        path = self.calls / name
        return path.read_text() if path.exists() else ""

    @property
    def requeued(self) -> bool:
        requeued = [line.split()[1] for line in self.call("scontrol").splitlines() if line.startswith("requeue")]
        assert requeued in ([], [self.job])
        return bool(requeued)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path leaves room for Ray's sockets, as the scripts require."""
    path = Path("/tmp") / f"heldout-test-{os.getpid()}"
    path.mkdir(mode=0o700)
    yield path
    kill_all(BatchShell.started)  # a job of a failed test would write into the directory
    shutil.rmtree(path)


@each_script
def test_job_scripts_are_valid_and_ask_slurm_for_a_signal_and_requeueing(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    asked = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(asked)
    # Slurm reads them only before the first command.
    commands = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert script.read_text().index("#SBATCH --requeue") < script.read_text().index(commands[0])


@each_script
def test_shellcheck_finds_nothing_in_job_scripts(script: Path) -> None:
    assert_shellcheck_finds_nothing(script, SLURM / "site.sh")


SAVES = {"FAKE_SAVES": "checkpoints/00000010"}


def flags_of(script: Path, run: Path) -> list[str]:
    """What names the run for a script; the stand-in for `learner study` names `calls/a  b` itself."""
    return ["study"] if script == STUDY else ["--run-dir", str(run)]


@each_script
@pytest.mark.parametrize(("end", "requeued"), [("0", False), ("138", True), ("1", False), ("2", False)])
def test_job_ends_with_the_learners_exit_code_and_is_requeued_after_138(
    short_path: Path, script: Path, end: str, requeued: bool
) -> None:
    shell = BatchShell(short_path, script, *flags_of(script, short_path / "run"), end=end, variables=SAVES)
    assert shell.exit_code() == int(end)
    assert shell.requeued is requeued
    assert not list(shell.temporary.iterdir())


@pytest.mark.parametrize(
    ("variables", "requeued"),
    [
        (SAVES, True),
        ({"FAKE_SAVES": "resume/00000010"}, True),
        ({"FAKE_SAVES": "checkpoints", "FAKE_SCORES": "{}"}, True),
        ({"FAKE_SAVES": "checkpoints/00000009"}, False),  # where it started
        ({"FAKE_SAVES": "checkpoints/00000010.aside-1"}, False),
        ({}, False),
    ],
)
@each_script
def test_job_is_requeued_only_if_its_run_got_further(
    short_path: Path, script: Path, variables: dict[str, str], requeued: bool
) -> None:
    run = short_path / ("calls/a  b" if script == STUDY else "run")
    for name in ("checkpoints/00000000", "checkpoints/00000009", "resume/00000008"):
        (run / name).mkdir(parents=True)
    (run / "evaluations.jsonl").write_text("{}\n")
    shell = BatchShell(short_path, script, *flags_of(script, run), end="138", variables=variables)
    assert shell.exit_code() == 138
    assert shell.requeued is requeued
    if not requeued:
        assert shell.output.count("\n") == 1 and all(word in shell.output for word in (str(run), "--time", "--signal"))


def test_job_whose_run_saved_only_the_untrained_policy_is_not_requeued(short_path: Path) -> None:
    saves = {"FAKE_SAVES": "checkpoints/00000000"}
    shell = BatchShell(short_path, TRAIN, "--run-dir", str(short_path / "run"), end="138", variables=saves)
    assert shell.exit_code() == 138 and not shell.requeued


@pytest.mark.parametrize(
    "flags",
    ["--run-dir=RUN", "--resume RUN", "--resume=RUN", "--run-dir X --run-dir RUN", "--resume auto --run-dir RUN"],
)
def test_progress_is_seen_wherever_the_flags_put_the_run(short_path: Path, flags: str) -> None:
    words = flags.replace("RUN", str(short_path / "run")).split()
    shell = BatchShell(short_path, TRAIN, *words, end="138", variables=SAVES)
    assert shell.exit_code() == 138 and shell.requeued


@each_script
def test_usr1_reaches_the_learner_and_the_job_is_requeued(short_path: Path, script: Path) -> None:
    shell = BatchShell(short_path, script, *flags_of(script, short_path / "run"), end="wait", variables=SAVES)
    wait_until((shell.calls / "started").exists, shell.process)
    shell.process.send_signal(signal.SIGUSR1)
    assert shell.exit_code() == 138
    assert shell.call("signals") == "USR1\n" and shell.requeued


@each_script
def test_sigterm_reaches_the_learner_only_as_sighup_and_nothing_is_requeued(short_path: Path, script: Path) -> None:
    shell = BatchShell(short_path, script, *flags_of(script, short_path / "run"), end="wait", variables=SAVES)
    wait_until((shell.calls / "started").exists, shell.process)
    shell.process.send_signal(signal.SIGTERM)
    assert shell.exit_code() == 138  # as if SIGUSR1 had come before
    assert shell.call("signals") == "HUP\n" and not shell.requeued


def test_learner_gets_the_job_flags_after_those_of_the_script(short_path: Path) -> None:
    shell = BatchShell(short_path, TRAIN, "--run-dir", "runs/my run", "--num-actors", "4:64")
    assert shell.exit_code() == 0
    flags = shell.call("learner").removeprefix("<-m><learner><").removesuffix(">").split("><")
    parsed = parse(flags)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", parsed.address or "")
    assert str(parsed.resume) == "auto" and parsed.run_dir == Path("runs/my run")
    assert parsed.overrides == {"num_actors": 64, "min_actors": 4}
    without_flags = BatchShell(short_path / "b", TRAIN)
    assert without_flags.exit_code() == 0
    assert "<runs/slurm-7>" in without_flags.call("learner")


def test_job_can_continue_a_run_that_resume_names(short_path: Path) -> None:
    shell = BatchShell(short_path, TRAIN, "--resume", "runs/my run")
    assert shell.exit_code() == 0
    parsed = parse(shell.call("learner").removeprefix("<-m><learner><").removesuffix(">").split("><"))
    assert parsed.resume == Path("runs/my run") and parsed.run_dir is None
    repeated = BatchShell(short_path / "b", TRAIN, "--resume", "auto")
    assert repeated.exit_code() == 0
    assert "<runs/slurm-7>" in repeated.call("learner")


@pytest.mark.parametrize("question", ["show hostnames", "show node"])
def test_job_of_several_nodes_asks_again_when_scontrol_fails(short_path: Path, question: str) -> None:
    failing = {"SCONTROL_FAILS": question, "SCONTROL_FAILURES": "2"}
    shell = BatchShell(short_path, TRAIN, nodes=3, variables=failing)
    assert shell.exit_code() == 0
    assert f"<--address><{own_address()}:" in shell.call("learner")


@pytest.mark.parametrize(
    "variables",
    [
        *({"SCONTROL_FAILS": question, "SCONTROL_FAILURES": "99"} for question in ("show hostnames", "show node")),
        {"NODE_ADDRESS": "127.0.0.1"},
    ],
)
def test_job_of_several_nodes_starts_nothing_without_an_address_for_them(
    short_path: Path, variables: dict[str, str]
) -> None:
    shell = BatchShell(short_path, TRAIN, nodes=3, variables=variables)
    assert shell.exit_code() == 1
    assert shell.output.count("\n") == 1 and "site.sh" in shell.output
    assert not any(shell.call(name) for name in ("ray", "srun", "learner")) and not shell.requeued


def test_every_node_gets_the_token_by_its_standard_input_alone(short_path: Path) -> None:
    shell = BatchShell(short_path, TRAIN, end="wait", nodes=3)
    for name in ("ray", "srun", "learner"):
        wait_until((shell.calls / f"{name}-environment").exists, shell.process)
    shell.process.send_signal(signal.SIGUSR1)
    assert shell.exit_code() == 138
    token = shell.call("token")
    assert re.fullmatch("[0-9a-f]{64}", token)
    assert shell.call("srun-input") == f"{token}\n"
    assert "<--relative=1><--nodes=2><--ntasks=2><--cpus-per-task=3>" in shell.call("srun")
    assert "<--export=ALL>" in shell.call("srun")
    for name in ("ray", "srun", "learner"):
        assert "RAY_AUTH_MODE=token" in shell.call(f"{name}-environment")
        assert token not in shell.call(name) + shell.call(f"{name}-environment")


def test_ray_survives_sigterm_and_ends_with_the_job(short_path: Path) -> None:
    shell = BatchShell(short_path, TRAIN, end="wait", nodes=1)
    wait_until((shell.calls / "started").exists, shell.process)
    wait_until((shell.calls / "ray-pid").exists, shell.process)
    ray = psutil.Process(int(shell.call("ray-pid")))
    ray.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert ray.status() == psutil.STATUS_SLEEPING
    shell.process.send_signal(signal.SIGUSR1)
    assert shell.exit_code() == 138
    assert not ray.is_running()
    assert not shell.call("srun")


def test_nobody_else_reaches_the_files_of_ray_on_any_node(short_path: Path) -> None:
    shell = BatchShell(short_path, TRAIN, end="wait", nodes=2)
    for name in ("ray-pid", "srun-input"):
        wait_until((shell.calls / name).exists, shell.process)
    assert_only_the_owner_reaches(shell.temporary / "heldout-7")

    # The task of srun, with a head that is reached at once.
    task = shell.call("srun").split("<bash><-c><")[1].removesuffix(">")
    host, port = task.split()[-1].split(":")
    calls, path = short_path / "calls-of-node", f"{short_path}/environment/bin:{os.environ['PATH']}"
    calls.mkdir()
    with socket.create_server((host, int(port))):
        node = subprocess.Popen(
            ["bash", "-c", task],
            env={"PATH": path, "SLURM_NODEID": "1", "CALLS": str(calls)},
            stdin=subprocess.PIPE,
            umask=0o022,
        )
        shell.started.append(node)
        assert node.stdin is not None
        node.stdin.write(b"a token\n")
        node.stdin.flush()
        wait_until((calls / "ray-pid").exists, node)
    assert_only_the_owner_reaches(shell.temporary / "heldout-7-1")
    assert (calls / "token").read_text() == "a token"
    node.stdin.close()
    assert node.wait(60) == 0
    shell.process.send_signal(signal.SIGUSR1)
    assert shell.exit_code() == 138 and not list(shell.temporary.iterdir())


@pytest.mark.parametrize(("nodes", "fits"), [(1, True), (2, False)])
def test_directory_too_long_for_the_sockets_of_any_node_is_refused(short_path: Path, nodes: int, fits: bool) -> None:
    long = short_path / ("x" * (42 - len(f"{short_path}//heldout-7/r")))  # one byte left
    long.mkdir()
    shell = BatchShell(short_path, TRAIN, nodes=nodes, variables={"HELDOUT_TMP": str(long)})
    assert shell.exit_code() == (0 if fits else 2)
    assert bool(shell.call("learner")) is fits
    assert fits or (shell.output.count("\n") == 1 and "HELDOUT_TMP" in shell.output)


def test_study_task_runs_the_line_of_its_array_index(short_path: Path) -> None:
    shell = BatchShell(short_path, STUDY, "study")
    assert shell.exit_code() == 0
    assert shell.call("learner").endswith(f"<--run-dir><{shell.calls}/a  b>")
    beyond = BatchShell(short_path / "b", STUDY, "study", task=3)
    assert beyond.exit_code() == 2 and not beyond.call("learner")


@pytest.mark.parametrize("arguments", [(), ("study", "--device", "cuda")])
def test_study_refuses_flags_of_the_learner_which_belong_to_the_plan(
    short_path: Path, arguments: tuple[str, ...]
) -> None:
    shell = BatchShell(short_path, STUDY, *arguments)
    assert shell.exit_code() == 2 and not shell.call("learner")
    assert shell.output.count("\n") == 1 and "plan" in shell.output


@each_script
def test_what_a_site_changes_in_site_sh_applies(short_path: Path, script: Path) -> None:
    home, environment = short_path / "home", short_path / "environment"
    shutil.copytree(SLURM, home / "deploy" / "slurm")
    with open(home / "deploy" / "slurm" / "site.sh", "a") as site:
        site.write(f"environment={environment}\nexport FROM_SITE=yes\n")
    variables = {"HELDOUT_HOME": str(home), "HELDOUT_ENV": str(short_path / "missing")}
    shell = BatchShell(short_path, script, "study", variables=variables)
    assert shell.exit_code() == 0
    assert "FROM_SITE=yes" in shell.call("learner-environment")


@each_script
def test_job_submitted_from_another_directory_names_it(short_path: Path, script: Path) -> None:
    shell = BatchShell(short_path, script, "study", variables={"HELDOUT_HOME": str(short_path)})
    assert shell.exit_code() == 2
    assert shell.output.count("\n") == 1 and f"{short_path} " in shell.output and "HELDOUT_HOME" in shell.output
