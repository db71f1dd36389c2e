"""Turns Ctrl-C and SIGTERM into an exception that is raised only where the training loop says it is safe."""

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequested(Exception):
    """The user or the system asked the run to end."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopSignals:
    """Remembers the first SIGINT or SIGTERM; a second one ends the process immediately. A context manager.

    Used by the main thread, on which Python runs signal handlers.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)

    def install(self) -> None:
        """Starts to remember signals. Must be called again after `ray.init`, which installs its own handlers."""
        for signum in SIGNALS:
            signal.signal(signum, self._remember)

    def check(self) -> None:
        """Raises StopRequested if a signal came."""
        if self.signum is not None:
            raise StopRequested(self.signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        signal.signal(signum, signal.SIG_DFL)
