"""Building Procgen's vectorised environments, for training and bound to exact levels.

`ProcgenGym3Env` is used directly: `act(actions)` returns immediately while C++ threads step; `observe()` waits and
returns (reward of the last action, observation dict, first). At first=1 the observation is already the first frame of
the next episode; the terminal frame is never shown.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.games import OBSERVATION_SHAPE, Game


class MissingLibrary(RuntimeError):
    """A system library that Procgen loads is missing; the message is its file name, such as `libGL.so.1`."""


# The Debian and Ubuntu packages that contain the libraries Procgen loads.
SYSTEM_PACKAGES = "libgl1 libglib2.0-0"


@functools.cache
def _procgen() -> Any:
    """The procgen module, imported without gym's notice that it is unmaintained."""
    import gym_notices.notices

    gym_notices.notices.notices.clear()
    import procgen

    _open_library_once()
    return procgen


def _open_library_once() -> None:
    """gym3 opens the C library again for every environment, and cffi keeps each handle: 11 KiB an environment."""
    import gym3.libenv

    class OneHandleFFI(gym3.libenv.FFI):
        @functools.cache  # noqa: B019  gym3 keeps the object for good anyway
        def dlopen(self, name: str, flags: int = 0) -> Any:
            return super().dlopen(name, flags)

    gym3.libenv.FFI = OneHandleFFI


def make_envs(
    num_envs: int,
    game: Game,
    start_level: int,
    num_levels: int,
    rand_seed: int,
    num_threads: int = 0,
    render: bool = False,
) -> Any:
    """A `ProcgenGym3Env` of `num_envs` slots drawing levels from [start_level, start_level + num_levels).

    The order of levels depends only on `rand_seed` and the slot. `num_threads` C++ threads step the slots; with 0,
    `act` steps them on the caller's thread. `render` adds 512 x 512 images to `get_info` (slow).
    """
    options = {"render_mode": "rgb_array"} if render else {}
    return _procgen().ProcgenGym3Env(
        num=num_envs,
        env_name=game.env_name,
        distribution_mode=game.distribution_mode,
        start_level=start_level,
        num_levels=num_levels,
        rand_seed=rand_seed,
        num_threads=num_threads,
        **options,
    )


def level_state(game: Game, level: int) -> bytes:
    """The saved state of an environment at the start of `level`, which plays only this level.

    A saved state includes the level range, so loading it into a slot binds that slot to the level, also after each
    restart. Replacing the range in another level's state is not enough: Dodgeball and Miner carry over more.
    """
    single = make_envs(1, game, int(level), 1, rand_seed=0)
    try:
        single.observe()
        (state,) = single.callmethod("get_state")
    finally:
        single.close()
    return state


def envs_from_states(game: Game, states: Sequence[bytes], num_threads: int = 0) -> Any:
    """A batch whose slot i continues exactly where `states[i]` was saved, including level range and generators."""
    envs = make_envs(len(states), game, 0, 1, rand_seed=0, num_threads=num_threads)
    envs.callmethod("set_state", list(states))
    return envs


def observe(envs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float32 rewards `[N]`, uint8 frames `[N, 64, 64, 3]`, bool first `[N]`) of the newest step."""
    rewards, observations, first = envs.observe()
    return rewards, observations["rgb"], first


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
    _, frames, _ = observe(envs)
    envs.close()
    if frames.shape[1:] != OBSERVATION_SHAPE:
        raise RuntimeError(f"Procgen returned observations of shape {frames.shape[1:]} instead of {OBSERVATION_SHAPE}")
