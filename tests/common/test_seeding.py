"""Different arguments give independent streams."""

import itertools
import subprocess
import sys

from common.seeding import derive_seed


def test_equal_arguments_give_equal_seeds_in_every_process():
    # hash() differs per process, and a resumed run must draw the same numbers.
    expected = derive_seed(3, "levels", 1, 2)
    program = "from common.seeding import derive_seed; print(derive_seed(3, 'levels', 1, 2))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=180)
    assert int(other.stdout) == expected == derive_seed(3, "levels", 1, 2)


def test_different_arguments_give_different_seeds():
    arguments = itertools.product(range(5), ("levels", "actions", "permutations"), range(8), range(3))
    seeds = [derive_seed(seed, role, actor, incarnation) for seed, role, actor, incarnation in arguments]
    assert len(set(seeds)) == len(seeds) == 5 * 3 * 8 * 3


def test_additional_index_gives_a_different_seed_even_if_zero():
    seeds = [derive_seed(3, "levels", *index) for index in ((), (0,), (0, 0), (1,), (1, 0))]
    assert len(set(seeds)) == 5


def test_order_of_indices_matters():
    assert derive_seed(0, "levels", 1, 2) != derive_seed(0, "levels", 2, 1)


def test_seeds_fit_a_signed_int_of_31_bits():
    seeds = [derive_seed(seed, "levels") for seed in range(2000)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert max(seeds) > 2**30  # and use the range
