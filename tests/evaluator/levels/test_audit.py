"""Uses real Procgen. `behave_alike` plays action sequences that the audit does not use."""

import errno
import json
import logging
import os
import struct
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.level_audit import behave_alike, nearest_pairs
from common.config import Config, ConfigError
from common.games import Game
from common.procgen_env import drawn_with, make_envs, saved_layout
from common.resolution import Machine, resolve
from common.storage.run_directory import RunDirectory
from evaluator.levels import audit_cache, level_file
from evaluator.levels.audit import FEW_STEPS, Audit, Verdict
from evaluator.levels.audit_cache import AuditCache
from evaluator.levels.behavior import first_frames, nothing_happens, play
from evaluator.levels.level_envs import level_state
from evaluator.levels.level_file import audited_level_sets, flags, read_level_sets, stored_level_sets
from evaluator.levels.level_sets import draw_level_sets

COINRUN = Game("coinrun", "easy")
MAZE = Game("maze", "easy")
GOAL, SPACE = 2, 100  # of a maze's grid (maze.cpp)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory."""
    directory = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(directory))
    return directory / "heldout"


def easy(env_name: str, **given: Any) -> Config:
    return resolve("easy", {"env_name": env_name, "held_out_levels": 3, **given}, Machine())


# 14 and 50013 are the same room with the same coin; only the dark rock in the background is shifted by some pixels.
SAME_COINRUN_LEVELS = (14, 50013)


def test_level_that_is_a_training_level_again_is_found() -> None:
    trained, same = SAME_COINRUN_LEVELS
    frames = first_frames(COINRUN, SAME_COINRUN_LEVELS)
    assert (frames[0] != frames[1]).any()
    assert Audit(easy("coinrun", start_level=trained, num_levels=1)).judge([same]) == [Verdict("same_level", trained)]


def test_training_level_is_the_same_as_itself_and_others_are_not() -> None:
    verdicts = Audit(easy("coinrun", start_level=3, num_levels=2)).judge([4, 0, 1, 2])
    assert verdicts == [Verdict("same_level", 4), None, None, None]


def test_levels_that_begin_alike_and_continue_differently_are_not_the_same() -> None:
    """Comparing what the agent sees at the start would match them."""
    levels = range(200)
    frames = np.concatenate([first_frames(COINRUN, levels[i : i + 25]) for i in range(0, 200, 25)]).astype(np.int16)
    a, b = next(
        (a, b)
        for a in levels
        for b in range(a)
        if np.abs(frames[a] - frames[b]).max() <= 32
        and saved_layout(level_state(COINRUN, a), COINRUN) != saved_layout(level_state(COINRUN, b), COINRUN)
    )
    assert Audit(easy("coinrun", start_level=a, num_levels=1)).judge([b]) == [None]


def test_same_maze_before_another_background_has_the_same_layout() -> None:
    trained, same = 199, 67_427_987
    frames = first_frames(MAZE, [trained, same]).astype(np.int16)
    assert np.abs(frames[0] - frames[1]).max() > 32
    assert Audit(easy("maze", start_level=trained, num_levels=1)).judge([same]) == [Verdict("same_layout", trained)]


@pytest.mark.processes  # each takes 10 s of one core or more
@pytest.mark.parametrize(("env_name", "num_removed", "num_kept"), [("coinrun", 40, 200), ("maze", 8, 50)])
def test_other_action_sequences_confirm_removed_and_kept_levels(env_name: str, num_removed: int, num_kept: int) -> None:
    audit = Audit(easy(env_name, num_levels=200))
    candidates = [int(level) for level in np.random.RandomState(3).randint(1000, 2**31 - 1, 520)]
    removed: list[tuple[int, int]] = []
    kept: list[int] = []
    while len(removed) < num_removed or len(kept) < num_kept:
        assert candidates
        batch, candidates = candidates[:65], candidates[65:]
        for level, verdict in zip(batch, audit.judge(batch), strict=True):
            if verdict is None:
                kept.append(level)
            elif verdict.same_as is not None:
                removed.append((level, verdict.same_as))
    assert len(behave_alike(audit.game, removed[:num_removed])) >= 0.97 * num_removed
    pairs = nearest_pairs(audit.game, kept[:num_kept], range(200))
    if env_name == "maze":  # in a large maze random actions may reach nothing, which says nothing about two levels
        pairs = [pair for pair in pairs if plays_like(pair, solution(pair[0]))]
    alike = behave_alike(audit.game, pairs)
    assert len(alike) <= 0.01 * num_kept


def plays_like(pair: tuple[int, int], actions: list[int]) -> bool:
    """Whether the actions, which must reach the goal of the first maze, give the same rewards and ends in both."""
    sequence = np.full((1, MAZE.time_limit), 4, np.int32)
    sequence[0, : len(actions)] = actions
    outcome, other_outcome = (play(MAZE, [level], sequence)[0] for level in pair)
    assert outcome != nothing_happens(MAZE, sequence)
    return outcome == other_outcome


def solution(level: int) -> list[int]:
    """The shortest way to the goal of a maze, found in its saved grid. A step moves by one cell."""
    grid, _ = saved_layout(level_state(MAZE, level), MAZE)
    width, _, _, *cells = struct.unpack(f"<{len(grid) // 4}i", grid)
    at = {(i % width, i // width): kind for i, kind in enumerate(cells)}
    free = {place for place, kind in at.items() if kind in (SPACE, GOAL)}
    start = min(free, key=lambda place: (place[1], place[0]))  # the corner at the bottom left
    ways: dict[tuple[int, int], list[int]] = {start: []}
    queue = deque([start])
    while queue:
        x, y = queue.popleft()
        if at[x, y] == GOAL:
            return ways[x, y]
        for action, place in ((1, (x - 1, y)), (7, (x + 1, y)), (3, (x, y - 1)), (5, (x, y + 1))):
            if place in free and place not in ways:
                ways[place] = [*ways[x, y], action]
                queue.append(place)
    raise AssertionError(f"maze {level} has no solution")


@pytest.mark.parametrize("env_name", ["coinrun", "jumper", "caveflyer", "leaper"])
def test_edited_state_draws_the_whole_level_like_an_environment_made_so(env_name: str) -> None:
    game = Game(env_name, "easy")
    (frame,) = first_frames(game, [5], center_agent=False)
    envs = make_envs(1, game, 5, 1, rand_seed=0, center_agent=False)
    np.testing.assert_array_equal(envs.observe()[1][0], frame)
    envs.close()


def test_state_of_another_game_is_refused() -> None:
    with pytest.raises(ValueError, match="not a saved state of maze in format 0"):
        drawn_with(level_state(COINRUN, 3), Game("maze", "easy"), center_agent=False)


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
    verdicts = Audit(easy("jumper", num_levels=2)).judge(levels)
    found = {level for level, verdict in zip(levels, verdicts, strict=True) if verdict == Verdict("ends_at_once")}
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


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_levels_are_drawn_but_not_stored_in_a_read_only_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    run, config = RunDirectory(tmp_path), easy("leaper", num_levels=2)
    monkeypatch.setattr(level_file, "write_durably", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # a read-only mount says so even if there is no such file
    assert stored_level_sets(run, config) == audited_level_sets(config)[0]
    assert list(tmp_path.iterdir()) == []


def test_edited_levels_are_refused(tmp_path: Path) -> None:
    run, config = RunDirectory(tmp_path), easy("leaper", num_levels=2)
    stored_level_sets(run, config)
    contents = json.loads(run.level_sets.read_text())
    contents["validation"][0] = 0  # a training level
    run.level_sets.write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match=r"levels\.json was edited"):
        stored_level_sets(run, config)


@pytest.mark.parametrize(
    ("split", "levels", "defect"),
    [
        ("validation", [7, 8, 7], "validation has level 7 twice"),
        ("validation", [0, 7, 8], "validation has level 0 as train too"),
        ("validation", [7, 8, 4], "validation has training level 4"),  # `train` is a sample of levels 0 to 4
        ("test", [7, 8, 2000], "test has level 2000 as validation too"),
        ("test", [], "test has no levels"),
        ("train", [0, -1], "train has -1, which is not a level from 0 to 2147483646"),
        ("train", [0, 2**31 - 1], "train has 2147483647, which is not"),
        ("train", [0, 1.0], "train has 1.0, which is not"),
        ("train", [0, True], "train has true, which is not"),
        ("train", ["0\n"], r'train has "0\n", which is not'),
        ("train", [[0]], r"train has [0], which is not"),
    ],
)
def test_levels_without_a_hash_are_checked_one_by_one(
    tmp_path: Path, split: str, levels: list[Any], defect: str
) -> None:
    run, config = RunDirectory(tmp_path), easy("leaper", num_levels=5)
    valid = {"format": 2, "settings": {name: getattr(config, name) for name in level_file._SETTINGS}}
    valid |= {"train": [0, 2], "validation": [2000, 2001], "test": [3000, 3001]}
    run.level_sets.write_text(json.dumps(valid))
    assert read_level_sets(run.level_sets, config).validation == (2000, 2001)
    run.level_sets.write_text(json.dumps(valid | {split: levels}))
    with pytest.raises(ConfigError) as error:
        read_level_sets(run.level_sets, config)
    assert str(error.value).startswith(f"{run.level_sets} was edited or is damaged: {defect}")
    assert str(error.value).endswith("; restore it or start a new run") and "\n" not in str(error.value)


@pytest.mark.parametrize("given", [{"num_levels": 0}, {"num_levels": 3000}, {"start_level": 2, "held_out": "next"}])
def test_every_kind_of_level_sets_can_be_read_again(tmp_path: Path, given: dict[str, Any]) -> None:
    config = easy("leaper", **{"num_levels": 2, **given})
    sets = draw_level_sets(config)[0]
    contents = {"format": 2, "settings": {name: getattr(config, name) for name in level_file._SETTINGS}, **asdict(sets)}
    path = tmp_path / "levels.json"
    path.write_text(json.dumps(contents))
    assert read_level_sets(path, config) == sets


def test_next_levels_are_flagged_and_stored(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    config = resolve("lab", {"env_name": "jumper"}, Machine())
    sets = stored_level_sets(run, config)
    assert (sets.test, sets.validation) == (tuple(range(20, 40)), tuple(range(40, 60)))
    contents = json.loads(run.level_sets.read_text())
    flagged = flags(contents)
    assert contents["audit"]["removed"] == [] and contents["audit"]["judged"] == 40
    assert flagged and set(flagged.values()) == {"ends immediately under every action"}
    assert all(level in sets.of(split) for split, level in flagged)


def test_level_sets_of_the_first_audit_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, config = RunDirectory(tmp_path), easy("leaper", num_levels=2)
    sets = stored_level_sets(run, config)
    contents = json.loads(run.level_sets.read_text()) | {"format": 1}
    del contents["audit"]["flagged"], contents["sha256"]
    run.level_sets.write_text(json.dumps(contents))
    with caplog.at_level(logging.WARNING):
        assert stored_level_sets(run, config) == sets
    assert "was made by another audit (format 1, now 2) and is kept" in caplog.text
    assert flags(contents) == {}


def test_cache_answers_without_playing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = easy("jumper", num_levels=2, held_out_levels=20)
    first = audited_level_sets(config)
    assert [path.name.startswith("audit-jumper-easy-") for path in cache.iterdir()] == [True]
    monkeypatch.setattr(level_file.Audit, "judge", None)
    assert audited_level_sets(config) == first
    monkeypatch.undo()
    monkeypatch.setattr(level_file.Audit, "judge", lambda audit, levels: [None] * len(levels))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    for other in ({"num_levels": 3}, {"start_level": 1}, {"env_name": "ninja"}, {"distribution_mode": "hard"}):
        settings = {"num_levels": 2, "held_out_levels": 20, "env_name": "jumper"} | other
        assert not audited_level_sets(easy(**settings))[1]["audit"]["removed"]  # audited by the false judge


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null", "changed", "other build"])
def test_damaged_cache_is_computed_again(
    damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained = [0, 1]
    AuditCache(COINRUN, trained).add({7: Verdict("same_level", 1), 8: None, 9: Verdict("ends_at_once")})
    assert AuditCache(COINRUN, trained).verdicts[7] == Verdict("same_level", 1)
    (path,) = cache.iterdir()
    text = path.read_text()
    path.write_text(text.replace("same_level", "same_layout") if damage == "changed" else damage)
    if damage == "other build":
        path.write_text(text)
        monkeypatch.setattr(audit_cache, "procgen_build", lambda: "procgen 0.10.8")
    assert AuditCache(COINRUN, trained).verdicts == {}
    assert ("is ignored" in caplog.text) == (damage != "other build")
    AuditCache(COINRUN, trained).add({7: None})
    assert AuditCache(COINRUN, trained).verdicts == {7: None}


def test_cache_is_optional(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.parent.joinpath("heldout").write_text("a file")  # root may write everywhere
    no_directory = AuditCache(COINRUN, [0])
    no_directory.add({7: None})
    assert no_directory.verdicts == {7: None}
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    AuditCache(COINRUN, [0]).add({7: None})


def test_writers_of_one_cache_keep_each_others_verdicts(cache: Path) -> None:
    one, other = AuditCache(COINRUN, [0]), AuditCache(COINRUN, [0])
    one.add({1: None})
    other.add({2: Verdict("ends_at_once")})
    assert AuditCache(COINRUN, [0]).verdicts == {1: None, 2: Verdict("ends_at_once")}


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
