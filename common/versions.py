"""Which software this is, so that a node with other software is found before it does harm."""

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("actors", "common", "evaluator", "learner")
# What decides how an actor acts and how it talks to the learner. Of Procgen's two distributions one is there.
LIBRARIES = ("ray", "torch", "numpy", "procgen", "procgen-mirror", "gym3", "zstandard")


class CodeDiffers(RuntimeError):
    """Two processes of one run have different software; the message names both versions."""


def package_directories() -> list[Path]:
    """Where our four packages lie: side by side, or each in a directory of its own where Ray brought them."""
    directories = []
    for package in PACKAGES:
        found = find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise CodeDiffers(f"our package {package} is missing here")
        directories.append(Path(next(iter(found.submodule_search_locations))))
    return directories


@functools.cache
def code_version() -> str:
    """A digest of our source files' names and contents, as `3f9a0c2b41d7`."""
    digest = hashlib.sha256()
    for directory in package_directories():
        for path in sorted(directory.rglob("*.py")):
            name = path.relative_to(directory.parent).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@functools.cache
def software() -> Mapping[str, str]:
    """Versions by name: our code's, Python's, and those of the libraries that matter; `none` where one is missing.

    Without what follows a `+`: the CPU and CUDA builds of one torch are one version.
    """
    found = {"heldout's code": code_version(), "Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library).partition("+")[0]
        except PackageNotFoundError:
            found[library] = "none"
    return found


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What `ours`, of one host, has otherwise than `theirs`, the learner's: `torch 2.12.0 (the learner has 2.13.0)`."""
    return [
        f"{name} {ours.get(name, 'none')} (the learner has {theirs_version})"
        for name, theirs_version in theirs.items()
        if ours.get(name, "none") != theirs_version
    ]


def require_same_software(theirs: Mapping[str, str], host: str) -> None:
    """Raises CodeDiffers unless this process on `host` has `theirs`, the learner's software."""
    if differing := differences(theirs, software()):
        raise CodeDiffers(f"{host} has {', '.join(differing)}: install the same on both")
