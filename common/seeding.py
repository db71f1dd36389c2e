"""Independent streams of random numbers, all derived from the seed of the run."""

import zlib

import numpy as np


def derive_seed(seed: int, role: str, *index: int) -> int:
    """A 31-bit seed for `role` ("levels", "actions", "initial weights", "permutations") and its indices.

    Equal arguments give equal seeds; any difference gives an unrelated seed (numpy's SeedSequence hashing).
    31 bits because Procgen's rand_seed is a signed int.
    """
    # Include the number of indices: SeedSequence cannot tell [1] from [1, 0].
    entropy = [seed, zlib.crc32(role.encode()), len(index), *index]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) & 0x7FFFFFFF
