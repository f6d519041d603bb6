"""Random numbers that their arguments decide, on every machine and for every version of numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xxhash

Ints = npt.NDArray[np.int64]


def key(purpose: str, *numbers: int) -> np.uint64:
    """A number to draw from, of its own for each purpose and numbers."""
    return np.uint64(xxhash.xxh3_64_intdigest(f"{purpose} {numbers}".encode()))


def permutation(n: int, purpose: str, *numbers: int) -> Ints:
    """A permutation of range(n)."""
    drawn = mix(np.arange(n, dtype=np.uint64) + key(purpose, *numbers))
    return np.argsort(drawn, kind="stable")


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea and Flood 2014): a bijection that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
