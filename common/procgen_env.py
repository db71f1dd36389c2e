"""Building Procgen's vectorised environments, for training and bound to exact levels.

`ProcgenGym3Env` is used directly: `act(actions)` returns at once while C++ threads step; `observe()` waits and
gives (reward of the last action, observation dict, first). At first=1 the observation already is the next
episode's first frame; the terminal frame is never shown.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np


class MissingLibrary(RuntimeError):
    """The system lacks a library that Procgen loads; the message is its file name, as `libGL.so.1`."""


# The Debian and Ubuntu packages that hold what Procgen loads.
SYSTEM_PACKAGES = "libgl1 libglib2.0-0"


@functools.cache
def _procgen() -> Any:
    """The procgen module, imported without gym's unmaintained-package notice."""
    import gym_notices.notices

    gym_notices.notices.notices.clear()
    import procgen

    return procgen


def make_envs(
    num_envs: int,
    env_name: str,
    distribution_mode: str,
    start_level: int,
    num_levels: int,
    rand_seed: int,
    num_threads: int = 0,
    render: bool = False,
) -> Any:
    """A `ProcgenGym3Env` of `num_envs` slots drawing levels from [start_level, start_level + num_levels).

    The order of levels depends on `rand_seed` and the slot alone. `num_threads` C++ threads step the slots; 0
    steps them in `act`, on the caller's thread. `render` adds 512 x 512 pictures to `get_info` (slow).
    """
    options = {"render_mode": "rgb_array"} if render else {}
    return _procgen().ProcgenGym3Env(
        num=num_envs,
        env_name=env_name,
        distribution_mode=distribution_mode,
        start_level=start_level,
        num_levels=num_levels,
        rand_seed=rand_seed,
        num_threads=num_threads,
        **options,
    )


def make_level_bound_envs(env_name: str, distribution_mode: str, levels: Sequence[int], num_threads: int = 0) -> Any:
    """A batch whose slot i plays `levels[i]` for ever, each restart included.

    An environment's saved state carries its level range, so a one-level environment's state put into a slot of
    a larger batch binds that slot.
    """
    states = []
    for level in levels:
        single = make_envs(1, env_name, distribution_mode, int(level), 1, rand_seed=0)
        single.observe()
        states.extend(single.callmethod("get_state"))
        single.close()
    return envs_from_states(env_name, distribution_mode, states, num_threads)


def envs_from_states(env_name: str, distribution_mode: str, states: Sequence[bytes], num_threads: int = 0) -> Any:
    """A batch whose slot i continues exactly where `states[i]` was saved, level range and generators included."""
    envs = make_envs(len(states), env_name, distribution_mode, 0, 1, rand_seed=0, num_threads=num_threads)
    envs.callmethod("set_state", list(states))
    return envs


def observe(envs: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float32 rewards `[N]`, uint8 frames `[N, 64, 64, 3]`, bool first `[N]`) of the newest step."""
    rewards, observations, first = envs.observe()
    return rewards, observations["rgb"], first


def step_once() -> None:
    """Builds one real environment and steps it: the import alone works where the first environment fails.

    Raises:
        MissingLibrary: a system library is not there.
        Exception: whatever else keeps Procgen from running here.
    """
    try:
        envs = make_envs(1, "coinrun", "easy", 0, 1, rand_seed=0)
    except OSError as error:
        missing = re.search(r"(lib[^\s/:]+\.so[.\d]*): cannot open shared object file", str(error))
        if missing is None:
            raise
        raise MissingLibrary(missing[1]) from error
    envs.act(np.zeros(1, np.int32))
    _, frames, _ = observe(envs)
    envs.close()
    if frames.shape != (1, 64, 64, 3):
        raise RuntimeError(f"Procgen gave an observation of shape {frames.shape} instead of (1, 64, 64, 3)")
