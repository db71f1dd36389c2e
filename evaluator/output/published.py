"""Scores of OpenAI's published PPO, drawn in the plots for comparison."""

# PPO after 25M frames on 200 easy levels, mean return on training levels and on all other levels, 3 seeds: from the
# logs that OpenAI published with train-procgen.
PUBLISHED_EASY_25M = {
    "bigfish": (12.1, 4.8),
    "bossfight": (8.3, 7.6),
    "caveflyer": (7.2, 5.3),
    "chaser": (6.6, 5.9),
    "climber": (8.6, 5.9),
    "coinrun": (9.5, 8.7),
    "dodgeball": (5.0, 1.9),
    "fruitbot": (29.7, 26.5),
    "heist": (7.9, 2.8),
    "jumper": (8.6, 5.7),
    "leaper": (6.2, 5.8),
    "maze": (9.3, 5.5),
    "miner": (12.8, 9.4),
    "ninja": (7.7, 5.8),
    "plunder": (5.3, 4.6),
    "starpilot": (30.0, 23.8),
}
# The same for CoinRun during training: frames, training levels, other levels.
PUBLISHED_COINRUN = (
    (500_000, 6.8, 6.3),
    (1_000_000, 7.9, 7.4),
    (2_000_000, 8.5, 7.8),
    (5_000_000, 8.7, 8.1),
    (10_000_000, 9.1, 8.4),
    (25_000_000, 9.55, 8.63),
)
