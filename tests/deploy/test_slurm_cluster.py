"""The job scripts of Slurm on a real Slurm of two nodes, both this host."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.storage.checkpoints import load_newest_complete
from tests.conftest import PROJECT, free_ports, num_lines, wait_until
from tests.deploy.conftest import STUDY, TRAIN, assert_only_the_owner_reaches, own_address


def why_no_slurm() -> str | None:
    if not os.environ.get("HELDOUT_TEST_SLURM"):
        return "HELDOUT_TEST_SLURM=1 is not set: these tests need the machine for themselves, for two minutes"
    if missing := [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name, path=SYSTEM_PATH) is None]:
        return f"{', '.join(missing)} not installed (Debian's packages slurm-wlm and munge)"
    return "Slurm's daemons need root" if os.getuid() else None


SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
SlurmUser=root
FirstJobId={first_job}
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
KillWait=30
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr={address} Port={ports[1]} CPUs=2 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr={address} Port={ports[2]} CPUs=2 RealMemory=8000
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """A Slurm of two nodes, both this host, with its own munge."""

    def __init__(self, directory: Path):
        ports = free_ports(3)
        self.directory = directory
        self.environment = {**os.environ, "PATH": SYSTEM_PATH, "SLURM_CONF": str(directory / "slurm.conf")}
        self.environment |= {
            "HELDOUT_ENV": str(Path(sys.executable).parents[1]),
            "HELDOUT_OBJECT_STORE": str(256 << 20),
        }
        (directory / "state").mkdir()
        values = {"host": socket.gethostname(), "address": own_address(), "ports": ports}
        values["first_job"] = 1000 + 10 * os.getpid()  # whose files in /tmp are not those of another test's job
        (directory / "slurm.conf").write_text(CONFIGURATION.format(directory=directory, **values))
        key = directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._daemons: list[subprocess.Popen[bytes]] = []
        names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log"}
        files = [f"--{flag}={directory / name}" for flag, name in {**names, "seed-file": "munged.seed"}.items()]
        self._start("munged", "--foreground", "--force", *files)
        wait_until((directory / "munge.socket").exists, self._daemons[-1])
        self._start("slurmctld", "-D", "-i")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        wait_until(lambda: self.call("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], self._daemons[1])

    def _start(self, program: str, *arguments: object) -> None:
        with open(self.directory / f"{program}-{len(self._daemons)}.log", "wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *map(str, arguments)], env=self.environment, stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip

    def call(self, *command: object, check: bool = False) -> str:
        done = subprocess.run(
            [*map(str, command)], env=self.environment, cwd=PROJECT, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: object) -> str:
        """The job's number."""
        return self.call("sbatch", "--parsable", "--cpus-per-task=1", "--mem=1G", *arguments, check=True)

    def wait_for(self, job: str, condition: Callable[[], bool], output: Path) -> None:
        """Waits for a condition; a requeued job starts without the long pause that Slurm makes by default.

        Without any, its node takes it for the job that was just killed, and refuses it.
        """
        pending: list[float] = []

        def is_met() -> bool:
            state = self.call("squeue", "-h", "-o", "%T", "-j", job)
            if "PENDING" in state:
                pending.append(time.monotonic())
                if pending[-1] - pending[0] > 3:
                    self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            return condition() or not state

        try:
            wait_until(is_met)
            assert condition(), "the job ended"
        except (AssertionError, pytest.fail.Exception) as failure:
            pytest.fail(f"{failure}\n{output.read_text() if output.exists() else 'no output'}")

    def cancel(self, job: str) -> None:
        """Returns when the job is no longer in the queue."""
        self.call("scancel", job, check=True)
        wait_until(lambda: not self.call("squeue", "-h", "-j", job))

    def processes(self, job: str | None = None) -> list[psutil.Process]:
        """All processes of this Slurm, or those of a job, whoever their parents are now."""
        found = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                is_ours = environment.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if (
                    is_ours
                    and process.status() != psutil.STATUS_ZOMBIE
                    and job in (None, environment.get("SLURM_JOB_ID"))
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_nothing_is_left_of(self, job: str) -> None:
        wait_until(lambda: not self.processes(job), seconds=40)
        assert not list(Path("/tmp").glob(f"heldout-{job}*"))

    def stop(self) -> None:
        # First what a failed test left: processes that set a title, as Slurm's and Ray's do, show no environment.
        self.call("scancel", "--user=root")
        wait_until(lambda: not self.call("squeue", "-h"))
        for process in self.processes():
            process.kill()
        for daemon in self._daemons:
            daemon.wait()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if (reason := why_no_slurm()) is not None:
        pytest.skip(f"no Slurm is started: {reason}")
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    yield slurm
    slurm.stop()


def assert_checkpoint_is_newest(run: Path, rows: Callable[[Path], list[dict[str, Any]]]) -> None:
    newest = load_newest_complete(run / "checkpoints", on_damaged=pytest.fail)
    versions = [row["policy_version"] for row in rows(run / "metrics.jsonl")]
    assert versions == list(range(1, len(versions) + 1))
    assert newest is not None and newest.policy_version == versions[-1]


@pytest.mark.processes
def test_run_over_two_nodes_survives_its_time_limit_and_scancel(
    slurm: Slurm, tiny_pair: list[str], tmp_path: Path, rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    metrics = run / "metrics.jsonl"
    flags = [*tiny_pair, "--no-evaluator", "--checkpoint-interval", 10**6, "--total-frames", 10**9, "--run-dir", run]
    # A list of variables for sbatch is also srun's default, for tasks that need more.
    exported = "--export=HELDOUT_ENV,HELDOUT_OBJECT_STORE"
    job = slurm.submit("--nodes=2", f"--output={output}", exported, TRAIN, *flags)

    def actors() -> list[dict[str, str]]:
        """Their environments."""
        found = []
        for process in slurm.processes(job):
            with contextlib.suppress(psutil.Error):
                if "RolloutActor" in "".join(process.cmdline()):
                    found.append(process.environ())
        return found

    slurm.wait_for(job, lambda: len(actors()) == 2 and num_lines(metrics) >= 2, output)
    assert "token authentication" in output.read_text()
    assert sorted(actor["SLURMD_NODENAME"] for actor in actors()) == ["n1", "n2"]
    assert [actor.get("RAY_worker_niceness") for actor in actors()] == ["0", "0"]
    directories = list(Path("/tmp").glob(f"heldout-{job}*"))
    assert len(directories) == 2
    for directory in directories:
        assert_only_the_owner_reaches(directory)

    slurm.call("scancel", "--batch", "--signal=USR1", job, check=True)  # as Slurm does before the time limit
    wait_until(lambda: "requeued" in output.read_text())
    trained = num_lines(metrics)
    slurm.wait_for(job, lambda: num_lines(metrics) > trained, output)
    assert f"resumed at policy_version {trained}," in output.read_text()
    assert "it continues bit for bit" in output.read_text()

    slurm.cancel(job)
    slurm.assert_nothing_is_left_of(job)
    assert_checkpoint_is_newest(run, rows)


@pytest.mark.processes
def test_array_tasks_on_one_host_do_not_collide_and_scancel_keeps_checkpoints(
    slurm: Slurm, tiny: list[str], tmp_path: Path, rows: Callable[[Path], list[dict[str, Any]]]
) -> None:
    study = tmp_path / "study"
    flags = [*tiny[2:], "--no-evaluator", "--checkpoint-interval", 10**6, "--total-frames", 10**9]
    plan = [sys.executable, "-m", "learner", "study", study, "--games", tiny[1], "--seeds", 2, "--list", "--", *flags]
    lines = slurm.call(*plan, check=True).splitlines()
    output = tmp_path / "output-%a"
    job = slurm.submit(f"--array=1-{len(lines)}", "--nodelist=n1", f"--output={output}", STUDY, study)
    runs = [study / tiny[1] / "default" / f"seed-{seed}" for seed in (0, 1)]
    slurm.wait_for(job, lambda: all(num_lines(run / "metrics.jsonl") >= 2 for run in runs), tmp_path / "output-1")
    tasks = slurm.call("squeue", "-h", "-t", "R", "-o", "%A", "-j", job).split()
    assert len(tasks) == 2  # both trained at the same time
    slurm.cancel(job)
    for task, run in zip(sorted(tasks), runs, strict=True):
        slurm.assert_nothing_is_left_of(task)
        assert_checkpoint_is_newest(run, rows)
