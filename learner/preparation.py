"""Everything decided before the first process starts: settings, run directory, checkpoint to continue from, device."""

import dataclasses
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from common.checkpoints import Checkpoint, list_checkpoints, load_newest_complete, set_aside
from common.config import Config, ConfigError, contradictions, resolve
from common.metrics import set_aside_rows
from common.run_directory import RunDirectory
from learner.flags import CommandLine

RECORDED_PACKAGES = ("heldout", "torch", "ray", "procgen", "procgen-mirror", "numpy")


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run that can start, with what it continues from; the last two are None for a new run."""

    config: Config
    run: RunDirectory
    device: torch.device
    checkpoint_path: Path | None = None
    learner_state: dict[str, Any] | None = None

    def store(self) -> None:
        """Makes the run directory, or moves away what a resumed run will make again; only now is anything written.

        Raises:
            ConfigError: the directory cannot be written, or another run took it meanwhile.
        """
        if self.learner_state is None:
            self.run.create()
            self.run.write_config(self.config, versions())
            return
        _set_aside_what_came_later(self.run, self.learner_state["policy_version"])
        if self.run.read_config() != self.config:
            self.run.write_config(self.config, versions())


def prepare_run(command_line: CommandLine) -> PreparedRun:
    """A new run's directory, or a stored run's newest complete checkpoint.

    Raises:
        ConfigError: a setting, the directory, the device or every checkpoint is unusable.
    """
    if command_line.resume is not None:
        return _prepare_resume(command_line, command_line.resume)
    config = resolve(command_line.preset or "lab", command_line.given)
    device = choose_device(config)
    default = Path("runs") / f"{config.env_name}-{config.preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    run = RunDirectory((command_line.run_dir or default).absolute())
    run.require_unused()
    return PreparedRun(config, run, device)


def _prepare_resume(command_line: CommandLine, path: Path) -> PreparedRun:
    run = RunDirectory(path.absolute())
    if command_line.run_dir is not None and command_line.run_dir.absolute() != run.path:
        raise ConfigError("--run-dir and --resume name different directories; --resume alone is enough")
    stored = run.read_config()
    given = command_line.given if command_line.preset is None else {**command_line.given, "preset": command_line.preset}
    config = with_changes(stored, given)
    differing = contradictions(stored, config, given)
    if differing:
        raise ConfigError(f"--resume {path} contradicts its config: {'; '.join(differing)}")
    device = choose_device(config)
    run.require_writable()
    checkpoint = _newest_complete_checkpoint(run)
    return PreparedRun(config, run, device, checkpoint.path, checkpoint.learner_state)


def with_changes(stored: Config, given: dict[str, Any]) -> Config:
    """The stored settings with the user's over them; another number of actors shares the same environments."""
    changes = dict(given)
    if "num_actors" in given and "envs_per_actor" not in given and given["num_actors"] > 0:
        if stored.num_envs % given["num_actors"]:
            raise ConfigError(
                f"--num-actors {given['num_actors']} does not divide the run's {stored.num_envs} environments"
            )
        changes["envs_per_actor"] = stored.num_envs // given["num_actors"]
    return dataclasses.replace(stored, **changes)


def _newest_complete_checkpoint(run: RunDirectory) -> Checkpoint:
    damaged: list[str] = []
    checkpoint = load_newest_complete(run.checkpoints, damaged.append)
    for line in damaged:
        print(f"learner: {line}", file=sys.stderr)
    if checkpoint is None:
        raise ConfigError(f"--resume {run.path}: there is no complete checkpoint in {run.checkpoints}")
    if damaged:
        print(f"learner: falling back to the newest complete checkpoint {checkpoint.path}", file=sys.stderr)
    return checkpoint


def _set_aside_what_came_later(run: RunDirectory, policy_version: int) -> None:
    """Versions after the checkpoint will be made again: their old traces move away, nothing is deleted."""
    for path in list_checkpoints(run.checkpoints):
        if int(path.name) > policy_version:
            set_aside(path)
    for log in (run.metrics, run.evaluations):
        set_aside_rows(log, lambda row: row.get("policy_version", 0) <= policy_version)


def choose_device(config: Config) -> torch.device:
    """The learner's device; ConfigError where settings ask for a GPU and there is none to use."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no CUDA GPU here; give --device cpu or auto")
    use_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if config.compile and not use_gpu:
        raise ConfigError("--compile: the learner uses no GPU; leave it out")
    if config.cuda_graphs and not use_gpu and not config.actor_gpus:
        raise ConfigError("--cuda-graphs: neither the learner nor the actors (--actor-gpus) use a GPU; leave it out")
    return torch.device("cuda" if use_gpu else "cpu")


def versions() -> dict[str, str]:
    """What the run was made with."""
    found = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
