"""Loading the images of one game. Procgen loads those of all 16 when a process makes its first environment.

They take 350 MB and more than a second. Most games show few of them: without large platform backgrounds, and these are
shown by five games, 40 to 60 MB remain.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# Folders of Procgen's assets, from the games' C++ sources (`main_bg_images_ptr`, `asset_for_type`; resources.cpp adds
# the space backgrounds to the platform backgrounds). `misc_assets` and `platformer` are small; every game gets them.
_EVERY_GAME = frozenset({"misc_assets", "platformer"})
_SPACE = frozenset({"space_backgrounds"})
_PLATFORM = frozenset({"platform_backgrounds", "platform_backgrounds_2"}) | _SPACE
_TOPDOWN = frozenset({"topdown_backgrounds"})
_WATER = frozenset({"water_backgrounds"})
_KENNEY = frozenset({"kenney"})
FOLDERS = {
    "bigfish": _WATER,
    "bossfight": _SPACE,
    "caveflyer": _SPACE,
    "chaser": _TOPDOWN,
    "climber": _PLATFORM,
    "coinrun": _PLATFORM | _KENNEY,
    "dodgeball": _TOPDOWN,
    "fruitbot": _TOPDOWN,
    "heist": _TOPDOWN | _KENNEY,
    "jumper": _PLATFORM,
    "leaper": _TOPDOWN,
    "maze": _TOPDOWN | _KENNEY,
    "miner": _PLATFORM,
    "ninja": _PLATFORM,
    "plunder": _WATER,
    "starpilot": _SPACE,
}


_PREFIX = "heldout-images-"
# A directory that is in use is locked immediately after it is created; an older one without a lock was left behind.
_LEFT_BEHIND_SECONDS = 60.0


@contextlib.contextmanager
def images_of(env_name: str, assets: Path) -> Iterator[Path]:
    """A temporary directory with the files of `assets`, where a tiny image replaces each that the game does not show.

    Yields `assets` itself where such a directory cannot be created, and logs why.
    """
    with contextlib.ExitStack() as stack:
        try:
            _delete_left_behind()
            temporary = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(temporary))
            stack.enter_context(_locked(directory, fcntl.LOCK_SH))
            _link(assets, directory, FOLDERS[env_name] | _EVERY_GAME)
        except OSError as error:
            logger.warning(
                "loading the images of all games (350 MB), cannot prepare only those of %s: %s", env_name, error
            )
            directory = assets
        yield directory


def _link(assets: Path, directory: Path, shown: frozenset[str]) -> None:
    """Fills `directory` with links to the folders `shown`, and to one tiny image in place of every other file."""
    tiny = min((assets / "misc_assets").glob("*.png"), key=lambda path: path.stat().st_size)
    for folder in assets.iterdir():
        if folder.name in shown:
            (directory / folder.name).symlink_to(folder)
            continue
        for path, _, names in os.walk(folder):
            copy = os.path.join(directory, os.path.relpath(path, assets))
            os.mkdir(copy)
            for name in names:
                os.symlink(tiny, os.path.join(copy, name))


def _delete_left_behind() -> None:
    """Deletes the directories of processes that were killed while they loaded images."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, another process deletes it, or it is another user's
            if time.time() - directory.stat().st_mtime > _LEFT_BEHIND_SECONDS:
                with _locked(directory, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(directory)


@contextlib.contextmanager
def _locked(directory: Path, operation: int) -> Iterator[None]:
    """Holds a lock on a directory; OSError where it is not granted or the file system has none."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
