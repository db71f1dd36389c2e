"""Several hosts on one machine, with a real network between them that can be cut and slowed down.

A host is a set of Linux namespaces: a network card with an address, a hostname, processes and shared memory of its
own. Hosts share the machine's files, as if the same image were installed on each. A bridge in a namespace of its own
joins them; the machine's own network is not touched.

Nothing has to be cleaned up. Namespaces live as long as this process holds a pipe to each: however it ends, the kernel
then kills every process in them, and takes back their cards and memory.

It needs root, util-linux (`unshare`, `nsenter`) and iproute2 (`ip`, `tc`); `why_no_hosts` says what is missing.
"""

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PROJECT = Path(__file__).parents[1]
SUBNET = "10.77.0"
RAY_PORT = 6379
OBJECT_STORE = 200 << 20
# In each host's own /dev/shm: a short path, since those of Unix sockets may have 107 bytes, and gone with the host.
RAY_DIRECTORY, TOKEN_FILE = "/dev/shm/ray", "/dev/shm/token"
# What a bucket must hold so that whole packets pass, and how long a packet may queue.
_BURST, _LONGEST_QUEUE = "64kb", "200ms"
_NAMESPACES = ("--pid", "--mount", "--net", "--uts")
# The first process of a host holds it open, and reaps orphans by ignoring their end.
_FIRST_PROCESS = (
    "mount -t tmpfs -o size=2g tmpfs /dev/shm && echo {name} > /proc/sys/kernel/hostname && ip link set lo up "
    "&& trap '' CHLD && echo ready && exec cat"
)


class HostsError(RuntimeError):
    """A host could not be built, or a command on it failed; the message holds what the command said."""


class Host:
    """Namespaces and the processes in them; the switch between the hosts is one as well."""

    def __init__(self, name: str):
        self.name = name
        self.address = ""
        self.environment: dict[str, str] = {}
        command = ["unshare", "--fork", "--kill-child", "--mount-proc", *_NAMESPACES]
        self._holder = subprocess.Popen(
            [*command, "sh", "-c", _FIRST_PROCESS.format(name=shlex.quote(name))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for who built the host
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        if said != "ready\n":
            said += self.close()
            raise HostsError(f"namespaces could not be made: {said.strip()}")
        self.first_pid = psutil.Process(self._holder.pid).children()[0].pid

    def command(self, *command: object) -> list[str]:
        """The command line that runs `command` in this host."""
        flags = ["--target", str(self.first_pid), *_NAMESPACES]
        return ["nsenter", *flags, f"--wdns={PROJECT}", "--", *map(str, command)]

    def run(self, *command: object, timeout: float = 60) -> str:
        """Runs a command in this host to its end and returns its stdout.

        Raises:
            HostsError: it failed, or did not end in time.
        """
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            end(process)
            raise HostsError(f"{shlex.join(map(str, command))} on {self.name}: not within {timeout:.0f} s") from error
        if process.returncode:
            raise HostsError(f"{shlex.join(map(str, command))} on {self.name}: {out}{err}".strip())
        return out

    def start(self, *command: object, **options: Any) -> "subprocess.Popen[Any]":
        """Starts a command in this host. It is a child of the process that is returned: see `send_signal` and `end`."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        options = {"stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.command(*command), env={**environment, **self.environment}, **options)

    def path(self, inside: str) -> Path:
        """A file of this host, seen from outside."""
        return Path(f"/proc/{self.first_pid}/root{inside}")

    def processes(self, name: str) -> list[psutil.Process]:
        """Its living processes with `name` in what they were started as: `raylet`, `ray::RemoteRolloutActor`."""
        namespace = os.readlink(f"/proc/{self.first_pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):  # it has ended meanwhile
                here = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                if here and name in Path((process.cmdline() or [""])[0]).name:
                    found.append(process)
        return found

    def close(self) -> str:
        """Ends the host as a power cut would; returns what its first process still had to say."""
        assert self._holder.stdin is not None and self._holder.stdout is not None
        self._holder.stdin.close()
        said = self._holder.stdout.read()
        self._holder.stdout.close()
        self._holder.wait(30)
        return said


class Network:
    """`count` hosts at 10.77.0.1, 10.77.0.2, ... behind one switch."""

    def __init__(self, count: int):
        self._open = contextlib.ExitStack()
        self.hosts: list[Host] = []
        with contextlib.ExitStack() as undo:  # if one cannot be built, those before it go
            self.switch = self._new("switch", undo)
            self.switch.run("ip", "link", "add", "bridge", "type", "bridge", "stp_state", "0", "forward_delay", "0")
            self.switch.run("ip", "address", "add", f"{SUBNET}.254/24", "dev", "bridge")
            self.switch.run("ip", "link", "set", "bridge", "up")
            for number in range(1, count + 1):
                host = self._new(f"host-{number}", undo)
                host.address = f"{SUBNET}.{number}"
                self._connect(host)
                self.hosts.append(host)
            self._open = undo.pop_all()

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def cut_off(self, host: Host) -> None:
        """Pulls the host's cable out of the switch: packets vanish, no connection is closed."""
        self.switch.run("ip", "link", "set", _port(host), "down")

    def reconnect(self, host: Host) -> None:
        """Puts the cable back."""
        self.switch.run("ip", "link", "set", _port(host), "up")

    def limit(self, host: Host, bytes_per_second: float | None) -> None:
        """Lets no more than this through to `host`, headers included; the way from it stays as it is. None: no limit.

        A token bucket in the switch: what is too much waits for a moment and is then dropped, as in a real one.
        """
        with contextlib.suppress(HostsError):  # there was none
            self.switch.run("tc", "qdisc", "delete", "dev", _port(host), "root")
        if bytes_per_second is not None:
            rate = f"{bytes_per_second * 8:.0f}bit"
            bucket = ("tbf", "rate", rate, "burst", _BURST, "latency", _LONGEST_QUEUE)
            self.switch.run("tc", "qdisc", "add", "dev", _port(host), "root", *bucket)

    def bytes_to(self, host: Host) -> int:
        """Bytes that ever went through the switch to `host`, headers included."""
        shown = json.loads(self.switch.run("ip", "-json", "-statistics", "link", "show", _port(host)))
        return int(shown[0]["stats64"]["tx"]["bytes"])

    def _new(self, name: str, undo: contextlib.ExitStack) -> Host:
        host = Host(name)
        undo.callback(host.close)
        return host

    def _connect(self, host: Host) -> None:
        """A cable between the host's card and a port of the switch."""
        port = _port(host)
        # Entering the switch's network only: its processes do not see the host's, by which the other end is sent there.
        into_switch = ["nsenter", "--target", str(self.switch.first_pid), "--net"]
        pair = ["ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(host.first_pid)]
        _run([*into_switch, *pair])
        self.switch.run("ip", "link", "set", port, "master", "bridge", "up")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        # Ray finds its own address by the way to the outside, even though nothing is there.
        host.run("ip", "route", "add", "default", "via", f"{SUBNET}.254")


def start_head(host: Host, num_cpus: int, **ray_settings: object) -> None:
    """`ray start --head` with token authentication; `ray_settings` are Ray's own, as health_check_period_ms=1000."""
    host.environment = _ray_environment(ray_settings)
    _write_token(host, secrets.token_hex(32))
    _ray_start(host, num_cpus, "--head", f"--port={RAY_PORT}", "--include-dashboard=false")


def join(host: Host, head: Host, num_cpus: int) -> None:
    """`ray start --address=HEAD`, with the head's token and settings."""
    host.environment = dict(head.environment)
    _write_token(host, head.path(TOKEN_FILE).read_text())
    _ray_start(host, num_cpus, f"--address={cluster_address(head)}")


def cluster_address(head: Host) -> str:
    """What --address takes."""
    return f"{head.address}:{RAY_PORT}"


def send_signal(process: "subprocess.Popen[Any]", signum: int) -> None:
    """Sends a signal to what `Host.start` started: `nsenter` waits for it and would not pass it on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children():
            child.send_signal(signum)


def end(process: "subprocess.Popen[Any]") -> None:
    """Kills what `Host.start` started."""
    send_signal(process, signal.SIGKILL)
    process.kill()
    process.wait(30)


def why_no_hosts() -> str | None:
    """Why hosts cannot be built here, or None; it tries to build one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool) is None:
            return f"{tool} is missing (Debian: {package})"
    try:
        with Network(1) as network:
            network.limit(network.hosts[0], 1e6)
    except (HostsError, OSError) as error:
        return f"the kernel does not build them: {error}"
    return None


def _port(host: Host) -> str:
    return f"to-{host.name}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise HostsError(f"{shlex.join(command)}: {done.stdout}{done.stderr}".strip())


def _ray_environment(ray_settings: Mapping[str, object]) -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": TOKEN_FILE,
        "RAY_USAGE_STATS_ENABLED": "0",
        **{f"RAY_{name}": str(value) for name, value in ray_settings.items()},
    }


def _write_token(host: Host, token: str) -> None:
    descriptor = os.open(host.path(TOKEN_FILE), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(token)


def _ray_start(host: Host, num_cpus: int, *flags: str) -> None:
    where = (f"--node-ip-address={host.address}", f"--temp-dir={RAY_DIRECTORY}")
    size = (f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE}", "--disable-usage-stats")
    host.run(sys.executable, "-m", "ray.scripts.scripts", "start", *flags, *where, *size)
