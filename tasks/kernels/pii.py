"""Where a text can hold personal data: one pass over UTF-8 bytes.

A test for each type (`tasks/kernels/pii_types.py`) asks for what every match of Presidio's
recogniser must have, so that a text without a hit has no finding. A hit widens to its window: the
longest run of bytes of which a match can consist, and one byte of context on either side. No match
reaches over the end of a run, so that a recogniser finds in the windows what it finds in the text.
All bytes of characters that are not ASCII count as such bytes, so that windows never cut one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from tasks.kernels.pii_types import (
    AT,
    CARD,
    COLON,
    CRYPTO,
    DIGIT,
    DOT,
    EMAIL,
    FOREIGN,
    IBAN,
    IP,
    IS_DIGIT,
    MAC,
    PHONE,
    RUNS,
    SSN,
    Bytes,
    Ints,
    Mask,
    Rules,
    card,
    crypto,
    digit,
    digit_group,
    email,
    iban,
    ip4,
    ip6,
    is_kind,
    mac,
    phone,
    ssn,
)

# Where the last run of colons and hex digits ended that is no address: a place beside the types'.
_COLONS = 8


@njit(cache=True, nogil=True)
def _plans(data: Bytes, low: int, place: int, stop: int, end: int, rules: Rules) -> int:
    """The plans, as bits, by which the digits in [place, stop) may begin a phone number."""
    plans = phone(data, low, place, end, rules)
    for _ in range(9):
        place += digit(data, place, end, rules.zeros)[1]
    # An extension, of nine digits at most, may have ended in the middle of the group.
    if place < stop:
        plans |= phone(data, low, place, end, rules)
    return plans


@njit(cache=True, nogil=True)
def _at_digits(
    data: Bytes, low: int, place: int, stop: int, end: int, rules: Rules, reach: Ints
) -> int:
    """The types but phone numbers, as bits, that the digits in [place, stop) may begin."""
    found = 0
    zeros, wanted = rules.zeros, rules.wanted
    if wanted[CARD] and place >= reach[CARD] and card(data, place, end, zeros):
        found |= 1 << CARD
    if wanted[CRYPTO] and place >= reach[CRYPTO] and crypto(data, low, place, stop, end):
        found |= 1 << CRYPTO
    if wanted[IBAN] and iban(data, low, place, end, rules.countries):
        found |= 1 << IBAN
    if wanted[IP] and ip4(data, place, end):
        found |= 1 << IP
    if wanted[SSN] and ssn(data, low, place, end):
        found |= 1 << SSN
    return found


@njit(cache=True, nogil=True)
def _at_mark(
    data: Bytes, low: int, place: int, end: int, kind: int, wanted: Mask, reach: Ints
) -> int:
    """The types, as bits, that the mark at `place` may stand in."""
    if kind == AT:
        return (wanted[EMAIL] and email(data, low, place, end)) << EMAIL
    if kind == DOT:
        return (wanted[MAC] and mac(data, low, place, end, 4, 3)) << MAC
    found = (wanted[MAC] and mac(data, low, place, end, 2, 6)) << MAC
    if kind == COLON and wanted[IP] and place >= reach[_COLONS]:
        hit, right = ip6(data, low, place, end)
        found |= hit << IP
        reach[_COLONS] = right
    return found


@njit(cache=True, nogil=True)
def _in_amount(data: Bytes, low: int, place: int, end: int) -> bool:
    """Whether a comma stands at `place` between two digits: no phone number holds that."""
    return (
        data[place] == 44
        and is_kind(data, place - 1, low, end, IS_DIGIT)
        and is_kind(data, place + 1, low, end, IS_DIGIT)
    )


@njit(cache=True, nogil=True)
def _add(
    out: Ints, count: int, reach: Ints, data: Bytes, low: int, end: int, place: int, type_: int
) -> int:
    """Writes the window of a hit at `place`, unless it lies in the last one; the count after it."""
    if place < reach[type_]:
        return count
    start, stop = place, place
    while start > low and RUNS[data[start - 1]] >> type_ & 1:
        if type_ == PHONE and _in_amount(data, low, start - 1, end):
            break
        start -= 1
    while stop < end and RUNS[data[stop]] >> type_ & 1:
        if type_ == PHONE and _in_amount(data, low, stop, end):
            break
        stop += 1
    reach[type_] = stop
    if count < len(out):
        out[count, 1] = type_
        out[count, 2] = max(low, start - 1)
        out[count, 3] = min(end, stop + 1)
        out[count, 4] = 0
    return count + 1


@njit(cache=True, nogil=True)
def find_windows(offsets: Ints, data: Bytes, rules: Rules, out: Ints) -> int:
    """Writes (row, type, start, end, plans) of each window and returns their number.

    `offsets` (rows + 1) bound the texts in `data`, and start and end are places in it; plans are
    those of `rules.starts`, as bits, by which phone numbers may stand in the window. Rows ascend.
    What does not fit into `out` (n, 5) is only counted.
    """
    count = newest = 0
    reach = np.zeros(_COLONS + 1, np.int64)
    for row in range(len(offsets) - 1):
        low, end = offsets[row], offsets[row + 1]
        place, before = low, count
        while place < end:
            kind = rules.begins[data[place]]
            stop = place + 1
            found = plans = 0
            if kind in (DIGIT, FOREIGN):
                stop, length = digit_group(data, place, end, rules.zeros)
                if length == 0:
                    place += 1
                    continue
                if kind == DIGIT:
                    found = _at_digits(data, low, place, stop, end, rules, reach)
                if rules.wanted[PHONE]:
                    plans = _plans(data, low, place, stop, end, rules)
            elif kind != 0:
                found = _at_mark(data, low, place, end, kind, rules.wanted, reach)
            if plans:
                if place >= reach[PHONE]:
                    newest = count
                count = _add(out, count, reach, data, low, end, place, PHONE)
                if newest < len(out):
                    out[newest, 4] |= plans
            type_ = 0
            while found:
                if found & 1:
                    count = _add(out, count, reach, data, low, end, place, type_)
                found >>= 1
                type_ += 1
            place = stop
        out[before : min(count, len(out)), 0] = row
    return count
