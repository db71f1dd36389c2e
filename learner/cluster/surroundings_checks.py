"""Checks of what surrounds a run: its output, home and temporary directories, network, and inherited variables.

None of them creates anything.
"""

import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from common.home import describe_home, home_directory
from common.process import replaced_variables, unexpected_ray_variables
from common.storage.file_system import existing_parent
from learner.cluster.authentication import find_token
from learner.cluster.embedded import directory_for_ray, token_can_be_used
from learner.cluster.machine_checks import Check, mib
from learner.cluster.target import ClusterError

# Ray's files of a short run take 2 MiB; its logs may grow to a hundred times that.
RAY_FILES_BYTES = 200 << 20
LOOPBACK_TIMEOUT = 5.0


def streams_check() -> Check:
    """Whether what a run prints can be seen; the streams are the doctor's own, which a run would have too."""
    name, lost = "output", []
    for stream, label in ((sys.__stdout__, "standard output"), (sys.__stderr__, "standard error")):
        try:
            if stream is None:
                lost.append(f"{label} is closed")
                continue
            descriptor = stream.fileno()
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            if is_file and not os.fstatvfs(descriptor).f_bavail:
                lost.append(f"{label} is a file on a full disk")
        except (OSError, ValueError):
            lost.append(f"{label} cannot be used")
    if lost:
        return Check(name, "warning", ", ".join(lost), "redirect it to a disk with space; training goes on without it")
    terminal = os.environ.get("TERM", "unknown")
    is_terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()
    return Check(name, "ok", f"terminal, TERM={terminal}" if is_terminal else "no terminal: a plain line per update")


def token_check() -> Check:
    """Where the token for clusters is, and whether only its owner can read it."""
    token = find_token()
    if not token.exists:
        if token_can_be_used():
            return Check("token", "ok", f"none yet; one will be created in {token.location}")
        found = f"none in {token.location}, and none can be created there: an embedded Ray uses a private one"
        return Check("token", "warning", found, "for a cluster, set HOME or RAY_AUTH_TOKEN_PATH")
    if token.path is not None and (mode := stat.S_IMODE(token.path.stat().st_mode)) & 0o077:
        return Check("token", "warning", f"{token.path} has mode {mode:04o}", f"chmod 600 {token.path}")
    return Check("token", "ok", f"in {token.location}")


def home_check() -> Check:
    """Whether the home directory can be used; libraries keep caches there, and Ray its token."""
    home, found = home_directory(), describe_home()
    remedy = "training works without it; set HOME to a directory that you can write to"
    if home is None or not home.is_dir():
        return Check("home", "warning", f"{found}: no such directory", remedy)
    if not os.access(home, os.W_OK | os.X_OK):
        return Check("home", "warning", f"{found}: not writable", remedy)
    if is_full(home):
        return Check("home", "warning", f"{found}: its disk is full", "free some space")
    return Check("home", "ok", found)


def ray_directory_check() -> Check:
    """Whether an embedded Ray can create its sockets and logs."""
    name = "Ray's directory"
    try:
        directory = directory_for_ray(create=False)
    except ClusterError as error:
        return Check(name, "fatal", str(error), "set RAY_TMPDIR to a short path on a local disk, or unset it")
    named = os.environ.get("RAY_TMPDIR")
    found = f"RAY_TMPDIR={named}" if directory is None else str(directory)
    free = shutil.disk_usage(existing_parent(Path(named or "/tmp") if directory is None else directory)).free
    found = f"{found}, {mib(free)} MiB free"
    if free < RAY_FILES_BYTES:
        remedy = f"free {mib(RAY_FILES_BYTES)} MiB, or name another local directory in RAY_TMPDIR"
        return Check(name, "warning", found, remedy)
    return Check(name, "ok", found)


def temporary_directory_check() -> Check:
    """Whether TMPDIR can be used, where Python puts our code on its way to a cluster."""
    name, named = "TMPDIR", os.environ.get("TMPDIR")
    try:
        found = tempfile.gettempdir()
    except OSError as error:
        return Check(name, "fatal", str(error), "set TMPDIR to a writable directory")
    if named and Path(named).absolute() != Path(found).absolute():
        return Check(
            name, "warning", f"{named} is not a writable directory; {found} is used", "create it or unset TMPDIR"
        )
    return Check(name, "ok", found)


def loopback_check() -> Check:
    """Whether processes of this host reach each other at 127.0.0.1, as those of an embedded Ray do."""
    name = "loopback"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_TIMEOUT).close()
    except OSError as error:
        found = f"127.0.0.1 cannot be reached: {error.strerror or error}"
        return Check(name, "fatal", found, "bring the loopback interface up (ip link set lo up)")
    return Check(name, "ok", "127.0.0.1 can be reached")


def variables_check(environment: Mapping[str, str], embedded: bool) -> Check:
    """Inherited variables that change how Ray works, or whose values are not used."""
    replaced = [name for name in replaced_variables(environment, embedded) if name != "RAY_ADDRESS"]
    unused = f"not used in a run: {', '.join(replaced)}" if replaced else ""
    if unexpected := unexpected_ray_variables(environment, embedded):
        found = "; ".join(filter(None, (f"Ray reads {', '.join(unexpected)}", unused)))
        return Check("environment", "warning", found, "unset variables that another project left")
    return Check("environment", "ok", unused or "no variable that affects a run")


def is_full(directory: Path) -> bool:
    """Whether nothing more can be written there; file systems without a number of inodes report 0 of 0."""
    status = os.statvfs(directory)
    return not status.f_bavail or bool(status.f_files and not status.f_favail)
