"""Environments for playing exact levels, made once per process and reused by loading saved states.

An evaluator plays the same few hundred levels for every checkpoint. Each new native environment takes a millisecond
and some memory that closing it does not return.
"""

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence

import zstandard

from common import procgen_env
from common.games import Game
from common.procgen_env import ProcgenEnvs

NUM_ENVS = 32  # the largest batch a policy is given; more only take memory (0.3 to 0.8 MiB each)
FEW_ENVS = 8
_MAX_STATES = 2048  # 10 kB each, compressed; beyond that the least recently used level is made again
_MAX_IDLE = 3  # batches kept; an evaluator needs two for scores and the audit and one for videos

_lock = threading.Lock()
_idle: dict[tuple[Game, int, bool], ProcgenEnvs] = {}  # the least recently used first


def batch_size(num_levels: int) -> int:
    """The number of environments for playing `num_levels`: one of two, so that batches are reused."""
    return FEW_ENVS if num_levels <= FEW_ENVS else NUM_ENVS


def level_state(game: Game, level: int) -> bytes:
    """The start of `level`. A slot that loads it plays only this level, also after each restart.

    To be loaded before every episode that is scored or shown: `common.procgen_env.level_state` says what a restart
    carries over.
    """
    return zstandard.ZstdDecompressor().decompress(_compressed_state(game, int(level)))


@functools.lru_cache(maxsize=_MAX_STATES)
def _compressed_state(game: Game, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(procgen_env.level_state(game, level))


@contextlib.contextmanager
def borrow_envs(game: Game, num_envs: int, render: bool = False) -> Iterator[ProcgenEnvs]:
    """A batch in an arbitrary state, for `load_states`. It is kept for the next caller, but closed after an error."""
    key = (game, num_envs, render)
    with _lock:
        envs = _idle.pop(key, None)
    if envs is None:
        envs = procgen_env.make_envs(num_envs, game, 0, 1, rand_seed=0, render=render)
    try:
        yield envs
    except BaseException:
        envs.close()
        raise
    with _lock:
        superfluous = [_idle.pop(key)] if key in _idle else []
        _idle[key] = envs
        while len(_idle) > _MAX_IDLE:
            superfluous.append(_idle.pop(next(iter(_idle))))
    for other in superfluous:
        other.close()


def load_states(envs: ProcgenEnvs, states: Sequence[bytes], num_envs: int) -> None:
    """Slot i of `num_envs` continues where `states[i]` was saved; the slots left over repeat the first state."""
    envs.set_state([*states, *[states[0]] * (num_envs - len(states))])
