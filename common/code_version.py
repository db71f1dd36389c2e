"""Which code this is, so that a node with other code is found before it does harm."""

import functools
import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("actors", "common", "evaluator", "learner")


class CodeDiffers(RuntimeError):
    """Two processes of one run have different code; the message names both versions."""


@functools.cache
def code_version() -> str:
    """`0.1.0+3f9a0c2b41d7`: the package's version and a digest of our source files' names and contents."""
    try:
        release = version("heldout")
    except PackageNotFoundError:
        release = "unreleased"
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{release}+{digest.hexdigest()[:12]}"


def require_same_code(theirs: str, host: str) -> None:
    """Raises CodeDiffers unless `theirs`, the learner's version, is the one of this process on `host`."""
    if theirs != code_version():
        raise CodeDiffers(f"{host} has heldout {code_version()}, the learner has {theirs}: install the same on both")
