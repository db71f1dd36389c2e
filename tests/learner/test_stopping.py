"""Which signals end a run, and what a second one does."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from learner.stopping import SENT_BY_PEOPLE, SIGNALS, StopRequested, StopSignals, only_for_the_learner
from tests.conftest import wait_until

IDS = [signum.name for signum in SIGNALS]


@pytest.mark.parametrize("signum", SIGNALS, ids=IDS)
def test_each_end_signal_is_remembered_with_its_exit_code(signum):
    before = signal.getsignal(signum)
    with StopSignals() as stop:
        stop.check()
        os.kill(os.getpid(), signum)
        with pytest.raises(StopRequested, match=signum.name) as request:
            stop.check()
        assert request.value.exit_code == 128 + signum
        is_default = signal.getsignal(signum) == signal.SIG_DFL
        assert is_default == (signum in SENT_BY_PEOPLE)  # then a second one ends the process
    assert signal.getsignal(signum) == before


def test_the_first_signal_decides_the_exit_code():
    with StopSignals() as stop:
        for signum in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signum)
        with pytest.raises(StopRequested, match="SIGHUP"):
            stop.check()


def test_sighup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            stop.install()
            os.kill(os.getpid(), signal.SIGHUP)
            stop.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_on_another_thread_no_signal_is_handled():
    errors = []

    def use():
        try:
            with StopSignals() as stop:
                stop.install()
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert errors == []


def test_children_do_not_receive_what_only_ends_the_learner(popen):
    with StopSignals() as stop:
        with only_for_the_learner():
            child = popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"], stdout=-1)
            os.kill(os.getpid(), signal.SIGHUP)
        # Ours arrives after the block; if another thread takes it, this one learns of it a moment later.
        with pytest.raises(StopRequested, match="SIGHUP"):
            wait_until(stop.check)
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.terminate()
        assert child.wait(10) == -signal.SIGTERM
