"""Score ranges that normalize returns: (return - R_min) / (R_max - R_min). Two are in use, which differ in two games.

`openai` are those of OpenAI's code (openai/train-procgen, train_procgen/constants.py), which the rest of Heldout uses
(common/games.py). `paper` are those that later papers print, Impoola (Trumpp et al. 2025) among them: on easy, R_min is
3 for jumper and leaper, where OpenAI's code has 1 and 1.5.
"""

from typing import Literal

from common.games import GAMES

Ranges = Literal["openai", "paper"]

_PAPER_EASY = {"jumper": (3.0, 10.0), "leaper": (3.0, 10.0)}


def score_range(env_name: str, distribution_mode: str, ranges: Ranges) -> tuple[float, float]:
    """(R_min, R_max) of a game in raw return."""
    if ranges == "paper" and distribution_mode == "easy" and env_name in _PAPER_EASY:
        return _PAPER_EASY[env_name]
    low, high = getattr(GAMES[env_name], distribution_mode)
    return float(low), float(high)


def normalized(episode_return: float, env_name: str, distribution_mode: str, ranges: Ranges) -> float:
    """0 is a trivial policy, 1 the best possible."""
    low, high = score_range(env_name, distribution_mode, ranges)
    return (episode_return - low) / (high - low)
