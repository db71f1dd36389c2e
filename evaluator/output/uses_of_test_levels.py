"""A log of how often a run's test levels were used: each use makes them less reliable as a test."""

import time
from pathlib import Path

from common.storage.checkpoints import Checkpoint
from common.storage.jsonl import append_jsonl, read_jsonl


def log_test_use(path: Path, checkpoint: Checkpoint, command: str, episodes_per_level: int) -> int:
    """Appends one use to test_uses.jsonl and returns the number of uses; OSError if the file cannot be written."""
    append_jsonl(
        path,
        {
            "time": time.time(),
            "command": command,
            "policy_version": checkpoint.policy_version,
            "policy_sha256": checkpoint.policy_sha256,
            "episodes_per_level": episodes_per_level,
        },
    )
    return len(read_jsonl(path))
