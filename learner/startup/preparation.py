"""Everything decided before the first process starts: settings, run directory, checkpoint to continue from, device."""

import dataclasses
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.config import PRESETS, Config, ConfigError, contradictions, envs_of_smallest_actor, resolve
from common.storage.checkpoints import Checkpoint, list_checkpoints, load_newest_complete, remove_leftovers, set_aside
from common.storage.file_lock import FileIsLocked, FileLock
from common.storage.jsonl import set_aside_rows
from common.storage.run_directory import RunDirectory
from common.versions import installed_versions
from learner.startup.flags import CommandLine

AUTO = Path("auto")
RECORDED_PACKAGES = ("heldout", "torch", "ray", "procgen", "procgen-mirror", "numpy")


@dataclass(slots=True)
class PreparedRun:
    """A run that can start, with what it continues from: `resumed` is None for a new run.

    `environments_continue` says whether the checkpoint's actors are the ones this run will have.
    """

    config: Config
    run: RunDirectory
    device: torch.device
    resumed: Checkpoint | None = None
    environments_continue: bool = False
    begins_again: bool = False  # a run was begun here and left nothing to continue from
    lock: FileLock | None = None

    def store(self) -> None:
        """Makes the run directory, or moves away what a resumed run will make again; only now is anything written.

        Raises:
            ConfigError: the directory cannot be written, or another run took it meanwhile.
        """
        if self.resumed is None:
            self.run.create(may_hold_run=self.begins_again)
            self.lock = self.lock or lock_for_learner(self.run)
        policy_version = -1 if self.resumed is None else self.resumed.policy_version
        if self.resumed is not None or self.begins_again:
            remove_leftovers(self.run.checkpoints)
            _set_aside_what_came_later(self.run, policy_version)
        if self.resumed is None or self.run.read_config() != self.config:
            self.run.write_config(self.config, versions())

    def close(self) -> None:
        """Lets another learner have the run."""
        if self.lock is not None:
            self.lock.close()


def prepare_run(command_line: CommandLine) -> PreparedRun:
    """A new run's directory, or a stored run's newest complete checkpoint.

    Raises:
        ConfigError: a setting, the directory, the device or every checkpoint is unusable.
    """
    if command_line.resume == AUTO:
        return _prepare_auto(command_line)
    if command_line.resume is not None:
        return _prepare_resume(command_line, command_line.resume)
    run = _directory_of_new_run(command_line)
    run.require_unused()
    return _prepare_new(command_line, run)


def _directory_of_new_run(command_line: CommandLine) -> RunDirectory:
    if command_line.run_dir is not None:
        return RunDirectory(command_line.run_dir.absolute())
    preset = command_line.preset or "lab"
    game = command_line.given.get("env_name", PRESETS.get(preset, {}).get("env_name"))
    return RunDirectory((Path("runs") / f"{game}-{preset}-{time.strftime('%Y%m%d-%H%M%S')}").absolute())


def _prepare_new(command_line: CommandLine, run: RunDirectory) -> PreparedRun:
    config = resolve(command_line.preset or "lab", command_line.given)
    return PreparedRun(config, run, choose_device(config))


def _prepare_auto(command_line: CommandLine) -> PreparedRun:
    """The run in --run-dir, or a new one there; never a new one where there is something to continue from."""
    if command_line.run_dir is None:
        raise ConfigError("--resume auto needs --run-dir DIR, the directory to continue or to begin in")
    run = RunDirectory(command_line.run_dir.absolute())
    if not run.config.exists():
        run.require_unused()
        return _prepare_new(command_line, run)
    if list_checkpoints(run.checkpoints):
        return _prepare_resume(command_line, command_line.run_dir)
    lock = lock_for_learner(run)
    prepared = _prepare_new(command_line, run)
    prepared.begins_again, prepared.lock = True, lock
    return prepared


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
    lock = lock_for_learner(run)  # before a checkpoint is chosen: nobody may write newer ones
    checkpoint = _newest_complete_checkpoint(run)
    split, split_before = ((c.num_actors, c.envs_per_actor) for c in (config, checkpoint.config))
    return PreparedRun(config, run, device, checkpoint, environments_continue=split == split_before, lock=lock)


def lock_for_learner(run: RunDirectory) -> FileLock:
    """Keeps other learners out of `run` until this process ends; ConfigError where one is there."""
    try:
        return FileLock(run.learner_lock)
    except FileIsLocked as holder:
        raise ConfigError(f"run directory {run.path} is in use by another learner ({holder})") from holder
    except OSError as error:
        raise ConfigError(f"run directory {run.path} is not writable: {error.strerror}") from error


def with_changes(stored: Config, given: dict[str, Any]) -> Config:
    """The stored settings with the user's over them; another number of actors shares the same environments."""
    changes = dict(given)
    if given.get("min_actors") and "num_actors" not in given:  # --num-actors max
        changes.setdefault("envs_per_actor", envs_of_smallest_actor(stored.num_envs))
        if changes["envs_per_actor"] > 0:
            changes["num_actors"] = stored.num_envs // changes["envs_per_actor"]
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
    return {"python": platform.python_version(), **installed_versions(*RECORDED_PACKAGES)}
