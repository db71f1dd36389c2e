"""Frames on their way through a network: fewer bytes, the same pixels.

A raw frame has 12,288 bytes. A whole rollout is compressed, environment after environment, so that each frame lies
next to the one before it, which it resembles most.
"""

from dataclasses import dataclass

import numpy as np
import zstandard

_ZSTD_LEVEL = 1


class DamagedFrames(ValueError):
    """Compressed frames cannot be restored."""


@dataclass(frozen=True, slots=True)
class CompressedFrames:
    """uint8 frames of `shape` `[T, B, 64, 64, 3]`, compressed with zstd."""

    data: np.ndarray  # uint8 [bytes]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


Frames = np.ndarray | CompressedFrames


def compress_frames(frames: Frames) -> CompressedFrames:
    """Compresses uint8 `[T, B, H, W, C]`; frames that are already compressed are returned unchanged."""
    if isinstance(frames, CompressedFrames):
        return frames
    by_environment = np.ascontiguousarray(frames.swapaxes(0, 1))
    data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(by_environment.data)
    return CompressedFrames(np.frombuffer(data, np.uint8), frames.shape)


def decompress_frames(frames: Frames) -> np.ndarray:
    """The original uint8 `[T, B, H, W, C]`, as a view that is not contiguous; an array is returned unchanged.

    Raises:
        DamagedFrames: the data does not decompress to the expected size.
    """
    if isinstance(frames, np.ndarray):
        return frames
    size = int(np.prod(frames.shape))
    try:
        data = zstandard.ZstdDecompressor().decompress(frames.data.data, max_output_size=size)
    except zstandard.ZstdError as error:
        raise DamagedFrames(f"cannot decompress frames: {error}") from error
    if len(data) != size:
        raise DamagedFrames(f"frames decompress to {len(data)} bytes, expected {size}")
    steps, envs, *picture = frames.shape
    return np.frombuffer(data, np.uint8).reshape(envs, steps, *picture).swapaxes(0, 1)
