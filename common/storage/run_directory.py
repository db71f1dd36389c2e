"""Where everything of a run lies, and who may write there."""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.config import Config, ConfigError
from common.storage.atomic_files import write_atomically


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The paths of one run; the layout is part of the public contract."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def learner_log(self) -> Path:
        return self.path / "learner.log"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations.jsonl"

    @property
    def levels(self) -> Path:
        return self.path / "levels.csv"

    @property
    def level_sets(self) -> Path:
        return self.path / "levels.json"

    @property
    def test_uses(self) -> Path:
        return self.path / "test_uses.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def scores_plot(self) -> Path:
        return self.path / "scores.png"

    @property
    def levels_plot(self) -> Path:
        return self.path / "levels.png"

    @property
    def best(self) -> Path:
        """A link to the checkpoint that is best on the validation levels."""
        return self.checkpoints / "best"

    @property
    def evaluator_log(self) -> Path:
        return self.path / "evaluator.log"

    @property
    def evaluator_lock(self) -> Path:
        return self.path / ".evaluator.lock"

    @property
    def learner_lock(self) -> Path:
        return self.path / ".learner.lock"

    @property
    def diagnosis(self) -> Path:
        """Batches whose loss or gradient was not finite, with the state they met."""
        return self.path / "diagnosis"

    @property
    def videos(self) -> Path:
        return self.path / "videos"

    def require_unused(self) -> None:
        """Raises ConfigError if there is a run here, or no directory can be made."""
        try:
            holds_run = self.config.exists() or self.checkpoints.exists() or self.metrics.exists()
        except OSError as error:
            raise ConfigError(f"--run-dir {self.path} cannot be made: {error.strerror}") from error
        if holds_run:
            raise ConfigError(f"--run-dir {self.path} already holds a run; continue it with --resume {self.path}")
        existing = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise ConfigError(f"--run-dir {self.path} cannot be made: {existing} is no directory we may write to")

    def create(self, may_hold_run: bool = False) -> None:
        """Makes the directory for a new run.

        Raises:
            ConfigError: it already holds a run, unless it may, or cannot be written.
        """
        if not may_hold_run:
            self.require_unused()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--run-dir {self.path} cannot be made: {error.strerror}") from error
        self.require_writable()

    def require_writable(self) -> None:
        """Raises ConfigError unless a file can be made here."""
        probe = self.path / f".write-test-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise ConfigError(f"run directory {self.path} is not writable: {error.strerror}") from error

    def write_config(self, config: Config, versions: dict[str, str]) -> None:
        """config.json: the settings and the versions they ran with."""
        text = json.dumps({"settings": asdict(config), "versions": versions}, indent=2) + "\n"
        write_atomically(self.config, text.encode())

    def read_config(self) -> Config:
        """The stored settings.

        Raises:
            ConfigError: there is no run here, or config.json cannot be read.
        """
        try:
            settings = json.loads(self.config.read_bytes())["settings"]
        except FileNotFoundError as error:
            raise ConfigError(f"{self.path} holds no run (there is no config.json)") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.config} cannot be read: {error}") from error
        return config_from_dict(settings, str(self.config))


def config_from_dict(settings: dict[str, Any], source: str) -> Config:
    """A Config from stored settings; ConfigError names `source` when a field is missing or unknown."""
    names = {field.name for field in fields(Config)}
    if not isinstance(settings, dict) or set(settings) != names:
        differing = sorted(names ^ set(settings)) if isinstance(settings, dict) else "no settings"
        raise ConfigError(f"{source} was written by another version of heldout ({differing})")
    return Config(**settings)
