"""Which Ray cluster to use, and the error for one that cannot be used."""

import os
import re
from dataclasses import dataclass
from typing import Literal

# HOST:PORT; an IPv6 address is in brackets.
_HOST_AND_PORT = re.compile(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})", re.ASCII)
# Ray's default ports that are not the head's; what answers there is something else.
_OTHER_PORTS = {8265: "Ray's dashboard and job API", 10001: "Ray Client"}


class ClusterError(Exception):
    """The cluster cannot be used; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class ClusterTarget:
    """The address of the cluster to join (HOST:PORT or auto) and what named it."""

    address: str
    source: Literal["--address", "RAY_ADDRESS"] = "--address"
    allow_unauthenticated: bool = False  # accept a cluster on which anyone who reaches its ports can run code

    @classmethod
    def from_flags(cls, address: str | None, allow_unauthenticated: bool) -> "ClusterTarget | None":
        """The cluster that --address names, else RAY_ADDRESS; None, also for `local`, means an embedded local Ray.

        Raises:
            ClusterError: `allow_unauthenticated` without a cluster, where it has no effect.
        """
        named = address or os.environ.get("RAY_ADDRESS")
        if not named or named == "local":
            if allow_unauthenticated:
                raise ClusterError(
                    "--allow-unauthenticated: has no effect without --address or RAY_ADDRESS; leave it out"
                )
            return None
        return cls(named, "--address" if address else "RAY_ADDRESS", allow_unauthenticated)

    def host_and_port(self) -> tuple[str, int] | None:
        """Where the head is, before anything is asked there; None for `auto`.

        Raises:
            ClusterError: the address is of another kind.
        """
        if self.address == "auto":
            return None
        expected = f"expected auto or HOST:PORT of the head (`ray start` uses port 6379); {self._how_to_change()}"
        if self.address.startswith("ray://"):
            raise ClusterError(f"{self} is for Ray Client, which is too slow for rollouts: {expected}")
        if "://" in self.address:
            raise ClusterError(f"{self} is an address of Ray's dashboard and job API: {expected}")
        match = _HOST_AND_PORT.fullmatch(self.address)
        if not match or not 0 < int(match["port"]) < 65536:
            raise ClusterError(f"{self} is neither auto nor HOST:PORT: {expected}")
        return match["host"].strip("[]"), int(match["port"])

    def hint(self) -> str:
        """What may be wrong with the address if no Ray answers there: `; 8265 is ...`, or ""."""
        port = self.address.rpartition(":")[2]
        what = _OTHER_PORTS.get(int(port)) if port.isdigit() else None
        return "" if what is None else f"; port {port} is usually {what}, the head's is 6379"

    def _how_to_change(self) -> str:
        return "unset RAY_ADDRESS or override it with --address" if self.source == "RAY_ADDRESS" else "change --address"

    def __str__(self) -> str:
        """As the user gave it, for error messages: `--address auto` or `RAY_ADDRESS=auto`."""
        return f"{self.source}{' ' if self.source == '--address' else '='}{self.address}"
