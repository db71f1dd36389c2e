"""Keeps what the audit found in the user's cache directory, so that each level is audited once.

One file for each game, mode, training range and build of Procgen, in `$XDG_CACHE_HOME/heldout` or `~/.cache/heldout`. A
file that is damaged or was written by other code is ignored and written again; without a directory that can be written
to, nothing is kept.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import procgen_env
from common.games import Game
from common.home import home_directory
from common.storage.atomic_files import write_atomically
from common.versions import procgen_build
from evaluator.levels import audit, behavior, level_envs
from evaluator.levels.audit import Verdict

logger = logging.getLogger(__name__)


def cache_directory() -> Path | None:
    """`$XDG_CACHE_HOME/heldout` or `~/.cache/heldout`; None without a home directory."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification: relative paths are invalid
        return Path(base) / "heldout"
    home = home_directory()
    return None if home is None else home / ".cache" / "heldout"


class AuditCache:
    """The verdicts on the levels audited so far, by level."""

    def __init__(self, game: Game, training_levels: Sequence[int]):
        self._key = {
            "game": str(game),
            "training_levels": _digest(list(training_levels)),
            "procgen": procgen_build(),
            "code": _code(),
        }
        directory = cache_directory()
        name = f"audit-{game.env_name}-{game.distribution_mode}-{_digest(self._key)[:16]}.json"
        self._path = None if directory is None else directory / name
        self.verdicts: dict[int, Verdict | None] = {} if self._path is None else self._read(self._path)

    def add(self, verdicts: Mapping[int, Verdict | None]) -> None:
        """Stores verdicts; the file keeps those that another process has added meanwhile."""
        self.verdicts.update(verdicts)
        if self._path is None:
            return
        self.verdicts = self._read(self._path) | self.verdicts
        entries = [[level, *(verdict or (None, None))] for level, verdict in sorted(self.verdicts.items())]
        contents = {"key": self._key, "verdicts": entries, "sha256": _digest([self._key, entries])}
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self._path, (json.dumps(contents) + "\n").encode())
        except OSError as error:
            logger.info("the audit is not kept: %s", error)

    def _read(self, path: Path) -> dict[int, Verdict | None]:
        try:
            contents: dict[str, Any] = json.loads(path.read_bytes())
            if contents["key"] != self._key or contents["sha256"] != _digest([self._key, contents["verdicts"]]):
                raise ValueError("its checksum is wrong")
            return {
                int(level): None if reason is None else Verdict(reason, same_as)
                for level, reason, same_as in contents["verdicts"]
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is ignored, and its levels are audited again: %s", path, error)
            return {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """Identifies the code that decides: what it finds may change with it."""
    digest = hashlib.sha256()
    for module in (audit, behavior, level_envs, procgen_env):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()
