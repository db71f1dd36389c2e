"""The table of games: Procgen's names, time limits and score ranges."""

import numpy as np
import pytest

from common.games import ALL_OR_NOTHING, DISTRIBUTION_MODES, GAMES, NUM_ACTIONS, Game


def test_games_are_those_of_procgen():
    from common.procgen_env import _env_module

    assert sorted(GAMES) == sorted(_env_module().ENV_NAMES) and len(GAMES) == 16


@pytest.mark.parametrize("name", GAMES)
def test_score_range_is_increasing_in_every_mode(name):
    for mode in DISTRIBUTION_MODES:
        low, high = getattr(GAMES[name], mode)
        assert low < high
        assert Game(name, mode).normalized_return(low) == 0
        assert Game(name, mode).normalized_return(high) == 1


def test_normalized_returns_match_the_ranges_of_openais_code():
    assert Game("coinrun", "easy").normalized_return(8.0) == pytest.approx(0.6)  # (8 - 5) / (10 - 5)
    assert Game("heist", "easy").normalized_return(3.5) == 0
    assert Game("heist", "hard").normalized_return(3.5) == pytest.approx(1.5 / 8)  # (3.5 - 2) / (10 - 2)
    assert Game("fruitbot", "easy").normalized_return(-1.5 + 33.9 / 2) == pytest.approx(0.5)
    assert Game("jumper", "easy").normalized_return(1.0) == Game("leaper", "easy").normalized_return(1.5) == 0
    assert Game("coinrun", "hard").normalized_return(0.0) == pytest.approx(-1)  # worse than trivial is below 0


def test_time_limits_match_the_game_sources():
    limits = {"bigfish": 6000, "bossfight": 4000, "plunder": 4000, "leaper": 500, "maze": 500}
    for name in GAMES:
        assert Game(name, "easy").time_limit == Game(name, "hard").time_limit == limits.get(name, 1000)


def test_game_is_printed_with_its_mode():
    assert str(Game("coinrun", "easy")) == "coinrun easy"


def pays_all_or_nothing(name):
    """Whether random play is rewarded only with 10, and only at the end of an episode."""
    from common.procgen_env import make_envs

    envs = make_envs(32, Game(name, "easy"), 0, 0, rand_seed=0)
    actions = np.random.RandomState(0)
    paid = set()
    for _ in range(150):
        envs.act(actions.randint(0, NUM_ACTIONS, 32, dtype=np.int32))
        rewards, _, first = envs.observe()
        paid |= {(float(reward), bool(end)) for reward, end in zip(rewards, first, strict=True) if reward}
    envs.close()
    return paid <= {(10.0, True)}


@pytest.mark.parametrize("name", ["coinrun", "heist", "jumper", "leaper", "maze", "ninja", "fruitbot", "starpilot"])
def test_return_limits_are_known_where_an_episode_pays_all_or_nothing(name):
    limits = Game(name, "hard").return_limits
    assert limits == ((0, 10) if name in ALL_OR_NOTHING else None)
    assert pays_all_or_nothing(name) is (limits is not None)
