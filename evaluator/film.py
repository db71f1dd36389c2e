"""Gifs of played episodes."""

from collections.abc import Sequence

import imageio.v3 as iio
import numpy as np

SCALE = 4  # 64 pixels become 256, each a crisp square
_STEPS_PER_FRAME = 2
_MAX_FRAMES = 250  # longer episodes are shown in larger steps: about 2 MB at most
_MILLISECONDS_PER_FRAME = 70  # about 30 steps a second, twice the speed at which people play Procgen
_LAST_FRAME_MILLISECONDS = 1000


def encode_gif(frames: Sequence[np.ndarray]) -> bytes:
    """A looping gif of uint8 frames `[64, 64, 3]`: every second step, and the last one held for a second."""
    stride = max(_STEPS_PER_FRAME, -(-len(frames) // _MAX_FRAMES))
    shown = [*frames[:-1:stride], frames[-1]]
    durations = [_MILLISECONDS_PER_FRAME] * (len(shown) - 1) + [_LAST_FRAME_MILLISECONDS]
    enlarged = np.stack(shown).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return iio.imwrite("<bytes>", enlarged, extension=".gif", duration=durations, loop=0)
