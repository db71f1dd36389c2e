"""Turns signals that ask a process to end into an exception, raised only where the training loop says it is safe."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What people and systems send to end a process: Ctrl-C, kill, a closed terminal, Ctrl-\\, batch systems before a time
# limit (USR1, USR2, XCPU), a power failure. Not those of timers, which belong to whoever started the timer.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
# People send these; a second one ends the process immediately. Systems repeat the others by themselves: a closed
# terminal sends SIGHUP twice, a CPU limit SIGXCPU every second.
SENT_BY_PEOPLE = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
# Handled even where they were ignored at the start, as SIGINT is for a script's background job: they can only be meant.
_NEVER_IGNORED = (signal.SIGINT, signal.SIGTERM)


def handled_signals() -> dict[int, Any]:
    """The present handlers of those `SIGNALS` that are to end this process; what `nohup` ignores stays ignored."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    return {
        signum: handler
        for signum, handler in handlers.items()
        if signum in _NEVER_IGNORED or handler is not signal.SIG_IGN
    }


def heed_ignored_signals() -> None:
    """Gives signals that always end a run Python's own handlers where they are ignored, until better ones come."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ended_by(signum: int) -> str:
    """`ended by SIGSEGV`, for a process that a signal ended; real-time signals have only numbers."""
    try:
        name = signal.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    return f"ended by {name}{' (out of memory?)' if signum == signal.SIGKILL else ''}"


class StopRequested(Exception):
    """The user or the system asked the run to end."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopSignals:
    """Remembers the first of `SIGNALS` that comes. A context manager, which restores the handlers.

    Python runs signal handlers on the main thread; used on another thread, this does nothing. A signal that was ignored
    at the start stays ignored (`nohup`). `on_signal` is called with each signal, in its handler.
    """

    def __init__(self, on_signal: Callable[[int], None] = lambda signum: None) -> None:
        self.signum: int | None = None
        self.previous: dict[int, Any] = {}
        self._on_signal = on_signal

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self.previous = handled_signals()
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)  # None: it was not set by Python

    def install(self) -> None:
        """Starts to remember signals. Must be called again after `ray.init`: its C++ code installs its own handlers."""
        for signum in self.previous:
            signal.signal(signum, self._remember)

    def check(self) -> None:
        """Raises StopRequested if a signal came."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self._on_signal(signum)
        if self.signum is None:
            self.signum = signum
        if signum in SENT_BY_PEOPLE:
            signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def only_for_the_learner() -> Iterator[None]:
    """Processes that are started inside never receive the signals that only end the learner.

    A closed terminal sends SIGHUP to every process of the job. An embedded Ray that ended with it would end the learner
    before its checkpoint. Blocked signals stay blocked in child processes; ours arrive when the block ends. SIGTERM
    remains: it is how Ray ends its processes.
    """
    kept_from_children = set(SIGNALS) - {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, kept_from_children)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
