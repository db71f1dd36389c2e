"""A small parent process that outlives a training process which Ray or the kernel ends without a message.

When its raylet dies, Ray ends the learner's process from C++: no exception, no message. The same is true of SIGKILL. So
training runs in a child; the parent forwards signals, waits, and says what happened if the child did not. It is forked
before anything large is imported.

The child tells its parent three things through a pipe, one per line: the run directory, the signals that it received,
and that it is about to exit by itself.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from common.output import open_closed_descriptors, print_error
from learner.stopping import SIGNALS, ended_by, handled_signals, heed_ignored_signals

# A signal sent to all our processes, as batch systems do, reaches the child without us within this time.
_GROUP_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1
_RUN, _SIGNAL, _EXITING = "run", "signal", "exiting"


class Supervisor:
    """The child's side: what the parent must know. Without a descriptor there is no parent to tell."""

    def __init__(self, descriptor: int | None = None):
        self._descriptor = descriptor

    def tell_run_directory(self, path: Path) -> None:
        """From now on the parent reports an end without a message, also in learner.log."""
        self._tell(_RUN, str(path))

    def tell_signal(self, signum: int) -> None:
        """The signal came and needs no forwarding."""
        self._tell(_SIGNAL, int(signum))

    def tell_exiting(self) -> None:
        """The process ends by itself and has said why."""
        self._tell(_EXITING, True)

    def _tell(self, what: str, value: str | int) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, (json.dumps({what: value}) + "\n").encode())


def fork_training() -> Supervisor:
    """Returns in the child. The parent waits for the child and exits as it did, or with 1 if it ended silently."""
    open_closed_descriptors()  # a pipe must not take the place of a standard stream
    reader, writer = os.pipe()  # not inherited by the programs that the child starts
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, the kernel would discard the child's exit code
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS, signal.SIGTSTP, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(parent)
        # Ctrl-C in a terminal reaches the parent alone, which forwards it: twice would end training immediately.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # may write to the terminal all the same
        heed_ignored_signals()  # before they are unblocked: one that has come would be lost
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reader)
        return Supervisor(writer)
    os.close(writer)
    watched = _Child(child, reader)
    sys.exit(watched.exit_code(watched.wait()))


class _Child:
    """The parent's side. Signals are blocked and taken by `sigwait`.

    With handlers, one that comes between two waits, or immediately before the first, would be handled only after the
    child's end.
    """

    def __init__(self, pid: int, reader: int):
        os.set_blocking(reader, False)
        self._pid = pid
        self._reader = reader
        self._unread = b""
        self._run: Path | None = None
        self._is_exiting = False
        self._received: Counter[int] = Counter()  # signals that the child says it received
        self._sent: Counter[int] = Counter()  # of these, the ones that we know of

    def wait(self) -> int:
        """Passes signals on until the child has ended; returns its status as `os.waitpid` does."""
        awaited = {*handled_signals(), signal.SIGTSTP, signal.SIGCHLD}
        while True:
            signum = signal.sigwait(awaited)
            if signum == signal.SIGTSTP:
                self._suspend()
            elif signum != signal.SIGCHLD:
                self._forward(signum)
            else:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
                if pid == self._pid:  # it has ended, not only been stopped or continued
                    return status

    def exit_code(self, status: int) -> int:
        """The exit code for a child that ended with `status`, after saying why it ended if it did not."""
        self._read()
        code = os.waitstatus_to_exitcode(status)
        if -code in SIGNALS:  # a second signal ends training immediately: end in the same way
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        if code >= 0 and (self._is_exiting or self._run is None):
            return code
        message = self._describe(code)
        print_error(f"learner: {message}")
        if self._run is not None and (log := self._run / "learner.log").exists():
            with contextlib.suppress(OSError), open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 ERROR learner: exit code 1: {message}\n")
        return 1

    def _describe(self, code: int) -> str:
        if code < 0:
            what = f"was {ended_by(-code)}"
        else:
            what = f"exited with code {code} without a message (Ray ends it when its raylet or the cluster's head dies)"
        if self._run is None:  # perhaps of the doctor
            return f"the process {what} before a run began"
        can_resume = (self._run / "config.json").exists()
        next_step = f"continue with --resume {self._run}" if can_resume else "training had not begun"
        return f"the training process {what}; {next_step}"

    def _forward(self, signum: int) -> None:
        """Sends the signal to the child unless its sender has sent it to the child as well."""
        time.sleep(_GROUP_SECONDS)
        self._read()
        if self._received[signum] > self._sent[signum]:
            self._sent[signum] = self._received[signum]
            return
        self._sent[signum] += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signum)

    def _suspend(self) -> None:
        """Ctrl-Z stops both, `fg` and `bg` continue both."""
        os.kill(self._pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(self._pid, signal.SIGCONT)

    def _read(self) -> None:
        """Reads what the child has reported so far."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._reader, 1 << 16):
                self._unread += part
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            ((what, value),) = json.loads(line).items()
            if what == _RUN:
                self._run = Path(value)
            elif what == _SIGNAL:
                self._received[value] += 1
            else:
                self._is_exiting = True


def _end_with(parent: int) -> None:
    """The kernel ends this process if its parent is killed (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it was killed before
        os._exit(1)
