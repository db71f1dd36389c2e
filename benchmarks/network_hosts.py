"""Several hosts on one machine, joined by a real network that can be cut and slowed down.

A host is a set of Linux namespaces: its own network card with an address, hostname, processes and shared memory. Hosts
share the machine's files, as if the same image were installed on each. A bridge in another namespace joins them; the
machine's own network is not touched.

Nothing has to be cleaned up. Each host lives as long as this process holds a pipe to it; however this process ends, the
kernel then kills all the host's processes and frees its network card and memory.

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
from pathlib import Path
from typing import Any

import psutil

PROJECT = Path(__file__).parents[1]
SUBNET = "10.77.0"
RAY_PORT = 6379
OBJECT_STORE = 200 << 20
# In each host's own /dev/shm: removed with the host, and short, since paths of Unix sockets are limited to 107 bytes.
RAY_DIRECTORY, TOKEN_FILE = "/dev/shm/ray", "/dev/shm/token"
# The bucket must hold whole packets; packets wait in it at most this long.
_BUCKET = ("burst", "64kb", "latency", "200ms")
_NAMESPACES = ("--pid", "--mount", "--net", "--uts")
# A host's first process keeps it alive, and reaps orphans by ignoring SIGCHLD. The host knows its own name and asks no
# name server: the machine's cannot be reached from it, and every question would take ten seconds.
_FIRST_PROCESS = (
    "mount -t tmpfs -o size=2g tmpfs /dev/shm && echo {name} > /proc/sys/kernel/hostname && ip link set lo up "
    "&& printf '127.0.0.1 localhost\\n{address} {name}\\n' > /dev/shm/hosts && : > /dev/shm/resolv.conf "
    "&& for file in hosts resolv.conf; do test ! -e /etc/$file || mount --bind /dev/shm/$file /etc/$file || exit; done "
    "&& trap '' CHLD && echo ready && exec cat"
)


class HostsError(RuntimeError):
    """A host could not be built, or a command on it failed; the message contains the command's output."""


class Host:
    """A host's namespaces and the processes in them. The switch between the hosts is a `Host` as well."""

    def __init__(self, name: str, address: str):
        self.name = name
        self.address = address
        self.port = f"to-{name}"  # of the switch
        self.environment: dict[str, str] = {}
        command = ["unshare", "--fork", "--kill-child", "--mount-proc", *_NAMESPACES]
        self._holder = subprocess.Popen(
            [*command, "sh", "-c", _FIRST_PROCESS.format(name=name, address=address)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only the process that built the host
        )
        assert self._holder.stdout is not None
        output = self._holder.stdout.readline()
        if output != "ready\n":
            output += self.close()
            raise HostsError(f"cannot create namespaces: {output.strip()}")
        self.first_pid = psutil.Process(self._holder.pid).children()[0].pid

    def run(self, *command: object, timeout: float = 60) -> str:
        """Runs a command on this host to its end and returns its stdout.

        Raises:
            HostsError: the command failed or did not end in time.
        """
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise HostsError(f"{shlex.join(map(str, command))} on {self.name}: not within {timeout:.0f} s") from error
        finally:
            end(process)
        if process.returncode:
            raise HostsError(f"{shlex.join(map(str, command))} on {self.name}: {out}{err}".strip())
        return out

    def start(
        self, *command: object, namespaces: tuple[str, ...] = _NAMESPACES, **options: Any
    ) -> "subprocess.Popen[Any]":
        """Starts a command on this host as a child of the returned process: use `send_signal` and `end` with it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        enter = ["nsenter", "--target", str(self.first_pid), *namespaces, f"--wdns={PROJECT}", "--"]
        options = {"stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen([*enter, *map(str, command)], env={**environment, **self.environment}, **options)

    def path(self, inside: str) -> Path:
        """A file of this host, as seen from outside."""
        return Path(f"/proc/{self.first_pid}/root{inside}")

    def processes(self, name: str) -> list[psutil.Process]:
        """This host's living processes whose command contains `name`, such as `raylet` or `ray::RemoteRolloutActor`."""
        namespace = os.readlink(f"/proc/{self.first_pid}/ns/pid")
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):  # it has ended meanwhile
                is_on_host = os.readlink(f"/proc/{process.pid}/ns/pid") == namespace
                if is_on_host and name in Path((process.cmdline() or [""])[0]).name:
                    found.append(process)
        return found

    def close(self) -> str:
        """Ends the host as a power cut would; returns the remaining output of its first process."""
        return self._holder.communicate(timeout=30)[0]


class Network(contextlib.ExitStack):
    """`count` hosts at 10.77.0.1, 10.77.0.2, ... behind one switch. A context manager."""

    def __init__(self, count: int):
        super().__init__()
        self.hosts: list[Host] = []
        with contextlib.ExitStack() as undo:  # if one host cannot be built, the others are closed
            self.switch = self._build("switch", f"{SUBNET}.254", undo)
            self.switch.run("ip", "link", "add", "bridge", "type", "bridge", "stp_state", "0", "forward_delay", "0")
            self._set_up(self.switch, "bridge")
            for number in range(1, count + 1):
                host = self._build(f"host-{number}", f"{SUBNET}.{number}", undo)
                self._connect(host)
                self.hosts.append(host)
            self.push(undo.pop_all())

    def cut_off(self, host: Host) -> None:
        """Unplugs the host from the switch: packets vanish, no connection is closed."""
        self.switch.run("ip", "link", "set", host.port, "down")

    def reconnect(self, host: Host) -> None:
        """Plugs the host in again."""
        self.switch.run("ip", "link", "set", host.port, "up")

    def limit(self, host: Host, bytes_per_second: float | None) -> None:
        """Limits the bandwidth to `host`, headers included, not that from it; None removes the limit.

        A token bucket in the switch delays excess packets briefly and then drops them, as a real switch does.
        """
        with contextlib.suppress(HostsError):  # there was no limit
            self.switch.run("tc", "qdisc", "delete", "dev", host.port, "root")
        if bytes_per_second is not None:
            rate = f"{bytes_per_second * 8:.0f}bit"
            self.switch.run("tc", "qdisc", "add", "dev", host.port, "root", "tbf", "rate", rate, *_BUCKET)

    def bytes_to(self, host: Host) -> int:
        """All bytes that have gone through the switch to `host`, headers included."""
        shown = json.loads(self.switch.run("ip", "-json", "-statistics", "link", "show", host.port))
        return int(shown[0]["stats64"]["tx"]["bytes"])

    def _build(self, name: str, address: str, undo: contextlib.ExitStack) -> Host:
        host = Host(name, address)
        undo.callback(host.close)
        return host

    def _set_up(self, host: Host, device: str) -> None:
        host.run("ip", "link", "set", device, "up")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", device)

    def _connect(self, host: Host) -> None:
        """Lays a cable from the host's network card to a port of the switch."""
        # The host's process id, which names the other end's namespace, is unknown in the switch's process namespace.
        pair = ("ip", "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.first_pid)
        connecting = self.switch.start(*pair, namespaces=("--net",), stderr=subprocess.PIPE, text=True)
        _, error = connecting.communicate(timeout=60)
        if connecting.returncode:
            raise HostsError(f"cannot connect {host.name}: {error.strip()}")
        self.switch.run("ip", "link", "set", host.port, "master", "bridge", "up")
        self._set_up(host, "eth0")
        # Ray finds its own address through the default route, even though it leads nowhere.
        host.run("ip", "route", "add", "default", "via", self.switch.address)


def start_head(host: Host, num_cpus: int, **ray_settings: object) -> None:
    """`ray start --head` with token authentication and Ray's own settings, such as health_check_period_ms=1000."""
    host.environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": TOKEN_FILE,
        "RAY_USAGE_STATS_ENABLED": "0",
        **{f"RAY_{name}": str(value) for name, value in ray_settings.items()},
    }
    _ray_start(host, num_cpus, secrets.token_hex(32), "--head", f"--port={RAY_PORT}", "--include-dashboard=false")


def join(host: Host, head: Host, num_cpus: int) -> None:
    """`ray start --address=HEAD`, with the head's token and settings."""
    host.environment = dict(head.environment)
    _ray_start(host, num_cpus, head.path(TOKEN_FILE).read_text(), f"--address={cluster_address(head)}")


def cluster_address(head: Host) -> str:
    """The value for --address."""
    return f"{head.address}:{RAY_PORT}"


def send_signal(process: "subprocess.Popen[Any]", signum: int) -> None:
    """Signals a command started by `Host.start`: `nsenter`, its parent, would not pass the signal on."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.send_signal(signum)


def end(process: "subprocess.Popen[Any]") -> None:
    """Kills a command started by `Host.start`, if it is still running."""
    send_signal(process, signal.SIGKILL)
    process.kill()
    process.wait(30)


def why_no_hosts() -> str | None:
    """The reason why hosts cannot be built on this machine, or None; it tries to build one."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in (("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool) is None:
            return f"{tool} is missing (Debian: {package})"
    try:
        with Network(1) as network:
            network.limit(network.hosts[0], 1e6)
    except (HostsError, OSError) as error:
        return f"cannot build a host with network namespaces: {error}"
    return None


def _ray_start(host: Host, num_cpus: int, token: str, *flags: str) -> None:
    with open(os.open(host.path(TOKEN_FILE), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(token)
    place = (f"--node-ip-address={host.address}", f"--temp-dir={RAY_DIRECTORY}")
    size = (f"--num-cpus={num_cpus}", f"--object-store-memory={OBJECT_STORE}", "--disable-usage-stats")
    host.run(sys.executable, "-m", "ray.scripts.scripts", "start", *flags, *place, *size)
