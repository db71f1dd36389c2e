"""levels.json: the level sets of a run, drawn and audited once, then read by everything that scores the run."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.config import Config, ConfigError
from common.games import MAX_LEVEL_SEED
from common.storage.atomic_files import replace, write_durably
from common.storage.file_system import remove_quietly
from common.storage.run_directory import RunDirectory
from common.text import format_cause
from common.versions import procgen_build
from evaluator.levels.audit import BIASES, FEW_STEPS, TOLERANCE, Audit
from evaluator.levels.audit_cache import AuditCache
from evaluator.levels.level_sets import (
    MAX_TRAIN_LEVELS,
    SPLITS,
    Finding,
    LevelSets,
    Split,
    draw_level_sets,
    replaces_unfit_levels,
    training_range,
)

logger = logging.getLogger(__name__)

# 1: the audit compared what the agent sees during the first 32 steps.
FORMAT = 2
# The settings that determine the level sets.
_SETTINGS = ("env_name", "distribution_mode", "start_level", "num_levels", "held_out", "held_out_levels")


def audited_level_sets(config: Config) -> tuple[LevelSets, dict[str, Any]]:
    """Draws and audits the level sets of `config`; returns them and the contents of levels.json.

    Levels that the user's cache knows are not audited again.

    Raises:
        ConfigError: there are not enough suitable levels.
    """
    audit = Audit(config)
    cache = AuditCache(audit.game, audit.training_levels)
    num_checked = 0

    def check(split: Split, levels: Sequence[int]) -> list[Finding | None]:
        nonlocal num_checked
        num_checked += len(levels)
        new = [level for level in levels if level not in cache.verdicts]
        if new:
            cache.add(dict(zip(new, audit.judge(new), strict=True)))
        verdicts = [(level, cache.verdicts[level]) for level in levels]
        return [None if verdict is None else Finding(split, level, *verdict) for level, verdict in verdicts]

    sets, found = draw_level_sets(config, check)
    findings = [asdict(finding) for finding in found]
    replaced = replaces_unfit_levels(config)
    contents: dict[str, Any] = {
        "format": FORMAT,
        "settings": {name: getattr(config, name) for name in _SETTINGS},
        "procgen": procgen_build(),
        "rule": _rule(config),
        "audit": {
            "judged": num_checked,
            "training_levels_compared": len(audit.training_levels),
            "action_sequences": len(BIASES),
            "tolerance": TOLERANCE,
            "few_steps": FEW_STEPS,
            "removed": findings if replaced else [],
            "flagged": [] if replaced else findings,
        },
        **{split: list(sets.of(split)) for split in SPLITS},
    }
    return sets, {**contents, "sha256": _sha256(contents)}


def stored_level_sets(run: RunDirectory, config: Config) -> LevelSets:
    """The run's level sets from levels.json; draws, audits and stores them if the file does not exist yet.

    Raises:
        ConfigError: levels.json cannot be read or belongs to other settings.
    """
    if not run.level_sets.exists():
        sets, contents = audited_level_sets(config)
        _write_once(run.level_sets, contents)
        if not run.level_sets.exists():  # a read-only directory
            return sets
    return read_level_sets(run.level_sets, config)


def read_level_sets(path: Path, config: Config) -> LevelSets:
    """The level sets stored in levels.json.

    Raises:
        ConfigError: the file cannot be read, was edited or damaged, or belongs to other settings than `config`.
    """
    try:
        contents = json.loads(path.read_bytes())
        sets = LevelSets(*(tuple(contents[split]) for split in SPLITS))
        settings, version = dict(contents["settings"]), contents["format"]
        sha256 = contents.pop("sha256", None)  # files of earlier versions have none
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {format_cause(error)}") from error
    if sha256 not in (None, _sha256(contents)):
        raise ConfigError(f"{path} was edited: its sha256 does not match its contents; restore it or start a new run")
    differing = [name for name in _SETTINGS if settings.get(name) != getattr(config, name)]
    if differing:
        raise ConfigError(f"{path} belongs to other settings ({', '.join(differing)})")
    if (defect := _defect(sets, config)) is not None:
        raise ConfigError(f"{path} was edited or is damaged: {defect}; restore it or start a new run")
    if version != FORMAT:
        logger.warning(
            "%s was made by another audit (format %s, now %s) and is kept: every score of this run uses its levels",
            path,
            version,
            FORMAT,
        )
    return sets


def _defect(sets: LevelSets, config: Config) -> str | None:
    """What is wrong with level sets that were read from a file; None if they can be those of `config`."""
    training_levels = training_range(config)
    seen: dict[int, Split] = {}
    for split in SPLITS:
        if not sets.of(split):
            return f"{split} has no levels"
        for level in sets.of(split):
            if type(level) is not int or not 0 <= level < MAX_LEVEL_SEED:
                return f"{split} has {json.dumps(level)}, which is not a level from 0 to {MAX_LEVEL_SEED - 1}"
            if level in seen:
                twice = "twice" if seen[level] == split else f"as {seen[level]} too"
                return f"{split} has level {level} {twice}"
            if split != "train" and level in training_levels:  # of which `train` can be a sample
                return f"{split} has training level {level}"
            seen[level] = split
    return None


def _sha256(contents: Mapping[str, Any]) -> str:
    """The hash of everything in levels.json but the hash itself, as canonical JSON."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def stored_flags(path: Path) -> dict[tuple[Split, int], str]:
    """`flags` of a levels.json; empty if it is missing or damaged."""
    try:
        return flags(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def flags(contents: dict[str, Any]) -> dict[tuple[Split, int], str]:
    """Why levels that are scored are unfit, by split and level, from the contents of levels.json."""
    flagged = contents["audit"].get("flagged", [])  # not in format 1
    return {(finding["split"], int(finding["level"])): describe_finding(finding) for finding in flagged}


def describe_finding(finding: dict[str, Any]) -> str:
    """Why a level is unfit, from one entry of the audit's "removed" or "flagged" list in levels.json."""
    descriptions = {
        "same_level": "is the same as training level {same_as}",
        "same_layout": "has the layout of training level {same_as}, drawn differently",
        "same_picture": "looks like training level {same_as}",  # format 1
        "ends_at_once": "ends immediately under every action",
    }
    return descriptions[finding["reason"]].format(same_as=finding["same_as"])


def _write_once(path: Path, contents: dict[str, Any]) -> None:
    """Writes the file atomically; does nothing if another process was faster or the directory is read-only.

    Without hard links, the slower process replaces the file: both have drawn the same sets.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, (json.dumps(contents, indent=2) + "\n").encode())
        _link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
    finally:
        remove_quietly(temporary)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links; what else is wrong shows below
        if not target.exists():
            replace(source, target)


def _rule(config: Config) -> dict[str, str]:
    levels, count = training_range(config), config.held_out_levels
    if not levels:
        train = f"fixed sample of {count}, because all levels are trained on"
    elif len(levels) > MAX_TRAIN_LEVELS:
        train = f"fixed sample of {MAX_TRAIN_LEVELS} of [{levels.start}, {levels.stop})"
    else:
        train = f"[{levels.start}, {levels.stop})"
    if config.held_out == "sample":
        held_out = f"fixed sample of {count} of all levels outside the training levels and the other splits"
        return {"train": train, "validation": held_out, "test": held_out}
    end = levels.stop
    return {
        "train": train,
        "validation": f"[{end + count}, {end + 2 * count})",
        "test": f"[{end}, {end + count})",
    }
