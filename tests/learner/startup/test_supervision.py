"""The parent of a training process says what the child could not, and otherwise ends as the child did."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from learner.stopping import SIGNALS
from tests.conftest import build_preload, wait_until

PROJECT = Path(__file__).parents[3]
PREAMBLE = (
    "import os, signal, sys, time; from pathlib import Path; from learner.startup.supervision import fork_training\n"
)


started = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    while started:
        with started.pop() as process:
            process.kill()  # the kernel ends its child


def start(code, before="", **options):
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + before + "supervisor = fork_training()\n" + code],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    started.append(process)
    return process


def run(code):
    process = start(code)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "learner.log").write_text("before\n")
    return tmp_path


@pytest.mark.parametrize("code", [0, 1, 2, 130])
def test_child_that_says_why_it_ends_keeps_its_exit_code_and_the_last_word(run_dir, code):
    told = f"supervisor.tell_run_directory(Path({str(run_dir)!r})); supervisor.tell_exiting(); sys.exit({code})"
    assert run(told) == (code, "", "")
    assert (run_dir / "learner.log").read_text() == "before\n"


def test_child_that_fails_before_there_is_a_run_keeps_its_exit_code():
    assert run("sys.exit(2)") == (2, "", "")


@pytest.mark.parametrize(
    ("end", "what"),
    [
        ("os._exit(1)", "exited with code 1 without a message"),
        ("os._exit(0)", "exited with code 0 without a message"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (out of memory?)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 2)", f"was ended by signal {signal.SIGRTMIN + 2}"),
    ],
)
def test_silent_end_is_reported_on_stderr_and_in_the_log(run_dir, end, what):
    exit_code, _, err = run(f"supervisor.tell_run_directory(Path({str(run_dir)!r})); {end}")
    assert exit_code == 1
    assert err.startswith(f"learner: the training process {what}") and len(err.splitlines()) == 1
    assert err.endswith(f"; continue with --resume {run_dir}\n")
    before, added = (run_dir / "learner.log").read_text().splitlines()
    assert before == "before" and added.endswith(f"ERROR learner: exit code 1: {err.strip().removeprefix('learner: ')}")


def test_crash_without_a_run_as_of_the_doctor_is_not_said_to_be_of_training():
    exit_code, _, err = run("os.kill(os.getpid(), signal.SIGSEGV)")
    assert (exit_code, err) == (1, "learner: the process was ended by SIGSEGV before a run began\n")


@pytest.mark.parametrize("signum", SIGNALS)
def test_signal_reaches_the_child_once(signum):
    process = start(
        "seen = []\n"
        f"signal.signal({int(signum)}, lambda n, f: seen.append(n))\n"
        "print('ready', flush=True)\n"
        "while not seen: time.sleep(0.02)\n"
        "time.sleep(0.5); print(len(seen)); supervisor.tell_exiting(); sys.exit(128 + seen[0])",
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    psutil.Process(process.pid).send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + signum, "1\n", "")


def test_signal_immediately_before_the_parent_waits_reaches_the_child(tmp_path):
    library = build_preload(Path(__file__).with_name("signal_before_waiting.c"), tmp_path)
    process = start(
        "while not seen: time.sleep(0.02)\nprint(seen); supervisor.tell_exiting(); sys.exit(143)",
        before="seen = []\nsignal.signal(15, lambda n, f: seen.append(n))\n",  # the signal may come very early
        env={**os.environ, "LD_PRELOAD": str(library)},
    )
    assert process.communicate(timeout=30) == ("[15]\n", "") and process.returncode == 143


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_signal_that_a_background_job_ignores_ends_a_child_that_is_starting(signum, exit_code):
    process = start(
        "try:\n    print('ready', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    supervisor.tell_exiting(); sys.exit(130)",
        preexec_fn=lambda: signal.signal(signum, signal.SIG_IGN),
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert process.communicate(timeout=30) == ("", "") and process.returncode == exit_code


def test_signal_that_nohup_ignores_stays_ignored():
    process = start(
        "print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN); supervisor.tell_exiting(); sys.exit(0)",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.communicate(timeout=30) == ("True\n", "")


def test_exit_code_is_kept_where_ended_children_are_ignored():
    """As from a parent that ignores SIGCHLD, for which the kernel would discard exit codes."""
    process = start(
        "supervisor.tell_exiting(); sys.exit(5)", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    )
    assert process.communicate(timeout=30) == ("", "") and process.returncode == 5


def test_suspended_and_continued_child_is_not_taken_for_an_ended_one():
    process = start(
        "print('ready', flush=True); sys.stdin.readline(); supervisor.tell_exiting(); sys.exit(3)",
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "ready\n"
    (child,) = psutil.Process(process.pid).children()
    for _ in range(3):
        child.suspend()
        time.sleep(0.05)
        child.resume()
        time.sleep(0.05)
    assert process.communicate("go on\n", timeout=30) == ("", "") and process.returncode == 3


def test_signal_to_the_whole_group_as_from_a_terminal_reaches_the_child_once():
    process = start(
        "seen = []\nsignal.signal(2, lambda n, f: seen.append(n))\nprint('ready', flush=True)\n"
        "while not seen: time.sleep(0.02)\n"
        "time.sleep(0.5); print(len(seen)); supervisor.tell_exiting(); sys.exit(130)",
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"

    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "1\n", "")


@pytest.mark.parametrize("num_sent", [1, 2])
def test_signal_to_every_process_counts_once_and_a_second_one_as_the_second(num_sent):
    """As from a batch system. The parent passes signals on one after the other: what SIGUSR1 finds is complete."""
    process = start(
        "seen, done = [], []\n"
        "def note(n, f): time.sleep(0.2); supervisor.tell_signal(n); seen.append(n); print('seen', flush=True)\n"
        "signal.signal(signal.SIGTERM, note); signal.signal(signal.SIGUSR1, lambda n, f: done.append(n))\n"
        "print('ready', flush=True)\n"
        "while not done: time.sleep(0.02)\n"
        "print(len(seen)); supervisor.tell_exiting(); sys.exit(143)",
        # A child that is slow, or on a busy machine, still says within this time that it has the signal.
        before="from learner.startup import supervision; supervision._GROUP_SECONDS = 1.0\n",
    )
    assert process.stdout.readline() == "ready\n"
    parent = psutil.Process(process.pid)
    for one in (parent, *parent.children()):
        one.terminate()
    assert process.stdout.readline() == "seen\n"
    if num_sent == 2:
        wait_until(lambda: not is_pending(parent, signal.SIGTERM), process)  # else the two would be one
        parent.terminate()
    wait_until(lambda: not is_pending(parent, signal.SIGTERM), process)  # else SIGUSR1 would be the first
    parent.send_signal(signal.SIGUSR1)
    expected = "seen\n" * (num_sent - 1) + f"{num_sent}\n"
    assert process.communicate(timeout=30) == (expected, "") and process.returncode == 143


def is_pending(process, signum):
    """Whether a signal was sent to a process that has not taken it."""
    (mask,) = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signum - 1) & 1)


def test_child_ended_by_a_forwarded_signal_ends_the_parent_in_the_same_way():
    process = start("signal.signal(15, signal.SIG_DFL); print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30) == ("", "") and process.returncode == -signal.SIGTERM


def test_child_does_not_outlive_a_killed_parent_which_is_small():
    process = start("print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    parent = psutil.Process(process.pid)
    (child,) = parent.children()
    assert parent.memory_info().rss < 40 << 20
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
