"""Which Ray cluster to use, and the error for one that cannot be used."""

import os
from dataclasses import dataclass
from typing import Literal


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
        """The cluster that --address names, else RAY_ADDRESS; None, also for `local`, means an embedded local Ray."""
        named = address or os.environ.get("RAY_ADDRESS")
        if not named or named == "local":
            return None
        return cls(named, "--address" if address else "RAY_ADDRESS", allow_unauthenticated)

    def __str__(self) -> str:
        """As the user gave it, for error messages: `--address auto` or `RAY_ADDRESS=auto`."""
        return f"{self.source}{' ' if self.source == '--address' else '='}{self.address}"
