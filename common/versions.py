"""The software versions of this process, to detect nodes with other software and to record what made a file."""

import contextlib
import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("actors", "common", "evaluator", "learner")
# The distributions that contain Procgen's engine, for Python 3.10, for 3.11 and 3.12, and for 3.13. One is installed.
PROCGEN_BUILDS = ("procgen", "procgen-mirror", "procgen-gym")
# What decides how an actor acts and how it talks to the learner. `procgen-gym` does without gym3.
LIBRARIES = ("ray", "torch", "numpy", *PROCGEN_BUILDS, "gym3", "zstandard")


def package_directories() -> list[Path]:
    """The directories of our four packages: side by side, or separate where Ray copied them to a node."""
    directories = []
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.submodule_search_locations
        directories.append(Path(next(iter(spec.submodule_search_locations))))
    return directories


@functools.cache
def code_version() -> str:
    """A digest of the names and contents of our source files, such as `3f9a0c2b41d7`."""
    digest = hashlib.sha256()
    for directory in package_directories():
        for path in sorted(directory.rglob("*.py")):
            name = path.relative_to(directory.parent).as_posix()
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def installed_versions(*distributions: str) -> dict[str, str]:
    """The versions of those of the distributions that are installed, by name."""
    found = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def procgen_build() -> str:
    """The installed build of Procgen, such as `procgen-mirror 0.10.7`."""
    return named_build(installed_versions(*PROCGEN_BUILDS))


def named_build(versions: Mapping[str, str]) -> str:
    """The build of Procgen among stored or installed versions; `unknown` if there is none."""
    return next((f"{name} {versions[name]}" for name in PROCGEN_BUILDS if name in versions), "unknown")


@functools.cache
def software() -> Mapping[str, str]:
    """The versions of our code, Python and the installed libraries that matter, by name.

    Without the suffix after `+`: the CPU and CUDA builds of a torch release count as the same version.
    """
    libraries = {name: found.partition("+")[0] for name, found in installed_versions(*LIBRARIES).items()}
    return {"heldout's code": code_version(), "Python": platform.python_version(), **libraries}


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """What differs in `ours`, a node's, from `theirs`, the learner's: `torch 2.12.0 (the learner has 2.13.0)`."""
    return [
        f"{name} {ours.get(name, 'none')} (the learner has {theirs.get(name, 'none')})"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]
