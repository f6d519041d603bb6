from __future__ import annotations

import numpy as np

from llm.shuffle import mix, permutation


def test_the_mixing_function_is_splitmix64() -> None:
    # The first outputs for seed 1234567, as published with the generator's reference code.
    seeds = np.uint64(1234567) + np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert mix(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_permutation_has_every_number_once_and_its_arguments_decide_it() -> None:
    one, same, other = (
        permutation(1000, *drawn) for drawn in (("a", 1, 2), ("a", 1, 2), ("a", 12))
    )
    assert sorted(one.tolist()) == list(range(1000))
    assert one.tolist() == same.tolist() != other.tolist()
