"""Building Procgen's vectorized environments, for training and bound to exact levels.

The only module that knows the builds of Procgen: `procgen` (Python 3.10) and `procgen-mirror` (3.11, 3.12) with gym3's
interface, `procgen-gym` (3.13) with gymnasium's. All contain the same engine; `ProcgenEnvs` is their common interface.
"""

import abc
import contextlib
import functools
import importlib.util
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.games import OBSERVATION_SHAPE, Game
from common.procgen_images import images_of


class MissingLibrary(RuntimeError):
    """A system library that Procgen loads is missing; the message is its file name, such as `libGL.so.1`."""


# The Debian and Ubuntu packages that contain the libraries Procgen loads.
SYSTEM_PACKAGES = "libgl1 libglib2.0-0"


class ProcgenEnvs(abc.ABC):
    """A batch of N environments.

    `act` returns immediately while C++ threads step; `observe` waits. At first=1 the observation is already the first
    frame of the next episode; the terminal frame is never shown.
    """

    @abc.abstractmethod
    def act(self, actions: np.ndarray) -> None:
        """Starts one step with int32 actions `[N]`."""

    @abc.abstractmethod
    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(float32 rewards `[N]`, uint8 frames `[N, 64, 64, 3]`, bool first `[N]`) of the newest step, as copies."""

    @abc.abstractmethod
    def infos(self) -> list[dict[str, Any]]:
        """For each environment its `level_seed`, and `prev_level_seed` and `prev_level_complete`, valid at first=1.

        With `render`, also `rgb`, a uint8 image `[512, 512, 3]`.
        """

    @abc.abstractmethod
    def get_state(self) -> list[bytes]:
        """One saved state per environment, which every build of Procgen can load. Call `observe` before."""

    @abc.abstractmethod
    def set_state(self, states: Sequence[bytes]) -> None:
        """Environment i continues where `states[i]` was saved, including level range and generators."""

    @abc.abstractmethod
    def set_state_of(self, index: int, state: bytes) -> None:
        """`set_state` of one environment; the others stay as they are. Call `observe` before and after."""

    @abc.abstractmethod
    def close(self) -> None:
        """Frees the environments."""


class _Gym3Envs(ProcgenEnvs):
    """`procgen` and `procgen-mirror`."""

    def __init__(self, num_envs: int, assets: Path, options: dict[str, Any]):
        # Bytes, because gym3 cuts a str that is not ASCII: it passes UTF-8 and counts characters.
        self._envs = _env_module().ProcgenGym3Env(num=num_envs, resource_root=os.fsencode(f"{assets}/"), **options)

    def act(self, actions: np.ndarray) -> None:
        self._envs.act(actions)

    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rewards, observations, first = self._envs.observe()
        return rewards, observations["rgb"], first

    def infos(self) -> list[dict[str, Any]]:
        return self._envs.get_info()

    def get_state(self) -> list[bytes]:
        return self._envs.get_state()

    def set_state(self, states: Sequence[bytes]) -> None:
        self._envs.set_state(states)

    def set_state_of(self, index: int, state: bytes) -> None:
        self._envs.call_c_func("set_state", index, state, len(state))

    def close(self) -> None:
        self._envs.close()


class _GymnasiumEnvs(ProcgenEnvs):
    """`procgen-gym`: its public `step` cannot act and observe separately, its `_clib` can."""

    def __init__(self, num_envs: int, assets: Path, options: dict[str, Any]):
        self._envs = _env_module().ProcgenVecEnv(num_envs=num_envs, resource_root=f"{assets}/", **options)

    def act(self, actions: np.ndarray) -> None:
        assert actions.shape == (self._envs.num_envs,), actions.shape  # a single action would be broadcast
        self._envs._clib.act(actions)

    def observe(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, observations, rewards, _ = self._envs._clib.observe()
        return rewards, observations["rgb"], first.astype(np.bool_)

    def infos(self) -> list[dict[str, Any]]:
        arrays = self._envs._clib.observe()[3]
        return [{name: array[i] for name, array in arrays.items()} for i in range(self._envs.num_envs)]

    def get_state(self) -> list[bytes]:
        return self._envs.get_state()

    def set_state(self, states: Sequence[bytes]) -> None:
        self._envs.set_state(states)

    def set_state_of(self, index: int, state: bytes) -> None:
        self._envs._clib.call_c_func("set_state", index, state, len(state))

    def close(self) -> None:
        self._envs.close()


def _has_gym3_interface() -> bool:
    return importlib.util.find_spec("procgen") is not None


@functools.cache
def _env_module() -> Any:
    """The installed build's module of environment classes, imported without gym's notice that it is unmaintained."""
    if not _has_gym3_interface():
        import procgen_gym.env

        return procgen_gym.env
    import gym_notices.notices

    gym_notices.notices.notices.clear()
    import procgen.env

    _open_library_once()
    return procgen.env


def _open_library_once() -> None:
    """gym3 opens the C library again for every environment, and cffi keeps each handle: 11 KiB an environment."""
    import gym3.libenv

    class OneHandleFFI(gym3.libenv.FFI):
        @functools.cache  # noqa: B019  gym3 keeps the object for good anyway
        def dlopen(self, name: str, flags: int = 0) -> Any:
            return super().dlopen(name, flags)

    gym3.libenv.FFI = OneHandleFFI


_only_game: str | None = None  # that this process plays
_images_are_loaded = False


def play_only(env_name: str) -> None:
    """Lets this process load the images of one game only, which saves up to 310 MB and a second.

    To be called before the first environments are made; later it saves nothing. `make_envs` refuses other games from
    now on, because it would draw them with wrong images.

    Raises:
        RuntimeError: this process plays another game.
    """
    global _only_game
    if _only_game not in (None, env_name):
        raise RuntimeError(f"this process plays only {_only_game}, not {env_name}")
    _only_game = env_name


def make_envs(
    num_envs: int,
    game: Game,
    start_level: int,
    num_levels: int,
    rand_seed: int,
    num_threads: int = 0,
    render: bool = False,
    center_agent: bool = True,
) -> ProcgenEnvs:
    """A batch of `num_envs` slots drawing levels from [start_level, start_level + num_levels).

    The order of levels depends only on `rand_seed` and the slot. `num_threads` C++ threads step the slots; with 0,
    `act` steps them on the caller's thread. `render` adds 512 x 512 images to `infos` (slow).
    Without `center_agent`, frames show the whole level.

    Raises:
        RuntimeError: after `play_only` of another game.
    """
    options: dict[str, Any] = {
        "env_name": game.env_name,
        "distribution_mode": game.distribution_mode,
        "start_level": start_level,
        "num_levels": num_levels,
        "rand_seed": rand_seed,
        "num_threads": num_threads,
        "center_agent": center_agent,
    }
    if render:
        options["render_mode"] = "rgb_array"
    build = _Gym3Envs if _has_gym3_interface() else _GymnasiumEnvs
    if _only_game is not None:
        play_only(game.env_name)
    with contextlib.ExitStack() as stack:
        global _images_are_loaded
        assets = Path(_env_module().__file__).parent / "data" / "assets"
        if _only_game is not None and not _images_are_loaded:
            assets = stack.enter_context(images_of(_only_game, assets))
        envs: ProcgenEnvs = build(num_envs, assets, options)
        _images_are_loaded = True
    return envs


# Procgen ends an episode after this action, in which nothing moves (`Game::step` in game.cpp).
_END_EPISODE = -1


def level_state(game: Game, level: int) -> bytes:
    """The saved state of an environment at the start of `level`, which plays only this level.

    A saved state includes the level range, so loading it into a slot binds that slot to the level, also after each
    restart. But a restart does not reset everything: two games carry something over from the episode before.

        Miner       `diamonds_remaining`, which is counted after each step, so that in the first one it is that of the
                    episode before. If it is 0, the exit is open. A new environment has 0, and on some levels the first
                    step reaches the exit: 10 points.
        Dodgeball   `last_move_action`, the direction of a ball thrown before the first move.

    The state returned is that after an episode without a move. Miner's exit is closed, as after every episode that left
    diamonds, and Dodgeball's ball flies to the right, where the player is drawn to look. Neither a restart nor another
    level's state with this level's range is the same.
    """
    single = make_envs(1, game, int(level), 1, rand_seed=0)
    try:
        single.observe()
        single.act(np.array([_END_EPISODE], np.int32))
        single.observe()
        (state,) = single.get_state()
    finally:
        single.close()
    return state


# The first ints of a saved state after the format's number and the game's name (`Game::serialize` in game.cpp).
_DRAWING_OPTIONS = (
    "paint_vel_info",
    "use_generated_assets",
    "use_monochrome_assets",
    "restrict_themes",
    "use_backgrounds",
    "center_agent",
)
_STATE_FORMAT = 0


def drawn_with(state: bytes, game: Game, **options: bool) -> bytes:
    """The saved state with other drawing options of Procgen. They change what frames show, not how the level plays.

    `center_agent=False` draws the whole level. `use_monochrome_assets=True` draws each kind of object as a block of
    one color. Some games set `center_agent` again when an episode starts.

    Raises:
        ValueError: `state` has another format or is not of `game`.
    """
    edited, offset = bytearray(state), _header_length(state, game)
    for option, value in options.items():
        struct.pack_into("<i", edited, offset + 4 * _DRAWING_OPTIONS.index(option), value)
    return bytes(edited)


def saved_layout(state: bytes, game: Game) -> tuple[bytes, frozenset[bytes]]:
    """What a saved state says about the level, apart from how it is drawn: the grid and the set of objects on it.

    The generator that decides what happens later and what only one game saves are not included. An object that lies
    exactly on an equal one does not count.

    Raises:
        ValueError: `state` has another format or is not of `game`.
    """
    offset = _header_length(state, game) + 4 * _NUM_OPTIONS
    for _ in range(2):  # the generators of levels and of what happens in one
        offset = _after_generator(state, offset)
    offset += 4 * _NUM_GAME_FIELDS
    (num_objects,) = struct.unpack_from("<i", state, offset)
    objects = np.frombuffer(state, "<i4", num_objects * _OBJECT_FIELDS, offset + 4).reshape(num_objects, -1).copy()
    objects[:, _DRAWN_FIELDS] = 0
    offset = _after_generator(state, offset + 4 + objects.nbytes + 4 * _NUM_VIEW_FIELDS)
    offset += 4 * 9  # the size of the world and the last view
    width, height, size = struct.unpack_from("<3i", state, offset)
    if size != width * height or not objects.any(axis=1).all():
        raise ValueError(f"the saved state of {game.env_name} has an unknown format")
    return state[offset : offset + 4 * (3 + size)], frozenset(row.tobytes() for row in objects)


# Numbers of 4-byte fields (`serialize` in game.cpp, basic-abstract-game.cpp and entity.cpp).
_NUM_OPTIONS = 17
_NUM_GAME_FIELDS = 16
_NUM_VIEW_FIELDS = 19
_OBJECT_FIELDS = 31
_DRAWN_FIELDS = (7, 8)  # image_type, image_theme


def _header_length(state: bytes, game: Game) -> int:
    name = game.env_name.encode()
    header = struct.pack("<2i", _STATE_FORMAT, len(name)) + name
    if not state.startswith(header):
        raise ValueError(f"not a saved state of {game.env_name} in format {_STATE_FORMAT}")
    return len(header)


def _after_generator(state: bytes, offset: int) -> int:
    (length,) = struct.unpack_from("<i", state, offset + 4)
    return offset + 8 + int(length)


def envs_from_states(game: Game, states: Sequence[bytes], num_threads: int = 0) -> ProcgenEnvs:
    """A batch whose slot i continues exactly where `states[i]` was saved, including level range and generators."""
    envs = make_envs(len(states), game, 0, 1, rand_seed=0, num_threads=num_threads)
    envs.set_state(states)
    return envs


def step_once() -> None:
    """Builds one real environment and steps it: importing Procgen can succeed where building an environment fails.

    Raises:
        MissingLibrary: a system library is missing.
        Exception: Procgen does not run here for any other reason.
    """
    try:
        envs = make_envs(1, Game("coinrun", "easy"), 0, 1, rand_seed=0)
    except OSError as error:
        missing = re.search(r"(lib[^\s/:]+\.so[.\d]*): cannot open shared object file", str(error))
        if missing is None:
            raise
        raise MissingLibrary(missing[1]) from error
    envs.act(np.zeros(1, np.int32))
    _, frames, _ = envs.observe()
    envs.close()
    if frames.shape[1:] != OBSERVATION_SHAPE:
        raise RuntimeError(f"Procgen returned observations of shape {frames.shape[1:]} instead of {OBSERVATION_SHAPE}")
