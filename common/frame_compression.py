"""Frames on their way through a network: fewer bytes out, the same pixels back.

A raw frame has 12,288 bytes. Compressed is a whole rollout, environment after environment, so that a frame lies next
to the frame before it, which it resembles most.
"""

from dataclasses import dataclass

import lz4.frame
import numpy as np
import zstandard

CODECS = ("none", "lz4", "zstd")
_ZSTD_LEVEL = 1


class DamagedFrames(ValueError):
    """Compressed frames are not what was compressed."""


@dataclass(frozen=True, slots=True)
class CompressedFrames:
    """uint8 `[T, B, 64, 64, 3]` as one of `CODECS` made it smaller."""

    codec: str
    data: np.ndarray  # uint8 [bytes]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


Frames = np.ndarray | CompressedFrames


def compress_frames(frames: Frames, codec: str) -> Frames:
    """uint8 `[T, B, H, W, C]` for the way; what came in where `codec` is none, or where it is compressed already."""
    if codec == "none" or isinstance(frames, CompressedFrames):
        return frames
    by_environment = np.ascontiguousarray(frames.swapaxes(0, 1))
    if codec == "lz4":
        data = lz4.frame.compress(by_environment.data, block_size=lz4.frame.BLOCKSIZE_MAX256KB, store_size=True)
    elif codec == "zstd":
        data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(by_environment.data)
    else:
        raise ValueError(f"unknown codec {codec!r}")
    return CompressedFrames(codec, np.frombuffer(data, np.uint8), frames.shape)


def decompress_frames(frames: Frames) -> np.ndarray:
    """The uint8 `[T, B, H, W, C]` that was compressed, as a view that is not contiguous; an array comes back as it is.

    Raises:
        DamagedFrames: the bytes do not decompress to the size they should have.
    """
    if isinstance(frames, np.ndarray):
        return frames
    size = int(np.prod(frames.shape))
    try:
        if frames.codec == "lz4":
            data = lz4.frame.decompress(frames.data.data)
        else:
            data = zstandard.ZstdDecompressor().decompress(frames.data.data, max_output_size=size)
    except (RuntimeError, zstandard.ZstdError) as error:
        raise DamagedFrames(f"{frames.codec} frames cannot be decompressed: {error}") from error
    if len(data) != size:
        raise DamagedFrames(f"{frames.codec} frames have {len(data)} bytes, {size} were compressed")
    steps, envs, *picture = frames.shape
    return np.frombuffer(data, np.uint8).reshape(envs, steps, *picture).swapaxes(0, 1)
