"""Standard output and error of our command lines, when nobody can read them.

A disk may be full, a pipe closed, a descriptor closed, a terminal gone, or a reader may have stopped reading. Training
goes on in every case (`harmless_output`). A command whose output is its result fails instead (`checked_output`).
"""

import contextlib
import errno
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

CLOSED_PIPE_EXIT_CODE = 141  # as a process that SIGPIPE ends
# A reader that stopped reading may delay training once by this many seconds; after that its lines are dropped until it
# reads again.
PATIENCE_SECONDS = 0.2
# A pipe that is ready takes this many bytes without blocking (POSIX).
_CHUNK_BYTES = 512
# Nobody reads on a terminal that is smaller.
_MIN_COLUMNS, _MIN_LINES = 20, 5


class OutputError(Exception):
    """Standard output could not be written."""

    def __init__(self, cause: Exception):
        super().__init__(getattr(cause, "strerror", None) or f"{cause}")
        self.is_closed_pipe = getattr(cause, "errno", None) == errno.EPIPE


class GuardedStream:
    """A text stream around `stream` that hands its errors to `on_error`. Characters it cannot encode are escaped.

    The process's own streams are written without Python's buffer, so that nothing is left to fail when the interpreter
    ends. With `can_drop` a reader that does not read loses text instead of blocking the writer.
    """

    def __init__(self, stream: TextIO | None, on_error: Callable[[Exception], None], can_drop: bool):
        """`stream` is None where Python found the descriptor closed."""
        is_own = stream is not None and stream in (sys.__stdout__, sys.__stderr__)
        self._stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if is_own:
            with contextlib.suppress(OSError, ValueError):  # what was printed before comes first
                self._stream.flush()
        self._on_error = on_error
        self._can_drop = can_drop
        self._descriptor = self._stream.fileno() if is_own else None
        self._line = ""
        self._lock = threading.RLock()
        self._is_stalled = False

    def write(self, text: str) -> int:
        """Writes whole lines; the rest waits for its end or for `flush`."""
        with self._lock:
            self._line += text
        if "\n" in text:
            self.flush()
        return len(text)

    def flush(self) -> None:
        try:
            with self._lock:
                text, self._line = self._line, ""
                self._write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._on_error(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _write(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        data = text.encode(encoding, "backslashreplace")
        if self._descriptor is None:
            self._stream.write(data.decode(encoding))
            self._stream.flush()
        else:
            self._write_bytes(self._descriptor, data)

    def _write_bytes(self, descriptor: int, data: bytes) -> None:
        while data:
            if self._can_drop and not self._is_ready(descriptor):
                raise BlockingIOError(errno.EAGAIN, "nobody reads it")
            try:
                data = data[os.write(descriptor, data[:_CHUNK_BYTES]) :]
            except BlockingIOError:  # a descriptor that another process made non-blocking
                if self._can_drop:
                    raise
                select.select([], [descriptor], [])

    def _is_ready(self, descriptor: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        is_ready = bool(poll.poll(0 if self._is_stalled else PATIENCE_SECONDS * 1000))
        self._is_stalled = not is_ready
        return is_ready


@contextlib.contextmanager
def harmless_output() -> Iterator[None]:
    """Inside, writing to sys.stdout and sys.stderr never fails and never blocks; errors are logged, not shown."""
    reported = set()

    def report(name: str, error: Exception) -> None:
        if name not in reported:
            reported.add(name)  # first: the record must not come back here
            logger.info("standard %s cannot be written to and is ignored: %s", name, OutputError(error))

    open_closed_descriptors()
    out = GuardedStream(sys.stdout, lambda error: report("output", error), can_drop=True)
    err = GuardedStream(sys.stderr, lambda error: report("error", error), can_drop=True)
    with _replaced(out, err):
        yield


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Inside, and at its end, an error of sys.stdout is an OutputError; errors of sys.stderr are ignored."""

    def fail(error: Exception) -> None:
        raise OutputError(error) from error

    if sys.stdout is None:
        fail(OSError(errno.EBADF, "it is closed"))
    open_closed_descriptors()
    err = GuardedStream(sys.stderr, lambda error: None, can_drop=False)
    with _replaced(GuardedStream(sys.stdout, fail, can_drop=False), err):
        yield


def run_as_process(main: Callable[[], int]) -> NoReturn:
    """Ends the process with main's exit code, whatever has happened to its output.

    Python would flush its streams once more and replace the exit code with 120 if that fails.
    """
    try:
        exit_code = main()
    finally:
        for stream in filter(None, (sys.__stdout__, sys.__stderr__)):
            try:
                stream.flush()
            except (OSError, ValueError):
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as devnull:
                    os.dup2(devnull.fileno(), stream.fileno())
    sys.exit(exit_code)


def print_error(line: str) -> None:
    """Prints a line on standard error if that can be written."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr)


def make_console(width: int | None = None, stderr: bool = False) -> "Console":
    """A console of rich as wide as the terminal, or `width`; 80 x 25 where COLUMNS, LINES or the terminal say nonsense.

    With COLUMNS=0, which some programs leave in the environment, rich prints nothing at all.
    """
    from rich.console import Console

    console = Console(highlight=False, width=width, stderr=stderr)
    if console.width < _MIN_COLUMNS or console.height < _MIN_LINES:
        console = Console(highlight=False, width=width or 80, height=25, stderr=stderr)
    return console


def is_live_terminal(console: "Console") -> bool:
    """Whether a display can be drawn in place again and again; if not, plain lines are printed.

    Not in a pipe, even with FORCE_COLOR, nor with TERM=dumb, nor in a notebook.
    """
    return console.is_interactive and not console.is_jupyter and console.file.isatty()


def open_closed_descriptors() -> None:
    """Opens /dev/null for the standard descriptors that are closed.

    Otherwise the next file that is opened gets the number, and what libraries write to 1 or 2 ends up in it.
    """
    if None in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(descriptor, True)
        os.close(descriptor)


@contextlib.contextmanager
def _replaced(out: GuardedStream, err: GuardedStream) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield
        out.flush()
    finally:
        with contextlib.suppress(OutputError):
            out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
