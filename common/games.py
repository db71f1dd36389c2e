"""The 16 Procgen games: names, score ranges and time limits.

Score ranges are R_min and R_max of OpenAI's code (openai/train-procgen, train_procgen/constants.py), for the normalized
return of Cobbe et al. 2020, "Leveraging Procedural Generation to Benchmark Reinforcement Learning". Later papers print
other ranges for jumper and leaper on easy (evaluator/studies/ranges.py). Time limits are those of the games' C++
sources.
"""

from dataclasses import dataclass

DISTRIBUTION_MODES = ("easy", "hard")
NUM_ACTIONS = 15
OBSERVATION_SHAPE = (64, 64, 3)
MAX_LEVEL_SEED = 2**31 - 1  # num_levels=0 draws from [0, MAX_LEVEL_SEED)


@dataclass(frozen=True, slots=True)
class GameConstants:
    """`easy` and `hard` are (R_min, R_max) in raw reward, `time_limit` is in steps."""

    easy: tuple[float, float]
    hard: tuple[float, float]
    time_limit: int = 1000


GAMES = {
    "bigfish": GameConstants((1, 40), (0, 40), 6000),
    "bossfight": GameConstants((0.5, 13), (0.5, 13), 4000),
    "caveflyer": GameConstants((3.5, 12), (2, 13.4)),
    "chaser": GameConstants((0.5, 13), (0.5, 14.2)),
    "climber": GameConstants((2, 12.6), (1, 12.6)),
    "coinrun": GameConstants((5, 10), (5, 10)),
    "dodgeball": GameConstants((1.5, 19), (1.5, 19)),
    "fruitbot": GameConstants((-1.5, 32.4), (-0.5, 27.2)),
    "heist": GameConstants((3.5, 10), (2, 10)),
    "jumper": GameConstants((1, 10), (1, 10)),
    "leaper": GameConstants((1.5, 10), (1.5, 10), 500),
    "maze": GameConstants((5, 10), (4, 10), 500),
    "miner": GameConstants((1.5, 13), (1.5, 20)),
    "ninja": GameConstants((3.5, 10), (2, 10)),
    "plunder": GameConstants((4.5, 30), (3, 30), 4000),
    "starpilot": GameConstants((2.5, 64), (1.5, 35)),
}
# An episode of these games returns 10 if the agent reaches its goal, and 0 if not.
ALL_OR_NOTHING = frozenset({"coinrun", "heist", "jumper", "leaper", "maze", "ninja"})


@dataclass(frozen=True, slots=True)
class Game:
    """A game of `GAMES` in one of the `DISTRIBUTION_MODES`."""

    env_name: str
    distribution_mode: str

    def __str__(self) -> str:
        return f"{self.env_name} {self.distribution_mode}"

    @property
    def time_limit(self) -> int:
        """Steps after which the game ends an episode."""
        return GAMES[self.env_name].time_limit

    @property
    def return_limits(self) -> tuple[float, float] | None:
        """The lowest and highest possible return where an episode pays all or nothing; None for other games."""
        return (0.0, 10.0) if self.env_name in ALL_OR_NOTHING else None

    def normalized_return(self, episode_return: float) -> float:
        """(return - R_min) / (R_max - R_min): 0 is a trivial policy, 1 the best possible (Procgen paper, eq. 1)."""
        low, high = getattr(GAMES[self.env_name], self.distribution_mode)
        return (episode_return - low) / (high - low)
