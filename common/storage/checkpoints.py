"""Checkpoints that are either complete or invisible.

    checkpoints/00000120/
        policy.safetensors    the policy's parameters, float32
        learner.pt            optimizer, generators, counters, the state of every actor's environments
                              (tensors and plain values: loads with weights_only)
        manifest.json         settings, policy_version, frames; size and sha256 of the files above

A checkpoint is written under a temporary name, each file and the directory synced, the manifest last, then renamed.
Loading verifies every byte against the manifest and executes no code from the files.
"""

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.numpy
import torch

from common.config import Config, ConfigError
from common.messages import Weights
from common.storage.atomic_files import fsync_directory, write_durably
from common.storage.run_directory import config_from_dict
from common.text import format_cause

POLICY_FILE, LEARNER_FILE, MANIFEST_FILE = "policy.safetensors", "learner.pt", "manifest.json"
FORMAT = 2
# What parsers raise for damaged or foreign bytes.
_PARSER_ERRORS = (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError)


class CheckpointError(Exception):
    """A checkpoint is missing, incomplete or damaged; the message names the file."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint. `learner_state` is None if only the policy was loaded."""

    path: Path
    policy_version: int
    frames: int
    config: Config
    weights: Weights
    learner_state: dict[str, Any] | None
    policy_sha256: str  # of policy.safetensors: identifies the weights


def checkpoint_name(policy_version: int) -> str:
    """Directory name: eight digits, so that names sort by version."""
    return f"{policy_version:08d}"


def save_checkpoint(
    directory: Path,
    config: Config,
    policy_version: int,
    frames: int,
    weights: Weights,
    learner_state: dict[str, Any],
    more_files: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes one checkpoint below `directory` and returns its path.

    `more_files` are stored beside the others, for people to read. An existing directory of the same version must be
    damaged; it is renamed, never overwritten.

    Raises:
        OSError: the checkpoint could not be written; nothing incomplete is left behind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    final = directory / checkpoint_name(policy_version)
    temporary = directory / f".{final.name}.{os.getpid()}.tmp"
    buffer = io.BytesIO()
    torch.save(learner_state, buffer)
    files = {POLICY_FILE: safetensors.numpy.save(weights), LEARNER_FILE: buffer.getvalue(), **(more_files or {})}
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "policy_version": policy_version,
        "frames": frames,
        "settings": asdict(config),
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
        },
    }
    manifest["sha256"] = manifest_sha256(manifest)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, data in files.items():
            write_durably(temporary / name, data)
        write_durably(temporary / MANIFEST_FILE, (json.dumps(manifest, indent=2) + "\n").encode())
        fsync_directory(temporary)
        if final.exists():
            set_aside(final)
        os.rename(temporary, final)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_directory(directory)
    return final


def set_aside(path: Path) -> Path:
    """Renames a damaged or abandoned checkpoint, or an abandoned video, to the first free `NAME.aside-N`."""
    n = 1
    while (aside := path.with_name(f"{path.name}.aside-{n}")).exists():
        n += 1
    os.rename(path, aside)
    return aside


def load_checkpoint(path: Path, policy_only: bool = False) -> Checkpoint:
    """Reads and verifies one checkpoint directory.

    Raises:
        CheckpointError: a file is missing, differs from the manifest in size or hash, or cannot be parsed, or the
            directory has the name of another version.
    """
    manifest = _read_manifest(path / MANIFEST_FILE)
    if path.name.isdigit() and int(path.name) != manifest["policy_version"]:
        raise CheckpointError(f"{path} was renamed: it holds policy_version {manifest['policy_version']}")
    names = [POLICY_FILE] if policy_only else [POLICY_FILE, LEARNER_FILE]
    data = {name: _read_verified(path / name, manifest["files"][name]) for name in names}
    try:
        config = config_from_dict(manifest["settings"], str(path / MANIFEST_FILE))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(
        path=path,
        policy_version=manifest["policy_version"],
        frames=manifest["frames"],
        config=config,
        weights=_parse(path / POLICY_FILE, safetensors.numpy.load, data[POLICY_FILE]),
        learner_state=None if policy_only else _parse(path / LEARNER_FILE, _load_learner_state, data[LEARNER_FILE]),
        policy_sha256=manifest["files"][POLICY_FILE]["sha256"],
    )


def has_other_weights(row: Mapping[str, Any], directory: Path) -> bool:
    """Whether a row of evaluations.jsonl is about other weights than its checkpoint below `directory` has.

    Then the row or the checkpoint is another run's. False if there is no readable checkpoint.
    """
    version = row.get("policy_version")
    if not isinstance(version, int):
        return False
    try:
        manifest = _read_manifest(directory / checkpoint_name(version) / MANIFEST_FILE)
    except CheckpointError:
        return False
    return bool(manifest["files"][POLICY_FILE]["sha256"] != row.get("policy_sha256"))


def list_checkpoints(directory: Path) -> list[Path]:
    """Checkpoint directories below `directory`, oldest first. Only names are read: they may be damaged."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def load_newest_complete(
    directory: Path, on_damaged: Callable[[str], None], policy_only: bool = False
) -> Checkpoint | None:
    """The newest checkpoint that verifies, or None; `on_damaged` gets one line for each newer one that does not."""
    return load_first_complete(reversed(list_checkpoints(directory)), on_damaged, policy_only)


def load_first_complete(
    paths: Iterable[Path], on_damaged: Callable[[str], None], policy_only: bool = False
) -> Checkpoint | None:
    """The first checkpoint that verifies, or None; `on_damaged` gets one line for each one before it."""
    for path in paths:
        try:
            return load_checkpoint(path, policy_only)
        except CheckpointError as error:
            on_damaged(str(error))
    return None


def prune_checkpoints(directory: Path, keep: int, keep_every: int, is_protected: Callable[[int], bool]) -> list[int]:
    """Deletes old checkpoints and returns their versions. Keeps the newest `keep`, those whose version is a multiple of
    `keep_every` (0: off), and those that `is_protected` returns True for.

    Each is renamed before it is deleted, so that no checkpoint is ever half-deleted.
    """
    removed = []
    for path in list_checkpoints(directory)[:-keep]:
        version = int(path.name)
        if is_protected(version) or (keep_every and version % keep_every == 0):
            continue
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        os.rename(path, temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        removed.append(version)
    return removed


def remove_leftovers(directory: Path) -> None:
    """Deletes what a killed process left under temporary names. No other process may write here meanwhile."""
    for path in directory.glob(".*.tmp"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the checkpoint is incomplete") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {format_cause(error)}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a manifest of format {FORMAT}")
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise CheckpointError(f"{path} is damaged: its sha256 does not match its contents")
    return manifest


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """The hash of everything in the manifest but the hash itself, as canonical JSON."""
    contents = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def _parse(path: Path, parser: Callable[[bytes], dict[str, Any]], data: bytes) -> dict[str, Any]:
    try:
        return parser(data)
    except _PARSER_ERRORS as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(f"{path} cannot be loaded: {reason[0] if reason else type(error).__name__}") from error


def _load_learner_state(data: bytes) -> dict[str, Any]:
    """Executes no code of the file (weights_only). Loads to the CPU: a GPU's checkpoint can resume anywhere."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _read_verified(path: Path, expected: dict[str, Any]) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != expected["size"]:
        raise CheckpointError(f"{path} has {len(data)} bytes, but the manifest says {expected['size']}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise CheckpointError(f"{path} is damaged: its sha256 does not match the manifest")
    return data
