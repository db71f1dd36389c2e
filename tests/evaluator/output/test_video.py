import copy
import functools
import io
from collections import defaultdict

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from common.games import Game
from common.policy_network import PolicyNetwork
from common.storage.checkpoints import Checkpoint
from evaluator.output import video as recording
from evaluator.output.video import _CHOSEN, Step, Video, encode_gif, record_episode
from evaluator.scores import play as scoring
from evaluator.scores.play import episode_uniforms, load_policy, play

LEAPER = Game("leaper", "easy")
SEED, LEVEL = 11, 2


@pytest.fixture(scope="module")
def policy(checkpoint: Checkpoint) -> PolicyNetwork:
    return load_policy(checkpoint)


@functools.cache
def played(policy: PolicyNetwork, greedy: bool) -> dict[int, list[tuple[np.ndarray, int]]]:
    """Frames and actions of two scored episodes that share the batch with another level."""
    steps = defaultdict(list)

    def record(level: int, episode: int, frame: np.ndarray, action: int) -> None:
        if level == LEVEL:
            steps[episode].append((frame.copy(), action))

    play(policy, LEAPER, [("train", 0), ("test", LEVEL)], 2, SEED, greedy, record)
    return steps


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("episode", [0, 1])
def test_video_shows_exactly_the_scored_episode(policy: PolicyNetwork, greedy: bool, episode: int) -> None:
    scored = played(policy, greedy)[episode]
    video = record_episode(policy, LEAPER, LEVEL, SEED, episode, greedy)
    assert [step.action for step in video.steps] == [action for _, action in scored]
    assert all((step.frame == frame).all() for step, (frame, _) in zip(video.steps, scored, strict=True))
    assert all(step.probabilities.sum() == pytest.approx(1, abs=1e-5) for step in video.steps)
    if greedy:
        assert all(step.action == step.probabilities.argmax() for step in video.steps)


@pytest.mark.parametrize(("env_name", "level", "first"), [("miner", 5, 5), ("dodgeball", 0, 9)])
def test_video_of_a_later_episode_is_exact_where_a_restart_carries_something_over(
    env_name: str, level: int, first: int, policy: PolicyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every episode begins with an action that shows it: up, to Miner's exit; a throw in Dodgeball."""

    def uniforms(seed: int, level: int, episode: int, count: int) -> np.ndarray:
        drawn = episode_uniforms(seed, level, episode, count)
        drawn[0] = (first + 0.5) / 15
        return drawn

    def decide(policy: PolicyNetwork, frames: np.ndarray, uniforms: np.ndarray, greedy: bool) -> tuple[np.ndarray, ...]:
        return (15 * uniforms).astype(np.int32), np.zeros(len(frames)), np.full((len(frames), 15), 1 / 15)

    for module in (scoring, recording):
        monkeypatch.setattr(module, "episode_uniforms", uniforms)
        monkeypatch.setattr(module, "decide", decide)
    game = Game(env_name, "easy")
    frames: dict[int, list[bytes]] = defaultdict(list)

    def record(level: int, episode: int, frame: np.ndarray, action: int) -> None:
        frames[episode].append(frame.tobytes())

    for scored in play(policy, game, [("test", level)], 4, SEED, on_step=record):
        video = record_episode(policy, game, level, SEED, scored.episode)
        assert [step.frame.tobytes() for step in video.steps] == frames[scored.episode]
        assert (video.episode_return, video.length) == (scored.episode_return, scored.length)


def test_sharp_video_shows_the_same_episode(policy: PolicyNetwork) -> None:
    small, sharp = (record_episode(policy, LEAPER, LEVEL, SEED, resolution=size) for size in (64, 512))
    assert [step.action for step in sharp.steps] == [step.action for step in small.steps]
    assert (sharp.episode_return, sharp.completed) == (small.episode_return, small.completed)
    assert sharp.steps[0].frame.shape == (512, 512, 3)
    # The same scene: shrunk to 8 x 8, the two images of a step agree, those of different steps less so.
    coarse = [np.asarray(Image.fromarray(video.steps[5].frame).resize((8, 8))).astype(int) for video in (small, sharp)]
    assert np.abs(coarse[0] - coarse[1]).mean() < 12


@torch.inference_mode()
def test_idle_policy_times_out(policy: PolicyNetwork) -> None:
    idle = copy.deepcopy(policy)
    idle.policy_head.bias[4] = 1000.0
    maze = Game("maze", "easy")
    video = record_episode(idle, maze, LEVEL, SEED)
    assert video.timed_out and not video.completed
    assert video.length == maze.time_limit


def made_up(length: int, size: int = 64) -> Video:
    steps = [
        Step(np.full((size, size, 3), (i * 3) % 256, np.uint8), i % 15, 0.0, 1.0, np.full(15, 1 / 15, np.float32))
        for i in range(length)
    ]
    return Video(steps, 3, 0, 0.0, completed=False, timed_out=False)


def test_gif_has_every_second_step_and_holds_the_last() -> None:
    data = encode_gif(made_up(21))
    frames = iio.imread(data, extension=".gif", index=None)
    assert len(frames) == 11
    assert frames.shape[1:3] == (256 + 76, 256)
    with Image.open(io.BytesIO(data)) as gif:
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
    assert durations == [70] * 10 + [1000]


def test_chosen_action_is_highlighted_in_its_column() -> None:
    frames = iio.imread(encode_gif(made_up(3)), extension=".gif", index=None)
    for step, frame in zip((0, 2), frames, strict=True):
        marked = np.abs(frame[256:, :, :3].astype(int) - _CHOSEN).sum(axis=2) < 30
        columns = np.flatnonzero(marked.any(axis=0))
        assert step * 17 <= columns.min() and columns.max() <= (step + 1) * 17.1


def test_gif_of_a_long_episode_has_few_frames() -> None:
    assert 200 <= len(iio.imread(encode_gif(made_up(1000)), extension=".gif", index=None)) <= 252


def test_sharp_frame_keeps_its_size() -> None:
    frames = iio.imread(encode_gif(made_up(3, 512)), extension=".gif", index=None)
    assert frames.shape[1:3] == (512 + 152, 512)
