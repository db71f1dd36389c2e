"""A run's videos, named by policy version, kind and level: videos/00000120-worst-level3.gif."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.storage.checkpoints import checkpoint_name, set_aside

_NAME = re.compile(r"(\d{8,})-([a-z]+)-level(\d+)\.gif")


@dataclass(frozen=True, slots=True)
class StoredVideo:
    """A video of one policy version on one level, and why the level was chosen (`kind`)."""

    path: Path
    policy_version: int
    kind: str
    level: int


def video_name(policy_version: int, kind: str, level: int) -> str:
    """The file name; names sort by version."""
    return f"{checkpoint_name(policy_version)}-{kind}-level{level}.gif"


def list_videos(directory: Path) -> list[StoredVideo]:
    """The videos in `directory`, oldest version first; other files are left out. Only names are read."""
    if not directory.is_dir():
        return []
    return [
        StoredVideo(path, int(match[1]), match[2], int(match[3]))
        for path in sorted(directory.iterdir())
        if (match := _NAME.fullmatch(path.name))
    ]


def set_aside_videos(directory: Path, is_abandoned: Callable[[int], bool]) -> None:
    """Renames the videos of the versions for which `is_abandoned` is true, as `set_aside` does."""
    for video in list_videos(directory):
        if is_abandoned(video.policy_version):
            set_aside(video.path)
