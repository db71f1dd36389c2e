"""The user's home directory, where the environment does not hide it."""

import os
from pathlib import Path


def home_directory() -> Path | None:
    """HOME, or without HOME the directory in the passwd database; None without both or if it is not an absolute path.

    `Path.home` makes the root of an empty HOME, and a path below the current directory of a relative one. The directory
    need not exist.
    """
    home = os.environ.get("HOME")
    if home is None:
        home = os.path.expanduser("~")
    return Path(home) if os.path.isabs(home) else None


def describe_home() -> str:
    """Where the home directory comes from: `HOME=/home/ada`, `HOME is not set`, `/home/ada, HOME is not set`."""
    home = os.environ.get("HOME")
    if home is not None:
        return f"HOME={home}" if home else "HOME is empty"
    known = home_directory()
    return "HOME is not set" if known is None else f"{known}, HOME is not set"
