"""Ctrl-C and SIGTERM become one exception, raised where the training loop says it is safe."""

import signal
import threading
from types import FrameType


class StopRequested(Exception):
    """The user or the system asked the run to end."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class StopSignals:
    """Remembers the first SIGINT or SIGTERM; the second one ends the process at once."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self.signum = 0

    def install(self) -> None:
        """From now on signals are remembered. After `ray.init`, which installs a handler of its own."""
        signal.signal(signal.SIGINT, self._remember)
        signal.signal(signal.SIGTERM, self._remember)

    def check(self) -> None:
        """Raises StopRequested if a signal came."""
        if self.requested.is_set():
            raise StopRequested(self.signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.requested.set()
        signal.signal(signum, signal.SIG_DFL)
