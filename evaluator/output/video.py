"""Films of single episodes: what the policy saw, and below it what it thought."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from common.games import NUM_ACTIONS, Game
from common.policy_network import PolicyNetwork
from common.procgen_env import make_envs, make_level_bound_envs, observe
from evaluator.scores.play import WrongLevelError, decide, episode_uniforms

# As Procgen names its combinations of keys: nine directions, six special keys.
ACTION_NAMES = ("↙", "←", "↖", "↓", "·", "↑", "↘", "→", "↗", "D", "A", "W", "S", "Q", "E")
RESOLUTIONS = (64, 512)
_SHOWN_64 = 256  # 64 pixels become 256, each a crisp square
_STEPS_PER_FRAME = 2
_MAX_FRAMES = 250  # longer episodes are shown in larger steps: about 2 MB at most
_MILLISECONDS_PER_FRAME = 70  # about 30 steps a second, twice the speed at which people play Procgen
_LAST_FRAME_MILLISECONDS = 1000
_PANEL_HEIGHT = 76  # at a width of 256
_INK, _PAPER, _BAR, _CHOSEN = (30, 30, 30), (250, 250, 250), (150, 170, 190), (213, 94, 0)
_GREYS = ((85, 85, 85), (140, 140, 140), (195, 195, 195))  # the edges of letters
_GAME_COLORS = 120  # more would hardly be seen, and long films of rich backgrounds would pass 2 MB


@dataclass(frozen=True, slots=True)
class Step:
    """One decision: the frame it was made on, uint8 `[H, W, 3]`, and the raw reward that it brought."""

    frame: np.ndarray
    action: int
    reward: float
    value: float
    probabilities: np.ndarray  # float32 [15]


@dataclass(frozen=True, slots=True)
class Film:
    """One episode; the terminal frame is never shown by Procgen."""

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


def film_episode(
    policy: PolicyNetwork,
    game: Game,
    level: int,
    seed: int,
    episode: int = 0,
    greedy: bool = False,
    resolution: int = 64,
) -> Film:
    """Plays again, alone, exactly the episode that `scoring.play` plays for the same seed, level and episode.

    `resolution` 512 shows Procgen's sharp picture; the policy sees 64 x 64 either way.

    Raises:
        WrongLevelError: the environment played another level.
    """
    sharp = resolution == 512
    if sharp:
        envs = make_envs(1, game, level, 1, rand_seed=0, render=True)
    else:
        envs = make_level_bound_envs(game, [level])
    uniforms = episode_uniforms(seed, level, episode, game.time_limit)
    steps: list[Step] = []
    try:
        has_ended = False
        while not has_ended:
            seen = observe(envs)[1].copy()
            shown = envs.get_info()[0]["rgb"].copy() if sharp else seen[0]
            actions, values, probabilities = decide(policy, seen, uniforms[len(steps) : len(steps) + 1], greedy)
            envs.act(actions)
            rewards, _, first = observe(envs)
            has_ended = bool(first[0])
            steps.append(Step(shown, int(actions[0]), float(rewards[0]), float(values[0]), probabilities[0]))
        info = envs.get_info()[0]
    finally:
        envs.close()
    if info["prev_level_seed"] != level:
        raise WrongLevelError(f"the film of level {level} shows level {info['prev_level_seed']}")
    completed = bool(info["prev_level_complete"])
    timed_out = len(steps) >= game.time_limit and not completed
    return Film(steps, level, episode, sum(step.reward for step in steps), completed, timed_out)


def encode_gif(film: Film) -> bytes:
    """A looping gif: every second step (longer episodes in larger ones), and the last one held for a second.

    Below each frame: step, reward, value, and the probabilities of the 15 actions with the chosen one marked.
    """
    stride = max(_STEPS_PER_FRAME, -(-film.length // _MAX_FRAMES))
    shown = [*range(0, film.length - 1, stride), film.length - 1]
    rewards = np.cumsum([step.reward for step in film.steps])
    palette = _palette([film.steps[index].frame for index in shown])
    pictures = [
        _draw_step(film, index, float(rewards[index])).quantize(palette=palette, dither=Image.Dither.NONE)
        for index in shown
    ]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[_MILLISECONDS_PER_FRAME] * (len(pictures) - 1) + [_LAST_FRAME_MILLISECONDS],
        loop=0,
        optimize=False,
    )
    return buffer.getvalue()


def _palette(frames: Sequence[np.ndarray]) -> Image.Image:
    """One palette for the whole film: what stands still keeps its colour exactly, so that the gif need not repeat it.

    The panel's colours are part of it: a palette of the game's alone would turn the mark brown.
    """
    thinning = frames[0].shape[0] // 64
    game = Image.fromarray(np.concatenate([frame[::thinning, ::thinning] for frame in frames])).quantize(_GAME_COLORS)
    palette = Image.new("P", (1, 1))
    palette.putpalette([*sum((_INK, _PAPER, _BAR, _CHOSEN, *_GREYS), ()), *(game.getpalette() or [])])
    return palette


def _draw_step(film: Film, index: int, reward_so_far: float) -> Image.Image:
    step = film.steps[index]
    size = max(_SHOWN_64, step.frame.shape[0])
    unit = size // _SHOWN_64
    picture = Image.new("RGB", (size, size + _PANEL_HEIGHT * unit), _PAPER)
    picture.paste(Image.fromarray(step.frame).resize((size, size), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(picture)
    text, small = ImageFont.load_default(size=11 * unit), ImageFont.load_default(size=9 * unit)
    words = f"step {index + 1}/{film.length}   reward {reward_so_far:g} ({step.reward:+g})   value {step.value:.2f}"
    draw.text((4 * unit, size + 2 * unit), words, fill=_INK, font=text)
    width, floor, height = size / NUM_ACTIONS, size + 62 * unit, 42 * unit
    for action, probability in enumerate(step.probabilities):
        color = _CHOSEN if action == step.action else _BAR
        left = action * width
        top = floor - max(unit, round(float(probability) * height))
        draw.rectangle((left + 2 * unit, top, left + width - 2 * unit, floor), fill=color)
        _draw_name(
            draw, action, left + width / 2, floor + 8 * unit, unit, color if action == step.action else _INK, small
        )
    return picture


def _draw_name(
    draw: ImageDraw.ImageDraw, action: int, x: float, y: float, unit: int, color: tuple[int, int, int], font: object
) -> None:
    """Directions as little arrows: the font that Pillow brings has none."""
    if action >= 9:
        draw.text((x, y), ACTION_NAMES[action], fill=color, font=font, anchor="mm")  # type: ignore[arg-type]
        return
    dx, dy = action // 3 - 1, 1 - action % 3  # the picture's y axis points down
    if dx == dy == 0:
        draw.ellipse((x - unit, y - unit, x + unit, y + unit), fill=color)
        return
    reach = 4 * unit / max(1.0, (dx * dx + dy * dy) ** 0.5)
    tip, tail = (x + dx * reach, y + dy * reach), (x - dx * reach, y - dy * reach)
    draw.line((*tail, *tip), fill=color, width=unit)
    for side in _arrow_head(dx, dy, 2.5 * unit):
        draw.line((*tip, tip[0] + side[0], tip[1] + side[1]), fill=color, width=unit)


def _arrow_head(dx: int, dy: int, length: float) -> Sequence[tuple[float, float]]:
    """The two strokes of an arrow's head, backwards from its tip."""
    angle = np.arctan2(dy, dx)
    turns = (angle + 0.8 * np.pi, angle - 0.8 * np.pi)
    return [(float(length * np.cos(turn)), float(length * np.sin(turn))) for turn in turns]
