"""Rows as bytes: cells of Arrow columns written one behind the other, row by row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@njit(cache=True, nogil=True)
def add_variable(out: Bytes, at: Ints, tag: int, offsets: Ints, data: Bytes, valid: Mask) -> None:
    """Writes a column of texts or binaries: tag, length as little-endian uint64, bytes.

    `at[i]` is where row i goes on in `out`, and is moved behind the cell. A null is one byte 0.
    """
    for i in range(len(at)):
        place = at[i]
        if not valid[i]:
            out[place] = 0
            at[i] = place + 1
            continue
        start, length = offsets[i], offsets[i + 1] - offsets[i]
        out[place] = tag
        for k in range(8):
            out[place + 1 + k] = (length >> (8 * k)) & 255
        place += 9
        for k in range(length):
            out[place + k] = data[start + k]
        at[i] = place + length


@njit(cache=True, nogil=True)
def add_fixed(out: Bytes, at: Ints, tag: int, cells: Bytes, width: int, valid: Mask) -> None:
    """Writes a column of numbers: tag, then `width` bytes of `cells` (rows * width) for each."""
    for i in range(len(at)):
        place = at[i]
        if not valid[i]:
            out[place] = 0
            at[i] = place + 1
            continue
        out[place] = tag
        for k in range(width):
            out[place + 1 + k] = cells[i * width + k]
        at[i] = place + 1 + width
