"""Environments are made once, because one that is closed does not give back all its memory, and play as new ones do."""

from collections import Counter

import numpy as np
import pytest

from common import procgen_env
from common.games import GAMES, Game
from common.procgen_env import drawn_with, envs_from_states, make_envs
from common.resolution import Machine, resolve
from evaluator.levels import level_envs
from evaluator.levels.audit import Audit
from evaluator.levels.behavior import FAST, PLAIN
from evaluator.levels.level_envs import borrow_envs, level_state, load_states

LEAPER = Game("leaper", "easy")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How many native environments of each number of slots were made, with nothing kept from other tests."""
    counts: Counter = Counter()

    def counted(num_envs, *args, **options):
        counts[num_envs] += 1
        return make_envs(num_envs, *args, **options)

    monkeypatch.setattr(procgen_env, "make_envs", counted)
    monkeypatch.setattr(level_envs, "_idle", {})
    level_envs._compressed_state.cache_clear()
    return counts


def test_audit_makes_each_level_once(made: Counter) -> None:
    audit = Audit(resolve("easy", {"env_name": "jumper", "num_levels": 40}, Machine()))
    audit.judge(range(10_000, 10_040))
    audit.judge(range(10_000, 10_040))
    assert made == {1: 80, 32: 1, 8: 1}


def test_library_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    libenv = pytest.importorskip("gym3.libenv")
    make_envs(1, LEAPER, 0, 1, rand_seed=0).close()
    handles = [len(ffi._libraries) for ffi in libenv.FFI_CACHE.values()]
    for level in range(3):
        make_envs(1, LEAPER, level, 1, rand_seed=0).close()
    assert [len(ffi._libraries) for ffi in libenv.FFI_CACHE.values()] == handles


@pytest.mark.parametrize("env_name", sorted(GAMES))
def test_used_batch_plays_loaded_states_like_a_new_one(env_name: str) -> None:
    game = Game(env_name, "hard")
    states = [level_state(game, level) for level in (0, 7, 2_000_000_011)]
    actions = np.random.default_rng(0).integers(0, 15, (150, 3), dtype=np.int32)

    def played(envs):
        steps = [envs.observe()]
        for action in actions:
            envs.act(action)
            steps.append(envs.observe())
        return [np.array(parts) for parts in zip(*steps, strict=True)]

    new = envs_from_states(game, states)
    expected = played(new)
    new.close()
    with borrow_envs(game, 3) as envs:
        load_states(envs, [level_state(game, 11)], 3)
        played(envs)
        load_states(envs, [drawn_with(state, game, center_agent=False, **PLAIN) for state in states], 3)
        envs.observe()
        load_states(envs, [drawn_with(state, game, **FAST) for state in states], 3)
        rewards, _, first = played(envs)
        np.testing.assert_array_equal(rewards[1:], expected[0][1:])
        np.testing.assert_array_equal(first[1:], expected[2][1:])
        load_states(envs, states, 3)
        for one, other in zip(played(envs)[1:], expected[1:], strict=True):
            np.testing.assert_array_equal(one, other)


def test_batch_is_closed_after_an_error_and_few_are_kept(made: Counter) -> None:
    with pytest.raises(KeyError), borrow_envs(LEAPER, 2):
        raise KeyError
    assert not level_envs._idle
    for num_envs in range(1, 7):
        with borrow_envs(LEAPER, num_envs):
            pass
    assert [num_envs for _, num_envs, _ in level_envs._idle] == [4, 5, 6]
