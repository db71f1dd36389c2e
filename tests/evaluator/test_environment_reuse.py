"""An evaluator's memory stays flat: after the first checkpoint it makes no environment."""

from collections import Counter

import numpy as np
import pytest

from common import procgen_env
from common.games import Game
from common.procgen_env import make_envs
from common.storage.checkpoints import Checkpoint
from evaluator.levels import level_envs
from evaluator.output.video import record_episode
from evaluator.scores import play
from evaluator.scores.evaluation import evaluate


def test_scores_and_videos_after_the_first_make_no_environment(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter = Counter()

    def counted(num_envs, *args, **options):
        made[num_envs] += 1
        return make_envs(num_envs, *args, **options)

    monkeypatch.setattr(procgen_env, "make_envs", counted)
    monkeypatch.setattr(level_envs, "_idle", {})
    level_envs._compressed_state.cache_clear()
    monkeypatch.setattr(play, "choose_actions", lambda policy, frames, uniforms, _: (15 * uniforms).astype(np.int32))
    slots = [("train", level) for level in range(40)]
    policy = play.load_policy(checkpoint)

    def score(levels):
        evaluate(checkpoint, slots[:levels], 1, seed=0)
        record_episode(policy, Game("leaper", "easy"), 3, seed=0)

    score(40)
    first = made.copy()
    assert first == {1: 40 + 1, 32: 1}  # each level, the video's and the scores'
    for levels in (40, 3, 33, 8, 40):
        score(levels)
    assert made == first | {8: 1}
