"""A process that loaded the images of one game draws it like one that loaded all.

Procgen loads images once in a process, so games with different images are played in different processes: `python -m`
this module forks them, and prints digests of what they saw.
"""

import errno
import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import common.procgen_env
import common.procgen_images
from common.games import GAMES, Game
from common.procgen_env import make_envs, play_only
from common.procgen_images import FOLDERS, images_of

PROJECT = Path(__file__).resolve().parents[2]
LEVELS, STEPS = 60, 10
WITHOUT_BACKGROUNDS = "starpilot without its backgrounds"


def digest(env_name: str) -> str:
    """Of the frames of random play on random levels."""
    envs = make_envs(LEVELS, Game(env_name, "easy"), 0, 0, rand_seed=1)
    frames = hashlib.sha256(envs.observe()[1].tobytes())
    for actions in np.random.RandomState(2).randint(0, 15, (STEPS, LEVELS)).astype(np.int32):
        envs.act(actions)
        frames.update(envs.observe()[1].tobytes())
    envs.close()
    return frames.hexdigest()


def digests_with_the_same_images(env_names: list[str]) -> dict[str, str]:
    """Of games that show the same folders: this process loads images only for the first."""
    digests = {}
    for env_name in env_names:
        common.procgen_env._only_game = None
        play_only(env_name)
        digests[env_name] = digest(env_name)
    return digests


def digest_without_backgrounds() -> str:
    FOLDERS["starpilot"] = frozenset()
    play_only("starpilot")
    return digest("starpilot")


@pytest.fixture(scope="module")
def digests() -> dict[str, str]:
    result = subprocess.run([sys.executable, "-m", __name__], cwd=PROJECT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("env_name", GAMES)
def test_game_looks_the_same_with_its_own_images_only(env_name: str, digests: dict[str, str]) -> None:
    assert digests[env_name] == digest(env_name)


def test_missing_image_would_be_noticed(digests: dict[str, str]) -> None:
    assert digests[WITHOUT_BACKGROUNDS] != digests["starpilot"]


def test_process_that_plays_only_one_game_refuses_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.procgen_env, "_only_game", None)
    play_only("leaper")
    play_only("leaper")
    with pytest.raises(RuntimeError, match="this process plays only leaper, not maze"):
        make_envs(1, Game("maze", "easy"), 0, 1, rand_seed=0)
    with pytest.raises(RuntimeError, match="this process plays only leaper, not maze"):
        play_only("maze")


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """Like Procgen's, with one image in each folder, whose content is its path."""
    root = tmp_path / "assets"
    for folder in ("misc_assets", "space_backgrounds", "kenney/Players/Blue"):
        (root / folder).mkdir(parents=True)
        (root / folder / "image.png").write_text(folder)
    return root


def test_images_of_other_games_are_replaced_while_they_are_loaded(assets: Path) -> None:
    with images_of("starpilot", assets) as directory:
        found = {str(path.parent.relative_to(directory)): path.read_text() for path in directory.glob("**/*.png")}
        # glob does not follow links to folders
        found |= {name: (directory / name / "image.png").read_text() for name in ("misc_assets", "space_backgrounds")}
    assert found == {
        "misc_assets": "misc_assets",
        "space_backgrounds": "space_backgrounds",
        "kenney/Players/Blue": "misc_assets",
    }
    assert not directory.exists()
    assert (assets / "space_backgrounds" / "image.png").exists()


def test_directories_of_killed_processes_are_deleted_later(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left_behind, new = tmp_path / "heldout-images-killed", tmp_path / "heldout-images-new"
    for directory in (left_behind, new):
        directory.mkdir()
        (directory / "misc_assets").symlink_to(assets / "misc_assets")
    make_old(left_behind)
    with images_of("starpilot", assets):
        assert new.exists() and not left_behind.exists()
    assert (assets / "misc_assets" / "image.png").exists()


def test_directory_of_a_process_that_was_suspended_for_an_hour_stays(assets: Path) -> None:
    with images_of("starpilot", assets) as in_use:
        make_old(in_use)
        with images_of("starpilot", assets):
            assert (in_use / "misc_assets" / "image.png").exists()
    assert not in_use.exists()


def test_file_system_without_locks_deletes_nothing_and_loads_all_images(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(common.procgen_images.fcntl, "flock", refuse_to_lock)
    left_behind = tmp_path / "heldout-images-killed"
    left_behind.mkdir()
    make_old(left_behind)
    with images_of("starpilot", assets) as directory:
        assert directory == assets
    assert list(tmp_path.glob("heldout-images-*")) == [left_behind]


def test_temporary_directory_may_have_any_name(tmp_path: Path) -> None:
    temporary = tmp_path / "jürgen 学"
    temporary.mkdir()
    program = (
        "from common.games import Game\n"
        "from common.procgen_env import make_envs, play_only\n"
        "play_only('starpilot')\n"
        "make_envs(1, Game('starpilot', 'easy'), 0, 1, rand_seed=0).observe()"
    )
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=180
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(temporary.iterdir())


def make_old(directory: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(directory, (an_hour_ago, an_hour_ago))


def refuse_to_lock(_descriptor: int, _operation: int) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_without_room_for_a_directory_all_images_are_loaded(
    assets: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/missing")
    with caplog.at_level(logging.WARNING), images_of("starpilot", assets) as directory:
        assert directory == assets
    (record,) = caplog.records
    assert "loading the images of all games" in record.getMessage() and "/proc/missing" in record.getMessage()


if __name__ == "__main__":
    same_images: dict[frozenset[str], list[str]] = {}
    for game in GAMES:
        same_images.setdefault(FOLDERS[game], []).append(game)
    found: dict[str, str] = {}
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for digests_of_some in pool.map(digests_with_the_same_images, same_images.values(), chunksize=1):
            found |= digests_of_some
        found[WITHOUT_BACKGROUNDS] = pool.apply(digest_without_backgrounds)
    print(json.dumps(found))
