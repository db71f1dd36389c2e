"""Frames survive compression bit for bit; damage is detected."""

import dataclasses

import numpy as np
import pytest

from common.frame_compression import CompressedFrames, DamagedFrames, compress_frames, decompress_frames
from common.games import NUM_ACTIONS, Game
from common.procgen_env import make_envs

STEPS, ENVS = 24, 5


@pytest.fixture(scope="module")
def frames():
    """uint8 [T, B, 64, 64, 3] of a random policy."""
    envs = make_envs(ENVS, Game("coinrun", "easy"), 0, 20, rand_seed=3)
    generator = np.random.default_rng(0)
    played = np.zeros((STEPS, ENVS, 64, 64, 3), np.uint8)
    for t in range(STEPS):
        played[t] = envs.observe()[1]
        envs.act(generator.integers(0, NUM_ACTIONS, ENVS, dtype=np.int32))
    envs.close()
    return played


def test_frames_survive_compression_bit_for_bit(frames):
    sent = compress_frames(frames)
    assert isinstance(sent, CompressedFrames)
    assert sent.nbytes < frames.nbytes / 2
    received = decompress_frames(sent)
    assert received.dtype == np.uint8
    np.testing.assert_array_equal(received, frames)


def test_incompressible_noise_survives_compression():
    noise = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decompress_frames(compress_frames(noise)), noise)


def test_frames_that_need_no_work_are_not_copied(frames):
    assert decompress_frames(frames) is frames
    sent = compress_frames(frames)
    assert compress_frames(sent) is sent


def test_damage_and_a_wrong_size_are_detected(frames):
    sent = compress_frames(frames)
    assert isinstance(sent, CompressedFrames)
    torn = dataclasses.replace(sent, data=sent.data[: len(sent.data) // 2])
    garbage = dataclasses.replace(sent, data=np.zeros(100, np.uint8))
    other_shape = dataclasses.replace(sent, shape=(STEPS - 1, ENVS, 64, 64, 3))
    for damaged in (torn, garbage, other_shape):
        with pytest.raises(DamagedFrames, match="frames"):
            decompress_frames(damaged)
