import functools

import numpy as np
import pytest
import torch

from common import procgen_env
from common.games import GAMES, Game
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs
from common.storage.checkpoints import Checkpoint
from evaluator.levels import level_envs
from evaluator.levels.level_sets import Split
from evaluator.scores import play as scoring
from evaluator.scores.play import WrongLevelError, choose_actions, episode_uniforms, load_policy, play
from evaluator.scores.statistics import Episode

SEED = 11
LEAPER = Game("leaper", "easy")
SLOTS: list[tuple[Split, int]] = [("train", 0), ("train", 1), ("validation", 2), ("validation", 2_000_000_011)]
Actions = dict[tuple[int, int], list[int]]


@pytest.fixture(scope="module")
def policy(checkpoint: Checkpoint) -> PolicyNetwork:
    return load_policy(checkpoint)


def play_recorded(
    policy: PolicyNetwork,
    slots: list[tuple[Split, int]],
    episodes: int,
    num_envs: int | None = None,
    greedy: bool = False,
) -> tuple[list[Episode], Actions]:
    actions: Actions = {}

    def record(level: int, episode: int, frame: np.ndarray, action: int) -> None:
        actions.setdefault((level, episode), []).append(action)

    played = play(policy, LEAPER, slots, episodes, SEED, greedy, record, num_envs)
    return played, actions


@pytest.fixture(scope="module")
def batched(policy: PolicyNetwork) -> tuple[list[Episode], Actions]:
    """Two episodes on each of the four levels, in one batch."""
    return play_recorded(policy, SLOTS, 2)


def play_one_by_one(policy: PolicyNetwork, levels: list[int], episodes: int) -> tuple[list[tuple], Actions]:
    """The slow reference: one environment with one level, one frame at a time, arithmetic in numpy's float64."""
    results = []
    actions: Actions = {}
    for level in levels:
        env = make_envs(1, LEAPER, start_level=level, num_levels=1, rand_seed=123)
        for episode in range(episodes):
            uniforms = np.random.Generator(np.random.Philox(key=[SEED, level * 2**32 + episode]))
            episode_return, length, done = 0.0, 0, False
            taken = actions.setdefault((level, episode), [])
            while not done:
                frame = env.observe()[1]
                with torch.inference_mode():
                    logits = policy(torch.from_numpy(frame))[0][0].double().numpy()
                probabilities = np.exp(logits - logits.max())
                probabilities /= probabilities.sum()
                u = uniforms.random(dtype=np.float32)
                taken.append(int(np.searchsorted(np.cumsum(probabilities), u, side="right")))
                env.act(np.array(taken[-1:], np.int32))
                reward, _, first = env.observe()
                episode_return, length, done = episode_return + float(reward[0]), length + 1, bool(first[0])
            results.append((level, episode, episode_return, length, bool(env.infos()[0]["prev_level_complete"])))
        env.close()
    return results, actions


def test_batched_scoring_equals_playing_one_environment_at_a_time(
    policy: PolicyNetwork, batched: tuple[list[Episode], Actions]
) -> None:
    results, actions = play_one_by_one(policy, [level for _, level in SLOTS], 2)
    assert [(e.level, e.episode, e.episode_return, e.length, e.completed) for e in batched[0]] == results
    assert batched[1] == actions


def test_every_level_plays_exactly_its_first_episodes_in_order(batched: tuple[list[Episode], Actions]) -> None:
    assert [(e.split, e.level, e.episode) for e in batched[0]] == [(*slot, k) for slot in SLOTS for k in (0, 1)]


def test_every_episode_is_played_on_its_own_level(batched: tuple[list[Episode], Actions]) -> None:
    assert [e.level_seed for e in batched[0]] == [e.level for e in batched[0]]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_waiting_slots_that_take_places_change_nothing(
    num_envs: int, policy: PolicyNetwork, batched: tuple[list[Episode], Actions]
) -> None:
    assert len({e.length for e in batched[0]}) > 1  # slots end at different times
    assert play_recorded(policy, SLOTS, 2, num_envs) == batched


def test_episodes_do_not_depend_on_the_other_slots(
    policy: PolicyNetwork, batched: tuple[list[Episode], Actions]
) -> None:
    alone, actions = play_recorded(policy, SLOTS[2:3], 1)
    assert alone == [e for e in batched[0] if e.level == 2 and e.episode == 0]
    assert actions[2, 0] == batched[1][2, 0]


@pytest.mark.parametrize("env_name", sorted(GAMES))
def test_episodes_of_a_level_have_the_same_start_whatever_came_before(
    env_name: str, policy: PolicyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same actions in every episode, all frames and returns are the same.

    The first action throws in Dodgeball, in the direction of the last move, and goes up elsewhere: on Miner's level 5
    to the exit, which may be open.
    """
    first = 9 if env_name == "dodgeball" else 5

    def uniforms(seed: int, level: int, episode: int, count: int) -> np.ndarray:
        actions = np.random.default_rng(level).integers(0, 15, count)
        return (np.concatenate([[first], actions[1:]]).astype(np.float32) + 0.5) / 15

    monkeypatch.setattr(scoring, "episode_uniforms", uniforms)
    monkeypatch.setattr(scoring, "choose_actions", lambda policy, frames, uniforms, _: (15 * uniforms).astype(np.int32))
    seen: dict[int, dict[int, list[bytes]]] = {}

    def record(level: int, episode: int, frame: np.ndarray, action: int) -> None:
        seen.setdefault(level, {}).setdefault(episode, []).append(frame.tobytes())

    slots: list[tuple[Split, int]] = [("train", level) for level in (5, 0, 7)]
    played = play(policy, Game(env_name, "easy"), slots, 3, SEED, on_step=record, num_envs=2)
    for level, episodes in seen.items():
        assert episodes[1] == episodes[0] and episodes[2] == episodes[0]
        assert len({(e.episode_return, e.length, e.completed) for e in played if e.level == level}) == 1
    assert env_name != "miner" or played[0].length > 1  # the exit is closed


def test_environment_on_a_different_level_is_an_error(policy: PolicyNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "level_state", lambda game, level: level_envs.level_state(game, 4))
    with pytest.raises(WrongLevelError, match="slot of level 3 played level 4"):
        play(policy, LEAPER, [("train", 3)], 1, SEED)


def test_idle_policy_times_out(policy: PolicyNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "choose_actions", lambda policy, frames, *_: np.full(len(frames), 4, np.int32))
    played = play(policy, LEAPER, [("train", 0)], 1, SEED)
    assert [(e.length, e.completed, e.timed_out) for e in played] == [(500, False, True)]


def test_greedy_takes_the_most_probable_action_and_sampling_draws_one(policy: PolicyNetwork) -> None:
    frames = np.random.RandomState(0).randint(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    with torch.inference_mode():
        probabilities = policy(torch.from_numpy(frames))[0].softmax(1)
    nearly_one = np.full(3, np.nextafter(np.float32(1), np.float32(0)))
    assert choose_actions(policy, frames, nearly_one, greedy=True).tolist() == probabilities.argmax(1).tolist()
    assert choose_actions(policy, frames, np.zeros(3, np.float32), greedy=False).tolist() == [0, 0, 0]
    assert choose_actions(policy, frames, nearly_one, greedy=False).tolist() == [14, 14, 14]


def test_actions_do_not_depend_on_the_batch_size(policy: PolicyNetwork) -> None:
    frames = np.random.RandomState(1).randint(0, 256, (37, 64, 64, 3)).astype(np.uint8)
    uniforms = np.random.RandomState(2).random_sample(37).astype(np.float32)
    together = choose_actions(policy, frames, uniforms, greedy=False)
    one_by_one = [choose_actions(policy, frames[i : i + 1], uniforms[i : i + 1], greedy=False)[0] for i in range(37)]
    assert together.tolist() == one_by_one


def test_logits_of_a_frame_are_the_same_bits_in_every_batch(policy: PolicyNetwork) -> None:
    frames = np.random.RandomState(1).randint(0, 256, (32, 64, 64, 3)).astype(np.uint8)
    with torch.inference_mode():
        together = scoring._forward(policy, frames)[0]
        for count in range(1, 32):
            assert torch.equal(scoring._forward(policy, frames[:count])[0], together[:count]), count


def test_every_episode_has_its_own_fixed_random_stream() -> None:
    first = episode_uniforms(0, 3, 0, 1000)
    assert first.dtype == np.float32 and first.min() >= 0 and first.max() < 1
    assert np.array_equal(first[:10], episode_uniforms(0, 3, 0, 10))
    others = [episode_uniforms(*key, 1000) for key in ((0, 3, 1), (0, 4, 0), (1, 3, 0), (3, 0, 0))]
    assert all(abs(np.corrcoef(first, other)[0, 1]) < 0.12 for other in others)


def test_threads_of_torch_and_procgen_change_nothing(
    policy: PolicyNetwork, batched: tuple[list[Episode], Actions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(level_envs, "_idle", {})
    monkeypatch.setattr(procgen_env, "make_envs", functools.partial(make_envs, num_threads=2))
    torch.set_num_threads(2)
    assert play_recorded(policy, SLOTS, 2) == batched
    assert torch.get_num_threads() == 2
