"""The table of games: Procgen's names, time limits and the paper's score ranges."""

import pytest

from common.games import DISTRIBUTION_MODES, GAMES, normalized_return


def test_the_games_are_procgens_own():
    from common.procgen_env import _procgen

    _procgen()
    from procgen.env import ENV_NAMES

    assert sorted(GAMES) == sorted(ENV_NAMES) and len(GAMES) == 16


@pytest.mark.parametrize("game", GAMES)
def test_every_range_rises_in_every_mode(game):
    for mode in DISTRIBUTION_MODES:
        low, high = getattr(GAMES[game], mode)
        assert low < high
        assert normalized_return(game, mode, low) == 0
        assert normalized_return(game, mode, high) == 1


def test_normalised_returns_are_those_of_the_paper():
    assert normalized_return("coinrun", "easy", 8.0) == pytest.approx(0.6)  # (8 - 5) / (10 - 5)
    assert normalized_return("heist", "easy", 3.5) == 0
    assert normalized_return("heist", "hard", 3.5) == pytest.approx(1.5 / 8)  # (3.5 - 2) / (10 - 2)
    assert normalized_return("fruitbot", "easy", -1.5 + 33.9 / 2) == pytest.approx(0.5)
    assert normalized_return("coinrun", "hard", 0.0) == pytest.approx(-1)  # worse than trivial is below 0


def test_time_limits_are_those_of_the_games():
    limits = {"bigfish": 6000, "bossfight": 4000, "plunder": 4000, "leaper": 500, "maze": 500}
    assert {name: game.time_limit for name, game in GAMES.items()} == {name: limits.get(name, 1000) for name in GAMES}
