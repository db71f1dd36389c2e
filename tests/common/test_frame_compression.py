"""Frames survive compression bit for bit; damaged ones are found."""

import dataclasses

import numpy as np
import pytest

from common.frame_compression import CompressedFrames, DamagedFrames, compress_frames, decompress_frames
from common.games import NUM_ACTIONS, Game
from common.procgen_env import make_envs, observe

STEPS, ENVS = 24, 5


@pytest.fixture(scope="module")
def frames():
    """uint8 [T, B, 64, 64, 3] of a random policy."""
    envs = make_envs(ENVS, Game("coinrun", "easy"), 0, 20, rand_seed=3)
    generator = np.random.default_rng(0)
    played = np.zeros((STEPS, ENVS, 64, 64, 3), np.uint8)
    for t in range(STEPS):
        played[t] = observe(envs)[1]
        envs.act(generator.integers(0, NUM_ACTIONS, ENVS, dtype=np.int32))
    envs.close()
    return played


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_frames_come_back_bit_for_bit_from_fewer_bytes(frames, codec):
    sent = compress_frames(frames, codec)
    assert isinstance(sent, CompressedFrames) and sent.codec == codec
    assert sent.nbytes < frames.nbytes / 2
    received = decompress_frames(sent)
    assert received.dtype == np.uint8
    np.testing.assert_array_equal(received, frames)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_noise_that_cannot_be_compressed_comes_back_too(codec):
    noise = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decompress_frames(compress_frames(noise, codec)), noise)


def test_without_a_codec_nothing_is_copied(frames):
    assert compress_frames(frames, "none") is frames
    assert decompress_frames(frames) is frames


def test_an_unknown_codec_is_refused(frames):
    with pytest.raises(ValueError, match="unknown codec 'gzip'"):
        compress_frames(frames, "gzip")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_damage_and_a_wrong_size_are_found(frames, codec):
    sent = compress_frames(frames, codec)
    assert isinstance(sent, CompressedFrames)
    torn = dataclasses.replace(sent, data=sent.data[: len(sent.data) // 2])
    garbage = dataclasses.replace(sent, data=np.zeros(100, np.uint8))
    other_shape = dataclasses.replace(sent, shape=(STEPS - 1, ENVS, 64, 64, 3))
    for damaged in (torn, garbage, other_shape):
        with pytest.raises(DamagedFrames, match=f"^{codec} frames"):
            decompress_frames(damaged)
