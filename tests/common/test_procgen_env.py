"""What the code relies on in real Procgen: where an episode ends, bound levels, saved states, silence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.games import GAMES, Game
from common.procgen_env import envs_from_states, level_state, make_envs

PROJECT = Path(__file__).resolve().parents[2]
# Random play ends an episode of starpilot every hundred steps or so; its pictures scroll, so no two are the same.
GAME = Game("starpilot", "easy")


def random_actions(steps, num_envs, seed=0):
    return np.random.default_rng(seed).integers(0, 15, (steps, num_envs), dtype=np.int32)


def play(envs, actions):
    """Rewards, frames, first and info of every step."""
    rewards, frames, firsts, infos = [], [], [], []
    for action in actions:
        envs.act(action)
        reward, frame, first = envs.observe()
        rewards.append(reward.copy())
        frames.append(frame.copy())
        firsts.append(first.copy())
        infos.append(envs.infos())
    return np.array(rewards), np.array(frames), np.array(firsts), infos


@pytest.fixture
def opened():
    """Registers environments, which are closed after the test."""
    envs = []
    yield lambda env: envs.append(env) or env
    for env in envs:
        env.close()


def test_observe_returns_the_shapes_and_types_of_rollouts(opened):
    envs = opened(make_envs(3, GAME, 0, 5, rand_seed=1))
    rewards, frames, first = envs.observe()
    assert (rewards.dtype, rewards.shape) == (np.float32, (3,))
    assert (frames.dtype, frames.shape) == (np.uint8, (3, 64, 64, 3))
    assert (first.dtype, first.shape) == (np.bool_, (3,))
    assert first.all() and not rewards.any()
    assert frames.std() > 5  # a picture


def test_frame_at_first_is_the_first_frame_of_the_next_episode(opened):
    level = 3
    fresh = opened(make_envs(1, GAME, level, 1, rand_seed=99))
    _, first_frame, _ = fresh.observe()
    first_frame = first_frame.copy()

    envs = opened(make_envs(1, GAME, level, 1, rand_seed=1))
    actions = random_actions(1000, 1)
    _, frames, firsts, infos = play(envs, actions)
    ends = np.flatnonzero(firsts[:, 0])
    assert len(ends) >= 2
    for t in ends:
        np.testing.assert_array_equal(frames[t], first_frame)
        assert not np.array_equal(frames[t - 1], first_frame)
        assert infos[t][0]["prev_level_seed"] == infos[t][0]["level_seed"] == level
    assert not any(np.array_equal(frames[t], first_frame) for t in range(len(frames)) if t not in ends)


def test_reward_of_the_last_action_arrives_with_first(opened):
    # leaper pays 10 for reaching the other side, which ends the episode, and nothing else.
    envs = opened(make_envs(8, Game("leaper", "easy"), 0, 20, rand_seed=1))
    rewards, _, firsts, infos = play(envs, random_actions(500, 8))
    paid = rewards > 0
    assert 0 < paid.sum() < firsts.sum()  # some episodes are won, others lost
    assert not (paid & ~firsts).any()
    completed = np.array([[info["prev_level_complete"] == 1 for info in row] for row in infos])
    np.testing.assert_array_equal(paid, completed & firsts)


def test_order_of_levels_depends_only_on_seed_and_slot(opened):
    def levels(rand_seed, num_envs, num_threads=0):
        envs = opened(make_envs(num_envs, GAME, 100, 50, rand_seed, num_threads))
        _, _, firsts, infos = play(envs, random_actions(200, 8)[:, :num_envs])
        started = [[info[i]["level_seed"] for t, info in enumerate(infos) if t == 0 or firsts[t, i]] for i in range(4)]
        assert all(100 <= level < 150 for slot in started for level in slot)
        return started

    assert levels(1, 4) == levels(1, 8) == levels(1, 4, num_threads=2)
    assert levels(1, 4) != levels(2, 4)


def test_level_bound_slots_replay_their_level_after_every_restart(opened):
    levels = [7, 0, 123456, 7]
    envs = opened(envs_from_states(GAME, [level_state(GAME, level) for level in levels]))
    _, start, _ = envs.observe()
    start = start.copy()
    for slot, level in enumerate(levels):
        single = opened(make_envs(1, GAME, level, 1, rand_seed=5))
        np.testing.assert_array_equal(start[slot], single.observe()[1][0])
    _, frames, firsts, infos = play(envs, random_actions(600, 4))
    assert (firsts.sum(axis=0) >= 2).all()
    for t, slot in np.argwhere(firsts):
        assert infos[t][slot]["level_seed"] == infos[t][slot]["prev_level_seed"] == levels[slot]
        np.testing.assert_array_equal(frames[t, slot], start[slot])
    assert all([info[slot]["level_seed"] for slot in range(4)] == levels for info in infos)


def episode_after(opened, game, level, history):
    """Rewards, frames and first of 150 random steps on `level`, after `history`: arrays of actions, one per episode.

    An episode ends after its actions if it has not ended before. Up to the first end of the 150 steps.
    """
    envs = opened(make_envs(1, game, level, 1, rand_seed=3))
    envs.observe()
    for actions in history:
        for action in [*actions, -1]:
            envs.act(np.array([action], np.int32))
            if envs.observe()[2][0]:
                break
    return until_first_end(envs)


def until_first_end(envs):
    rewards, frames, firsts, _ = play(envs, random_actions(150, 1, seed=5))
    steps = int(firsts[:, 0].argmax()) + 1 if firsts.any() else len(firsts)
    return rewards[:steps], frames[:steps], firsts[:steps]


@pytest.mark.parametrize("env_name", sorted(set(GAMES) - {"miner", "dodgeball"}))
@pytest.mark.parametrize("mode", ["easy", "hard"])
def test_new_restarted_and_loaded_environments_play_the_same(opened, env_name, mode):
    game, level = Game(env_name, mode), 4
    loaded = until_first_end(opened(envs_from_states(game, [level_state(game, level)])))
    for history in ([], [random_actions(100, 1, seed)[:, 0] for seed in range(3)]):
        for one, other in zip(episode_after(opened, game, level, history), loaded, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("mode", "level"), [("easy", 5), ("hard", 15)])
def test_first_step_finds_the_exit_of_miner_open_only_in_a_new_environment(opened, mode, level):
    """On these levels the exit is above the player."""
    game, up, stay = Game("miner", mode), 5, 4

    def reward_of_going_up(envs):
        envs.act(np.array([up], np.int32))
        return float(envs.observe()[0][0])

    new = opened(make_envs(1, game, level, 1, rand_seed=3))
    assert reward_of_going_up(new) == 10
    restarted = opened(make_envs(1, game, level, 1, rand_seed=3))
    for action in [stay] * 10 + [-1]:
        restarted.act(np.array([action], np.int32))
    assert restarted.observe()[2][0] and reward_of_going_up(restarted) == 0
    assert reward_of_going_up(opened(envs_from_states(game, [level_state(game, level)]))) == 0


@pytest.mark.parametrize("env_name", ["miner", "dodgeball"])
def test_loading_a_level_forgets_the_episode_before(opened, env_name):
    game, levels = Game(env_name, "easy"), [5, 0, 7]
    states = [level_state(game, level) for level in levels]
    actions = random_actions(40, 3, seed=8)
    actions[0] = 9  # throws, in Dodgeball
    expected = play(opened(envs_from_states(game, states)), actions)
    envs = opened(envs_from_states(game, states))
    _, _, _, infos = play(envs, random_actions(300, 3, seed=6))
    others = [info["level_seed"] for info in infos[-1]]
    for index, state in enumerate(states):
        envs.set_state_of(index, state)
        envs.observe()
    assert others == levels
    for one, other in zip(play(envs, actions)[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)


def test_batch_slot_plays_the_same_as_a_single_environment(opened):
    levels = [7, 0, 11]
    actions = random_actions(300, 3)
    together = play(opened(envs_from_states(GAME, [level_state(GAME, level) for level in levels])), actions)
    for slot, level in enumerate(levels):
        alone = play(opened(make_envs(1, GAME, level, 1, rand_seed=5)), actions[:, [slot]])
        for one, other in zip(together[:3], alone[:3], strict=True):
            np.testing.assert_array_equal(one[:, slot], other[:, 0])


def test_environments_continue_exactly_from_saved_states(opened):
    envs = opened(make_envs(3, GAME, 50, 10, rand_seed=4))
    play(envs, random_actions(37, 3, seed=1))
    states = envs.get_state()
    frame = envs.observe()[1].copy()
    actions = random_actions(300, 3, seed=2)
    expected = play(envs, actions)
    copy = opened(envs_from_states(GAME, states, num_threads=1))
    np.testing.assert_array_equal(copy.observe()[1], frame)
    continued = play(copy, actions)
    for one, other in zip(continued[:3], expected[:3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert expected[2].any(axis=0).all()  # past an episode's end, so the level generator continues too
    levels = [[[info[i]["level_seed"] for i in range(3)] for info in played[3]] for played in (continued, expected)]
    assert levels[0] == levels[1]


def test_making_environments_prints_nothing():
    program = (
        "from common.games import Game\n"
        "from common.procgen_env import make_envs\n"
        "envs = make_envs(1, Game('coinrun', 'easy'), 0, 1, rand_seed=0)\n"
        "envs.observe(); envs.close()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=180, cwd=PROJECT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
