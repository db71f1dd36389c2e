"""Starting, watching and ending the learners of a study, with a small program in the learners' place."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.limits import available_cores
from common.storage.jsonl import append_jsonl
from common.storage.run_directory import RunDirectory
from learner.study.plan import Study, make_plan, write_plan
from learner.study.processes import share_of_cores
from tests.conftest import tiny_config, wait_until

PROJECT = Path(__file__).parents[3]
# Trains nothing: copies a finished run, fails or dies for seed 1, or waits for a signal, as the file MODE says.
PROGRAM = """
import os, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, os.getcwd())
from common.storage.file_lock import FileIsLocked, FileLock
run, mode = Path(sys.argv[4]), Path({mode!r}).read_text()
run.mkdir(parents=True, exist_ok=True)
try: lock = FileLock(run / ".learner.lock")
except FileIsLocked: print("learner: in use"); sys.exit(2)
Path({seen!r}).joinpath(f"{{run.name}}-{{os.getpid()}}").write_text(" ".join(map(str, sorted(os.sched_getaffinity(0)))))
if mode == "wait":
    seen = []
    again = signal.SIG_IGN if {deaf} else signal.SIG_DFL
    signal.signal(signal.SIGINT, lambda n, f: (seen.append(n), signal.signal(n, again)))
    signal.signal(signal.SIGTERM, lambda n, f: seen.append(n))
    run.joinpath("ready").touch()
    while not seen: time.sleep(.02)
    run.joinpath("told").touch()
    time.sleep(60 if {stubborn} else .3)  # a second signal would end it now
    run.joinpath("ended").write_text(str(seen[0]))
    print("learner: stopped"); sys.exit(128 + seen[0])
if mode == "fail" and run.name == "seed-1":
    print("working"); print("learner: it does not work"); sys.exit(1)
if mode == "die" and run.name == "seed-1":
    os.kill(os.getpid(), signal.SIGKILL)
shutil.copytree({finished!r}, run, dirs_exist_ok=True)
"""
STUDY = """
import sys
from pathlib import Path
from learner.study import command, processes
processes._LAST_SECONDS = 0.5
command.learner_program = lambda: [sys.executable, {program!r}]
{fault}
sys.exit(command.main(sys.argv[1:]))
"""
FLAGS = ["--games", "leaper", "--seeds", "3"]


@pytest.fixture
def study(tmp_path):
    """Starts a study with the small program in `mode`; it writes one file into `seen` for each learner.

    Ended children are ignored, as some parents leave it: exit codes must be read nevertheless.
    """
    finished, seen, mode = RunDirectory(tmp_path / "finished"), tmp_path / "seen", tmp_path / "mode"
    finished.path.mkdir()
    seen.mkdir()
    finished.write_config(tiny_config(total_frames=64), {})
    frames = make_plan(Study(("leaper",), 1, {}, ())).runs[0].frames
    append_jsonl(finished.metrics, {"policy_version": 1, "frames": frames, "time": 0.0})
    append_jsonl(finished.evaluations, {"policy_version": 1})
    program = tmp_path / "program.py"
    started = []

    def start(how, *arguments, stubborn=False, deaf=False, fault=""):
        mode.write_text(how)
        program.write_text(
            PROGRAM.format(mode=str(mode), seen=str(seen), finished=str(finished.path), stubborn=stubborn, deaf=deaf)
        )
        code = STUDY.format(program=str(program), fault=fault)
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "study"), *arguments],
            cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def run_to_end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err.splitlines()


@pytest.mark.processes
def test_every_run_is_started_once_and_skipped_when_it_is_finished(study, tmp_path):
    code, out, err = run_to_end(study("finish", *FLAGS))
    assert (code, err) == (0, []), (out, err)
    assert [line.split()[:2] for line in out[1:-1]] == [
        [word, f"leaper/default/seed-{seed}"] for seed in range(3) for word in ("started", "finished")
    ]
    assert "; 3 of 3 done, 0 running, 0 failed" in out[-2]
    assert len(list((tmp_path / "seen").iterdir())) == 3
    code, out, err = run_to_end(study("fail", "--seeds", "4"))  # seed 1 would fail
    assert (code, err) == (0, [])
    assert "4 runs, 3 finished, 1 to do" in out[0]
    assert sorted(path.name[:6] for path in (tmp_path / "seen").iterdir()) == ["seed-0", "seed-1", "seed-2", "seed-3"]


@pytest.mark.processes
def test_environment_that_says_zero_columns_hides_no_line(study, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    _, out, _ = run_to_end(study("finish", *FLAGS))
    assert len(out) == 8


@pytest.mark.processes
def test_failing_run_is_reported_with_its_last_line_and_the_others_go_on(study, tmp_path):
    code, out, err = run_to_end(study("fail", *FLAGS))
    assert code == 1 and err == ["learner study: runs have failed; the same command continues the study"]
    (line,) = [line for line in out if line.startswith("failed")]
    assert line.startswith("failed    leaper/default/seed-1: exit code 1: learner: it does not work; 1 of 3 done")
    code, out, _ = run_to_end(study("fail", "--status"))
    assert code == 0 and [line.split()[0] for line in out] == ["finished", "failed", "finished", "3"]
    assert out[1].endswith("learner: it does not work") and out[-1].startswith("3 runs: 2 finished, 1 failed")
    code, out, _ = run_to_end(study("die"))  # the failed run is tried again
    (line,) = [line for line in out if line.startswith("failed")]
    reason = "exit code 137: ended by SIGKILL (out of memory?); it printed nothing"
    assert code == 1 and f": {reason}; 2 of 3 done" in line  # not the first attempt's line
    _, out, _ = run_to_end(study("die", "--status"))
    assert out[1].startswith("failed ") and "ended by SIGKILL (out of memory?)" in out[1]
    assert run_to_end(study("finish"))[0] == 0


@pytest.mark.processes
def test_run_that_cannot_be_started_is_reported(study, tmp_path):
    (tmp_path / "study" / "leaper" / "default").mkdir(parents=True)
    (tmp_path / "study" / "leaper" / "default" / "seed-0.out").mkdir()
    code, out, _ = run_to_end(study("finish", *FLAGS))
    assert code == 1
    assert any(line.startswith("failed    leaper/default/seed-0: cannot start it") for line in out)
    assert "2 of 3 done" in out[-1]


@pytest.mark.processes
def test_run_whose_files_cannot_be_read_fails_and_the_others_go_on(study, tmp_path):
    run = tmp_path / "study" / "leaper" / "default" / "seed-0"
    assert run_to_end(study("finish", *FLAGS))[0] == 0
    (run / "evaluations.jsonl").unlink()
    (run / "evaluations.jsonl").mkdir()
    code, out, err = run_to_end(study("finish", "--seeds", "4"))
    assert (code, err) == (1, ["learner study: runs have failed; the same command continues the study"])
    (line,) = [line for line in out if line.startswith("failed")]
    assert (
        "leaper/default/seed-0: cannot start it: [Errno 21] Is a directory: '" in line and "evaluations.jsonl" in line
    )
    assert "3 of 4 done, 0 running, 1 failed" in out[-1]
    code, out, _ = run_to_end(study("finish", "--status"))
    assert code == 0 and [line.split()[0] for line in out] == ["failed", "finished", "finished", "finished", "4"]


@pytest.mark.processes
def test_study_that_fails_itself_waits_for_its_learners(study, tmp_path):
    run = tmp_path / "study" / "leaper" / "default" / "seed-0"
    fault = f"def fail(*_, **__):\n    if Path({str(run / 'ready')!r}).exists(): raise RuntimeError('of the study')"
    process = study("wait", *FLAGS, fault=f"{fault}\nprocesses.Learners._collect = fail")
    code, _, err = run_to_end(process)
    assert code == 1 and err[-1] == "RuntimeError: of the study"
    assert run.joinpath("ended").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize(
    ("signum", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)],
    ids=["Ctrl-C in the terminal", "SIGTERM"],
)
@pytest.mark.processes
def test_signal_ends_all_runs_in_order_and_starts_no_other(study, tmp_path, signum, send):
    process = study("wait", *FLAGS, "--jobs", "2")
    runs = [tmp_path / "study" / "leaper" / "default" / f"seed-{seed}" for seed in range(3)]
    wait_until(lambda: all((run / "ready").exists() for run in runs[:2]), process)
    send(process.pid, signum)
    code, out, err = run_to_end(process)
    assert code == 128 + signum, (out, err)
    assert [run.joinpath("ended").read_text() for run in runs[:2]] == [str(int(signum))] * 2
    assert not runs[2].exists()
    assert f"{signum.name}: stopping 2 runs, each after a checkpoint" in out
    assert sum(line.startswith("stopped") for line in out) == 2
    assert err == ["learner study: stopped by a signal; the same command continues the study"]
    _, out, _ = run_to_end(study("wait", "--status"))
    assert [line.split()[0] for line in out[:3]] == ["stopped", "stopped", "waiting"]


@pytest.mark.parametrize("deaf", [False, True], ids=["ends", "ignores it"])
@pytest.mark.processes
def test_second_ctrl_c_ends_at_once_also_a_learner_that_ignores_it(study, tmp_path, deaf):
    process = study("wait", *FLAGS, stubborn=True, deaf=deaf)
    run = tmp_path / "study" / "leaper" / "default" / "seed-0"
    wait_until((run / "ready").exists, process)
    (pid,) = [int(path.name.split("-")[2]) for path in (tmp_path / "seen").iterdir()]
    process.send_signal(signal.SIGINT)
    wait_until((run / "told").exists, process)  # the first signal has gone all the way, so that the two do not merge
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert run_to_end(process)[0] == 130
    assert not (run / "ended").exists()  # the learner would have ended by itself a minute after the first one
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.processes
def test_runs_of_a_killed_study_end_in_order(study, tmp_path):
    process = study("wait", *FLAGS)
    run = tmp_path / "study" / "leaper" / "default" / "seed-0"
    wait_until((run / "ready").exists, process)
    process.kill()
    process.wait()
    wait_until((run / "ended").exists)
    assert run.joinpath("ended").read_text() == str(int(signal.SIGTERM))


@pytest.mark.processes
def test_study_waits_for_the_learners_of_a_killed_one(study, tmp_path):
    process = study("wait", *FLAGS)
    run = tmp_path / "study" / "leaper" / "default" / "seed-0"
    wait_until((run / "ready").exists, process)
    (pid,) = [int(path.name.split("-")[2]) for path in (tmp_path / "seen").iterdir()]
    os.kill(pid, signal.SIGSTOP)  # its last checkpoint takes long
    process.kill()
    process.wait()
    following = study("finish", *FLAGS, fault="processes._EARLIER_LEARNERS_SECONDS = 600.0")
    assert following.stdout.readline().endswith("3 runs, 0 finished, 3 to do\n")
    wait_until(lambda: (tmp_path / "study" / "leaper" / "default" / "seed-2.json").exists(), following)
    os.kill(pid, signal.SIGCONT)
    code, out, err = run_to_end(following)
    assert (code, err) == (0, []), (out, err)
    assert run.joinpath("ended").exists() and out[-2].startswith("finished  leaper/default/seed-0 ")


@pytest.mark.processes
def test_second_study_in_the_same_directory_is_refused(study, tmp_path):
    process = study("wait", *FLAGS)
    wait_until((tmp_path / "study" / "leaper" / "default" / "seed-0" / "ready").exists, process)
    code, out, err = run_to_end(study("wait", *FLAGS))
    assert (code, out, len(err)) == (2, [], 1)
    assert f"is in use by another study (process {process.pid} on " in err[0]
    assert run_to_end(study("wait", "--status"))[1][-1].startswith("3 runs: 1 running, 2 waiting")
    process.terminate()
    assert run_to_end(process)[0] == 143


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.processes
def test_runs_side_by_side_share_the_cores(study, tmp_path, cores):
    if cores > available_cores():
        pytest.skip("needs two CPU cores: one core cannot be divided between two runs")
    # `cores` is how many the study may use: one, or all of this machine.
    fault = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})" if cores == 1 else ""
    process = study("wait", *FLAGS, "--jobs", "2", fault=fault)
    wait_until(lambda: len(list((tmp_path / "study" / "leaper" / "default").glob("*/ready"))) == 2, process)
    process.terminate()
    _, out, _ = run_to_end(process)
    one, other = [set(path.read_text().split()) for path in (tmp_path / "seen").iterdir()]
    if cores == 1:
        assert one == other and len(one) == 1
        assert "2 runs at a time, all on the same CPU cores, which are too few to divide" in out
    else:
        assert not one & other and len(one) == len(other) == available_cores() // 2
        assert f"2 runs at a time, each with {available_cores() // 2} of the CPU cores" in out


@pytest.mark.parametrize(
    ("cores", "jobs", "available", "shares"),
    [
        ([0, 1, 2, 3], 2, 4, [{0, 1}, {2, 3}]),
        ([4, 5, 6, 7, 8], 2, 5, [{4, 5}, {6, 7}]),
        ([0, 1, 2, 3], 1, 4, [{0, 1, 2, 3}]),
        ([0, 1], 3, 2, [{0, 1}, {0, 1}, {0, 1}]),
        ([0, 1, 2, 3, 4, 5, 6, 7], 2, 4, [{0, 1}, {2, 3}]),  # a quota of 4 CPUs
    ],
)
def test_cores_are_divided_equally_or_shared_if_too_few(monkeypatch, cores, jobs, available, shares):
    monkeypatch.setattr("learner.study.processes.available_cores", lambda: available)
    assert [share_of_cores(cores, jobs, slot) for slot in range(jobs)] == shares


@pytest.mark.processes
def test_plan_of_another_study_is_refused_before_anything_starts(study, tmp_path):
    (tmp_path / "study").mkdir()
    write_plan(tmp_path / "study", make_plan(Study(("maze",), 3, {}, ())), ["python"])
    code, _, err = run_to_end(study("finish", *FLAGS))
    assert code == 2 and "holds another study: game maze is missing" in err[0]
    assert not list((tmp_path / "seen").iterdir())
