"""OpenAI's published PPO as one more variant: three seeds of every game, from the logs of openai/train-procgen.

openai_ppo_logs.json has the numbers and their source. A score is the mean of the last 100 training episodes of a worker
on the training levels (train) or on all levels (test), stochastic policy, raw return.
"""

import json
from pathlib import Path

from common.config import Config
from evaluator.levels.level_sets import Split

NAME = "PPO (OpenAI)"
_LOGS = Path(__file__).with_name("openai_ppo_logs.json")
# distribution_mode, start_level, num_levels and held_out of the published runs, by their entry in the logs.
_SETTINGS = {"easy_200": ("easy", 0, 200, "sample"), "hard_500": ("hard", 0, 500, "sample")}
# Our scores and theirs may be this far apart in frames.
_MAX_DISTANCE = 0.05


def published_scores(config: Config, split: Split, frames: int) -> tuple[int, list[float]] | str:
    """The frames and raw returns of the three published runs nearest to `frames`, or why there are none.

    `config` is that of a run to compare with.
    """
    settings = (config.distribution_mode, config.start_level, config.num_levels, config.held_out)
    entry = next((name for name, published in _SETTINGS.items() if published == settings), None)
    if entry is None:
        return (
            "the published runs have 200 easy or 500 hard training levels from 0 and are tested on all levels, these "
            f"runs have {config.num_levels} {config.distribution_mode} levels from {config.start_level} and --held-out "
            f"{config.held_out}"
        )
    logs = json.loads(_LOGS.read_bytes())[entry][config.env_name]["train" if split == "train" else "test"]
    points = {round(float(name.removesuffix("M")) * 1e6): scores for name, scores in logs.items()}
    nearest = min(points, key=lambda point: abs(point - frames))
    if abs(nearest - frames) > _MAX_DISTANCE * nearest:
        return (
            f"the logs have {', '.join(logs)} frames, none within {_MAX_DISTANCE:.0%} of {frames:,}; choose with --at"
        )
    return nearest, points[nearest]
