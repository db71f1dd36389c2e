"""The installed build of Procgen plays like every other build: 300 steps of 16 games against stored figures.

procgen_parity.json holds, for each game, the sum of rewards, the number of ended episodes, a digest of every reward,
end and level seed, and a digest of the saved states after the last step. It was recorded once; `procgen` 0.10.7,
`procgen-mirror` 0.10.7 and `procgen-gym` 0.1.1 give the same. So a state saved by one build is the state that another
would have saved. Frames are not compared: some pixels differ between `procgen-mirror` and the others.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.games import GAMES, Game
from common.procgen_env import envs_from_states, make_envs

FIGURES = json.loads(Path(__file__).with_name("procgen_parity.json").read_text())
NUM_ENVS, STEPS, RESUMED_AT = 8, 300, 150


def figures(env_name: str, resumed: bool = False) -> dict[str, Any]:
    """Figures of 300 random steps on 50 levels; `resumed`: half of them in environments made from saved states."""
    game = Game(env_name, "easy")
    envs = make_envs(NUM_ENVS, game, start_level=0, num_levels=50, rand_seed=1)
    actions = np.random.RandomState(7).randint(0, 15, (STEPS, NUM_ENVS)).astype(np.int32)
    digest, total, ends = hashlib.sha256(), 0.0, 0
    envs.observe()
    for step, action in enumerate(actions):
        if resumed and step == RESUMED_AT:
            saved = envs.get_state()
            envs.close()
            envs = envs_from_states(game, saved)
            envs.observe()
        envs.act(action)
        rewards, _, first = envs.observe()
        seeds = np.array([info["level_seed"] for info in envs.infos()])
        digest.update(np.round(rewards, 4).astype("<f4").tobytes())
        digest.update(first.astype(np.uint8).tobytes() + seeds.astype("<i4").tobytes())
        total += float(rewards.sum())
        ends += int(first.sum())
    states = hashlib.sha256(b"".join(envs.get_state())).hexdigest()[:16]
    envs.close()
    return {"rewards": round(total, 3), "ends": ends, "steps": digest.hexdigest()[:16], "states": states}


@pytest.mark.parametrize("env_name", GAMES)
def test_installed_build_plays_like_every_other_build(env_name: str) -> None:
    assert figures(env_name) == FIGURES[env_name]


@pytest.mark.parametrize("env_name", ["starpilot", "coinrun"])
def test_saved_state_continues_as_recorded_on_every_build(env_name: str) -> None:
    assert figures(env_name, resumed=True) == FIGURES[env_name]
