"""Videos of single episodes: each frame the policy saw, with its value and action probabilities below."""

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.games import NUM_ACTIONS, Game
from common.policy_network import PolicyNetwork
from evaluator.levels.level_envs import borrow_envs, level_state, load_states
from evaluator.scores.play import WrongLevelError, decide, episode_uniforms

# Procgen's key combinations in their order: nine directions, six special keys.
ACTION_NAMES = ("↙", "←", "↖", "↓", "·", "↑", "↘", "→", "↗", "D", "A", "W", "S", "Q", "E")
_SHOWN_64 = 256  # 64 pixels are shown as 256, each as a sharp square
_STEPS_PER_FRAME = 2
_MAX_FRAMES = 250  # longer episodes skip more steps, so that a gif stays below about 2 MB
_MILLISECONDS_PER_FRAME = 70  # about 30 steps a second, twice the speed at which people play Procgen
_LAST_FRAME_MILLISECONDS = 1000
_PANEL_HEIGHT = 76  # at a width of 256
_INK, _PAPER, _BAR, _CHOSEN = (30, 30, 30), (250, 250, 250), (150, 170, 190), (213, 94, 0)
_GREYS = ((85, 85, 85), (140, 140, 140), (195, 195, 195))  # the edges of letters
_GAME_COLORS = 120  # more are hardly visible, and long episodes with detailed backgrounds would exceed 2 MB


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: the frame it was made on, uint8 `[H, W, 3]`, and the raw reward that followed."""

    frame: np.ndarray
    action: int
    reward: float
    value: float
    probabilities: np.ndarray  # float32 [15]


@dataclass(frozen=True, slots=True)
class Video:
    """One recorded episode. Procgen never shows the terminal frame."""

    steps: list[Step]
    level: int
    episode: int
    episode_return: float
    completed: bool
    timed_out: bool

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.steps)


def record_episode(
    policy: PolicyNetwork,
    game: Game,
    level: int,
    seed: int,
    episode: int = 0,
    greedy: bool = False,
    resolution: int = 64,
) -> Video:
    """Replays exactly the episode that `scores.play.play` plays for the same seed, level and episode.

    `resolution` 512 records Procgen's high-resolution image; the policy sees 64 x 64 either way.

    Raises:
        WrongLevelError: the environment played a different level.
    """
    is_sharp = resolution == 512
    uniforms = episode_uniforms(seed, level, episode, game.time_limit)
    steps: list[Step] = []
    with borrow_envs(game, num_envs=1, render=is_sharp) as envs:
        load_states(envs, [level_state(game, level)], num_envs=1)
        has_ended = False
        while not has_ended:
            seen = envs.observe()[1].copy()
            shown = envs.infos()[0]["rgb"].copy() if is_sharp else seen[0]
            actions, values, probabilities = decide(policy, seen, uniforms[len(steps) : len(steps) + 1], greedy)
            envs.act(actions)
            rewards, _, first = envs.observe()
            has_ended = bool(first[0])
            steps.append(Step(shown, int(actions[0]), float(rewards[0]), float(values[0]), probabilities[0]))
        info = envs.infos()[0]
    if info["prev_level_seed"] != level:
        raise WrongLevelError(f"the video of level {level} shows level {info['prev_level_seed']}")
    completed = bool(info["prev_level_complete"])
    timed_out = len(steps) >= game.time_limit and not completed
    return Video(steps, level, episode, sum(step.reward for step in steps), completed, timed_out)


def encode_gif(video: Video) -> bytes:
    """A looping gif of every second step (of fewer steps in long episodes) that holds the last frame for a second.

    Below each frame: step, reward, value, and the probabilities of the 15 actions with the chosen one highlighted.
    """
    stride = max(_STEPS_PER_FRAME, -(-video.length // _MAX_FRAMES))
    shown = [*range(0, video.length - 1, stride), video.length - 1]
    rewards = np.cumsum([step.reward for step in video.steps])
    palette = _palette([video.steps[index].frame for index in shown])
    images = [
        _draw_step(video, index, float(rewards[index])).quantize(palette=palette, dither=Image.Dither.NONE)
        for index in shown
    ]
    buffer = io.BytesIO()
    images[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[_MILLISECONDS_PER_FRAME] * (len(images) - 1) + [_LAST_FRAME_MILLISECONDS],
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _palette(frames: list[np.ndarray]) -> Image.Image:
    """One palette for the whole video: static parts keep their exact colors, so that the gif stores only changes.

    The panel's colors are included, because a palette of the game's colors alone would distort the highlight.
    """
    thinning = frames[0].shape[0] // 64
    game = Image.fromarray(np.concatenate([frame[::thinning, ::thinning] for frame in frames])).quantize(_GAME_COLORS)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*sum((_INK, _PAPER, _BAR, _CHOSEN, *_GREYS), ()), *(game.getpalette() or [])])
    return palette


def _draw_step(video: Video, index: int, reward_so_far: float) -> Image.Image:
    step = video.steps[index]
    size = max(_SHOWN_64, step.frame.shape[0])
    unit = size // _SHOWN_64
    image = Image.new("RGB", (size, size + _PANEL_HEIGHT * unit), _PAPER)
    image.paste(Image.fromarray(step.frame).resize((size, size), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(image)
    text = f"step {index + 1}/{video.length}  reward {reward_so_far:g} ({step.reward:+g})  value {step.value:.2f}"
    draw.text((4 * unit, size + 2 * unit), text, fill=_INK, font=_font(10 * unit))
    width, floor, height = size / NUM_ACTIONS, size + 62 * unit, 42 * unit
    for action, probability in enumerate(step.probabilities):
        is_chosen = action == step.action
        left = action * width
        top = floor - max(unit, round(float(probability) * height))
        draw.rectangle((left + 2 * unit, top, left + width - 2 * unit, floor), fill=_CHOSEN if is_chosen else _BAR)
        draw.text(
            (left + width / 2, floor + 8 * unit),
            ACTION_NAMES[action],
            fill=_CHOSEN if is_chosen else _INK,
            font=_font(9 * unit),
            anchor="mm",
        )
    return image


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib includes: Pillow's default font has no arrows."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)
