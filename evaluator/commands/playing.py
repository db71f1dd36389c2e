"""What `score` and `compare` share: a checkpoint's level sets, and the log of how often the test levels were used."""

import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

from evaluator.commands.arguments import UsageError, run_of

if TYPE_CHECKING:
    from common.storage.checkpoints import Checkpoint
    from evaluator.levels.level_sets import LevelSets


def level_sets_of(checkpoint: "Checkpoint") -> "LevelSets":
    """Those of its run, audited now if nobody did; for a checkpoint outside of one they are drawn anew.

    Raises:
        UsageError: its settings leave too few levels, or levels.json is damaged.
    """
    from common.config import ConfigError
    from evaluator.levels.level_file import audited_level_sets, stored_level_sets

    run = run_of(checkpoint)
    try:
        return audited_level_sets(checkpoint.config)[0] if run is None else stored_level_sets(run, checkpoint.config)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def note_test_use(checkpoint: "Checkpoint", splits: Collection[str], command: str, episodes_per_level: int) -> None:
    """Logs a use of the test levels before they are played, and says how often that was.

    Raises:
        UsageError: the log cannot be written: then they are not to be used.
    """
    if "test" not in splits:
        return
    from evaluator.output.test_log import log_test_use

    run = run_of(checkpoint)
    path = checkpoint.path.resolve().parent / "test_uses.jsonl" if run is None else run.test_uses
    try:
        uses = log_test_use(path, checkpoint, command, episodes_per_level)
    except OSError as error:
        raise UsageError(f"the use of the test levels cannot be logged in {path}: {error.strerror}") from error
    print(f"evaluator: use {uses} of the test levels, logged in {path}", file=sys.stderr)
