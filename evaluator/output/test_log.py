"""How often a run's test levels were looked at: each look makes them a little less of a test."""

import time
from pathlib import Path

from common.storage.checkpoints import Checkpoint
from common.storage.jsonl import append_jsonl, read_jsonl


def log_test_use(path: Path, checkpoint: Checkpoint, command: str, episodes_per_level: int) -> int:
    """Appends one use to test_uses.jsonl and returns how many there are now; OSError where it cannot be written."""
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
