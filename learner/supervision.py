"""A small parent process that outlives a training process which Ray or the kernel ends without a word.

When its raylet dies, Ray ends the learner's process from C++: no exception, no message. The same is true of SIGKILL. So
training runs in a child; the parent forwards signals, waits, and says what happened if the child did not. It is forked
before anything large is imported.

The child tells its parent two things through a pipe: the run directory, and that it is about to exit by itself.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1
_EXITING = b"exiting\n"


class Supervisor:
    """The child's side: what the parent must know."""

    def __init__(self, descriptor: int | None = None):
        self._descriptor = descriptor

    def tell_run_directory(self, path: Path) -> None:
        """From now on the parent reports an end without a message, also in learner.log."""
        self._write(os.fsencode(path) + b"\n")

    def tell_exiting(self) -> None:
        """The process ends by itself and has said why."""
        self._write(_EXITING)

    def _write(self, line: bytes) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, line)


def fork_training() -> Supervisor:
    """Returns in the child. The parent waits for the child and exits as it did, or with 1 if it ended silently."""
    reader, writer = os.pipe()  # not inherited by the programs that the child starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _end_with(parent)
        # Ctrl-C in a terminal reaches the parent alone, which forwards it: twice would end training immediately.
        os.setpgid(0, 0)
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # may write to the terminal all the same
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reader)
        return Supervisor(writer)
    os.close(writer)
    _forward_signals(child)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _, status = os.waitpid(child, 0)
    os.set_blocking(reader, False)
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(reader, 1 << 16)
    sys.exit(_exit_code(status, said))


def _exit_code(status: int, said: bytes) -> int:
    """The exit code for a child that ended with `status`, after saying why it ended if it did not."""
    code = os.waitstatus_to_exitcode(status)
    if -code in FORWARDED:  # a second signal ends training immediately: end in the same way
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    has_begun, is_exiting = bool(said.removesuffix(_EXITING)), said.endswith(_EXITING)
    if code >= 0 and (is_exiting or not has_begun):
        return code
    run = Path(os.fsdecode(said.removesuffix(_EXITING).removesuffix(b"\n"))) if has_begun else None
    message = _describe(code, run)
    with contextlib.suppress(OSError):
        print(f"learner: {message}", file=sys.stderr, flush=True)
    if run is not None and (log := run / "learner.log").exists():
        with contextlib.suppress(OSError), open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')},000 ERROR learner: exit code 1: {message}\n")
    return 1


def _describe(code: int, run: Path | None) -> str:
    if code == -signal.SIGKILL:
        what = "was ended by SIGKILL (out of memory?)"
    elif code < 0:
        what = f"was ended by {signal.Signals(-code).name}"
    else:
        what = f"exited with code {code} without a message (Ray ends it when its raylet or the cluster's head dies)"
    can_resume = run is not None and (run / "config.json").exists()
    next_step = f"continue with --resume {run}" if can_resume else "training had not begun"
    return f"the training process {what}; {next_step}"


def _forward_signals(child: int) -> None:
    def forward(signum: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signum)

    def suspend(signum: int, frame: object) -> None:
        """Ctrl-Z stops both, `fg` and `bg` continue both."""
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.kill(child, signal.SIGCONT)

    for signum in FORWARDED:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup: the child ignores it too
            signal.signal(signum, forward)
    signal.signal(signal.SIGTSTP, suspend)


def _end_with(parent: int) -> None:
    """The kernel ends this process if its parent is killed (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it was killed before
        os._exit(1)
