"""Uses real Procgen; the matching and the lost levels were found by looking at the frames."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import Config, ConfigError, Machine, resolve
from common.games import Game
from common.procgen_env import make_envs
from common.storage.run_directory import RunDirectory
from evaluator.levels.audit import FEW_STEPS, TOLERANCE, Audit
from evaluator.levels.level_file import audited_level_sets, read_level_sets, stored_level_sets


def easy(env_name: str, **given: Any) -> Config:
    return resolve("easy", {"env_name": env_name, "held_out_levels": 3, **given}, Machine())


def first_frame(env_name: str, level: int) -> np.ndarray:
    envs = make_envs(1, Game(env_name, "easy"), level, 1, rand_seed=0)
    frame = envs.observe()[1][0].copy()
    envs.close()
    return frame.astype(np.int16)


# 14 and 50013 are the same room with the same coin; only the dark rock in the background is shifted by some pixels.
SAME_COINRUN_LEVELS = (14, 50013)


def test_level_that_looks_like_a_training_level_is_removed() -> None:
    trained, same = SAME_COINRUN_LEVELS
    difference = np.abs(first_frame("coinrun", trained) - first_frame("coinrun", same))
    assert 0 < difference.max() <= TOLERANCE
    (removal,) = Audit(easy("coinrun", start_level=trained, num_levels=1)).check("test", [same])
    assert removal is not None
    assert (removal.split, removal.level, removal.reason, removal.same_as) == ("test", same, "same_picture", trained)


def test_training_level_is_the_same_as_itself_and_others_are_not() -> None:
    results = Audit(easy("coinrun", start_level=3, num_levels=2)).check("validation", [4, 0, 1, 2])
    assert [removal is None for removal in results] == [False, True, True, True]


def test_levels_with_the_same_first_frame_only_are_not_the_same() -> None:
    """Comparing only the first frame would match them: the difference is outside the camera view."""
    audit = Audit(easy("coinrun", num_levels=200))
    means = audit._coarse
    pairs = [
        (a, b)
        for a in range(200)
        for b in range(a)
        if np.abs(means[a, :192] - means[b, :192]).max() < 1 and np.abs(means[a] - means[b]).max() > 60
    ]
    a, b = next(
        (a, b) for a, b in pairs if np.abs(first_frame("coinrun", a) - first_frame("coinrun", b)).max() <= TOLERANCE
    )
    assert Audit(easy("coinrun", start_level=a, num_levels=1)).check("test", [b]) == [None]


def test_jumper_levels_that_end_under_every_action_are_found() -> None:
    """The slow reference tries each action on each of the levels 10000 to 10039 alone."""
    levels = list(range(10_000, 10_040))
    lost = set(levels)
    for action in range(15):
        for level in sorted(lost):
            envs = make_envs(1, Game("jumper", "easy"), level, 1, rand_seed=0)
            envs.observe()
            reward, ended = 0.0, False
            for _ in range(FEW_STEPS):
                envs.act(np.array([action], np.int32))
                rewards, _, first = envs.observe()
                reward += 0.0 if ended else float(rewards[0])
                ended |= bool(first[0])
            envs.close()
            if not ended or reward > 0:
                lost.discard(level)
    results = Audit(easy("jumper", num_levels=2)).check("test", levels)
    found = {removal.level for removal in results if removal is not None and removal.reason == "ends_at_once"}
    assert found == lost
    assert 0 < len(lost) < 20


def test_removed_levels_are_stored_with_their_reason(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = easy("jumper", num_levels=2, held_out_levels=20)
    sets = stored_level_sets(run, config)
    stored = json.loads(run.level_sets.read_text())
    removed = [removal["level"] for removal in stored["audit"]["removed"]]
    assert removed and stored["audit"]["judged"] == 40 + len(removed)
    assert not set(removed) & set(sets.validation + sets.test)
    assert (stored["validation"], stored["test"]) == (list(sets.validation), list(sets.test))
    assert len(sets.validation) == len(sets.test) == 20
    assert stored["rule"]["train"] == "[0, 2)"
    assert stored_level_sets(run, config) == sets == audited_level_sets(config)[0]


def test_levels_json_is_written_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = easy("leaper", num_levels=2)
    first = stored_level_sets(run, config)
    contents = json.loads(run.level_sets.read_text())
    contents["test"] = [77, 78, 79]
    del contents["sha256"]
    run.level_sets.write_text(json.dumps(contents))
    assert stored_level_sets(run, config).test == (77, 78, 79) != first.test
    assert [path.name for path in tmp_path.iterdir()] == ["levels.json"]


def test_edited_levels_are_refused(tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), easy("leaper", num_levels=2)
    stored_level_sets(run, config)
    contents = json.loads(run.level_sets.read_text())
    contents["validation"][0] = 0  # a training level
    run.level_sets.write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match=r"levels\.json was edited"):
        stored_level_sets(run, config)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"train": [1], "validation": 3}'])
def test_damaged_file_is_a_one_line_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "levels.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"levels\.json cannot be read"):
        read_level_sets(path, easy("leaper"))


def test_levels_of_other_settings_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    stored_level_sets(run, easy("leaper", num_levels=2))
    with pytest.raises(ConfigError, match=r"belongs to other settings \(num_levels\)"):
        stored_level_sets(run, easy("leaper", num_levels=3))
