"""How a level looks and plays: what the audit compares.

Level and actions determine every reward and the end of an episode. Two levels behave the same if the same action
sequences give the same rewards and ends at the same steps.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from common.games import NUM_ACTIONS, OBSERVATION_SHAPE, Game
from common.procgen_env import drawn_with, saved_layout
from evaluator.levels.level_envs import FEW_ENVS, NUM_ENVS, batch_size, borrow_envs, level_state, load_states

# No images and no background: a third faster, and levels play the same.
FAST = {"use_monochrome_assets": True, "use_backgrounds": False}
# Besides no themes, so that levels with the same layout look the same. Not for playing: an environment remembers the
# sizes of images without themes, and objects that appear later would have another size, also in levels loaded later.
PLAIN = FAST | {"restrict_themes": True}

_RIGHT, _UP_RIGHT = 7, 8
_MAX_REPEATS = 4  # steps
_EVENT = struct.Struct("<2qf?")  # episode, step, reward, end


def batches(levels: Sequence[int]) -> Iterator[Sequence[int]]:
    """`levels` in parts of at most `NUM_ENVS`."""
    return (levels[start : start + NUM_ENVS] for start in range(0, len(levels), NUM_ENVS))


def first_frames(game: Game, levels: Sequence[int], **drawing: bool) -> np.ndarray:
    """The first frame of at most `NUM_ENVS` levels with these drawing options, uint8 `[levels, 64, 64, 3]`."""
    if not levels:
        return np.empty((0, *OBSERVATION_SHAPE), np.uint8)
    num_envs = batch_size(len(levels))
    with borrow_envs(game, num_envs) as envs:
        load_states(envs, [drawn_with(level_state(game, level), game, **drawing) for level in levels], num_envs)
        return envs.observe()[1][: len(levels)].copy()


def layouts(game: Game, levels: Sequence[int]) -> list[bytes]:
    """For each level a digest of its layout: the saved grid and objects, and the whole level drawn as in `PLAIN`."""
    digests = []
    for batch in batches(levels):
        for level, frame in zip(batch, first_frames(game, batch, center_agent=False, **PLAIN), strict=True):
            grid, objects = saved_layout(level_state(game, level), game)
            parts = grid, *sorted(objects), frame.tobytes()
            digests.append(hashlib.blake2b(b"".join(parts), digest_size=16).digest())
    return digests


def action_sequences(game: Game, biases: Sequence[float], seed: int) -> np.ndarray:
    """One sequence of int32 actions per bias, each as long as the game's time limit: `[sequences, steps]`.

    A bias is the probability of choosing right or up-right instead of any action. Each choice is repeated 1 to 4 times.
    """
    generator = np.random.RandomState(seed)  # its stream never changes
    sequences = np.empty((len(biases), game.time_limit), np.int32)
    for sequence, bias in zip(sequences, biases, strict=True):
        step = 0
        while step < game.time_limit:
            is_right = generator.random_sample() < bias
            action = (_RIGHT, _UP_RIGHT)[generator.randint(2)] if is_right else generator.randint(NUM_ACTIONS)
            repeats = generator.randint(1, _MAX_REPEATS + 1)
            sequence[step : step + repeats] = action
            step += repeats
    return sequences


def play(game: Game, levels: Sequence[int], sequences: np.ndarray) -> list[bytes]:
    """Plays every sequence on every level to the end of the episode; returns a digest of what happened on each level.

    What happened: the step and amount of each reward and the step of each end.

    A batch takes as long as its slowest level: levels that are expected to behave the same should be neighbors.
    """
    starts = range(0, len(levels), FEW_ENVS)
    batches = (levels[start : start + FEW_ENVS] for start in starts)
    return [digest for batch in batches for digest in _play_batch(game, batch, sequences)]


def nothing_happens(game: Game, sequences: np.ndarray) -> bytes:
    """What `play` returns for a level on which every episode ends at the time limit without a reward."""
    digest = hashlib.blake2b(digest_size=16)
    for episode in range(len(sequences)):
        digest.update(_EVENT.pack(episode, game.time_limit, 0.0, True))
    return digest.digest()


def _play_batch(game: Game, levels: Sequence[int], sequences: np.ndarray) -> list[bytes]:
    num_envs, count = batch_size(len(levels)), len(sequences)
    digests = [hashlib.blake2b(digest_size=16) for _ in levels]
    episode, step = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64)
    episode[len(levels) :] = count
    with borrow_envs(game, num_envs) as envs:
        load_states(envs, [drawn_with(level_state(game, level), game, **FAST) for level in levels], num_envs)
        envs.observe()
        while (is_playing := episode < count).any():
            envs.act(sequences[np.minimum(episode, count - 1), step])
            rewards, _, first = envs.observe()
            step += 1
            for i in np.flatnonzero(is_playing & (first | (rewards != 0))):
                digests[i].update(_EVENT.pack(episode[i], step[i], rewards[i], first[i]))
            episode += first
            step[first] = 0
    return [digest.digest() for digest in digests]
