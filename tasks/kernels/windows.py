"""The beginning, the middle and the end of texts, cut from Arrow's buffers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def cut_windows(offsets: Ints, data: Bytes, size: int) -> tuple[Ints, Bytes]:
    """(offsets, UTF-8 bytes) of three windows of `size` characters of each text, as one line.

    The first and the last `size` characters, and `size` // 2 on either side of the middle of the
    text's bytes (before a character that lies across it), with a space between them; the whole
    text where two of them would touch or overlap. Line feeds become spaces.
    """
    half = size // 2
    bounds = np.empty(len(offsets), np.int64)
    # Four bytes a character: a text as long as that is not taken whole, nor are its windows longer.
    longest = 12 * size + 8
    total = 0
    for text in range(len(offsets) - 1):
        total += min(offsets[text + 1] - offsets[text], longest)
    out = np.empty(total, np.uint8)
    at = bounds[0] = 0
    for text in range(len(offsets) - 1):
        start, stop = offsets[text], offsets[text + 1]
        middle = start + (stop - start) // 2
        while middle > start and data[middle] & 0xC0 == 0x80:
            middle -= 1
        first = _forward(data, start, stop, size)
        last = _backward(data, start, stop, size)
        left = _backward(data, start, middle, half)
        right = _forward(data, middle, stop, half)
        if first >= left or right >= last:
            at = _copy(data, start, stop, out, at)
        else:
            at = _copy(data, start, first, out, at)
            out[at] = 0x20
            at = _copy(data, left, right, out, at + 1)
            out[at] = 0x20
            at = _copy(data, last, stop, out, at + 1)
        bounds[text + 1] = at
    return bounds, out[:at]


@njit(cache=True, nogil=True)
def _forward(data, place, stop, count):
    """The place `count` characters after `place`, at most `stop`."""
    while place < stop and count > 0:
        place += 1
        while place < stop and data[place] & 0xC0 == 0x80:
            place += 1
        count -= 1
    return place


@njit(cache=True, nogil=True)
def _backward(data, start, place, count):
    """The place `count` characters before `place`, at least `start`."""
    while place > start and count > 0:
        place -= 1
        while place > start and data[place] & 0xC0 == 0x80:
            place -= 1
        count -= 1
    return place


@njit(cache=True, nogil=True)
def _copy(data, start, stop, out, at):
    for place in range(start, stop):
        byte = data[place]
        out[at] = 0x20 if byte == 0x0A else byte
        at += 1
    return at
