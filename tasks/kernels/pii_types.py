"""What a place in a text must have to hold personal data: a test of bytes for each type.

Each asks for what every match of Presidio's recogniser of that type has, and for little that none
has. `data` are UTF-8 bytes, and a text lies in [`low`, `end`) of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
States = npt.NDArray[np.int32]

TYPES = (
    *("CREDIT_CARD", "CRYPTO", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "MAC_ADDRESS"),
    *("PHONE_NUMBER", "US_SSN"),
)
CARD, CRYPTO, EMAIL, IBAN, IP, MAC, PHONE, SSN = range(8)


class Rules(NamedTuple):
    """What to look for.

    `wanted` says it for each of `TYPES`; `zeros` are the code points of the decimal zeros and
    `begins` is `triggers(zeros)`; `countries` are those of IBANs, by two letters counted from 1;
    `steps`, `accepts` and `starts` are the automaton of phone numbers, which have at least `least`
    digits.
    """

    wanted: Mask
    begins: Bytes
    zeros: Ints
    countries: Mask
    steps: States
    accepts: Mask
    starts: States
    least: int


_DIGITS = b"0123456789"
_LOWER = b"abcdefghijklmnopqrstuvwxyz"
_ALNUM = _DIGITS + _LOWER + _LOWER.upper()
# Of what matches of each type consist. Those of phone numbers may end with an extension: `ext`,
# `extension`, `anexo`, `int` (and others that are not ASCII).
_RUN_BYTES = (
    _DIGITS + b"- ",
    _ALNUM,
    _ALNUM + b"!#$%&'*+-/=?^_`{|}~.@",
    _ALNUM + b"- ",
    _ALNUM + b":.%/",
    _DIGITS + b"abcdefABCDEF:.-",
    _DIGITS + b"+()[]-./~ \t,;=:#" + b"aeinostxAEINOSTX",
    _DIGITS + b"-. ",
)

# What a byte may begin, or be the middle of.
DIGIT, AT, COLON, HYPHEN, DOT, FOREIGN = 1, 2, 3, 4, 5, 6
# What a byte is, as bits of `_KIND`.
_IS_ALNUM, _IS_WORD, _IS_HEX, _IS_LETTER, _IS_BASE58, _IS_GAP, IS_DIGIT, _IS_LOCAL = (
    1 << bit for bit in range(8)
)

# More digits than a number has: a country code, two prefixes and 17 digits.
_LONGEST = 28
# How a digit ends its group: for good, or with a mark behind it after which an extension may stand.
_LAST, _LAST_BUT_EXTENSION = 1, 2


def _tables() -> tuple[Bytes, Bytes, Bytes]:
    runs, kinds, triggers = (np.zeros(256, np.uint8) for _ in range(3))
    for place, matched in enumerate(_RUN_BYTES):
        runs[list(matched)] |= 1 << place
    runs[128:] = 255
    kinds[list(_ALNUM)] |= _IS_ALNUM | _IS_WORD | _IS_BASE58
    kinds[list(b"0OIl")] &= 255 - _IS_BASE58
    kinds[ord("_")] |= _IS_WORD
    kinds[list(_DIGITS + b"abcdefABCDEF")] |= _IS_HEX
    kinds[list(_LOWER + _LOWER.upper())] |= _IS_LETTER
    kinds[list(b"-xX ().[]/~")] |= _IS_GAP
    kinds[128:] |= _IS_GAP
    kinds[list(_DIGITS)] |= IS_DIGIT
    kinds[list(_RUN_BYTES[EMAIL])] |= _IS_LOCAL
    kinds[128:] |= _IS_LOCAL
    kinds[ord("@")] &= 255 - _IS_LOCAL
    triggers[list(_DIGITS)] = DIGIT
    for mark, trigger in zip(b"@:-.", (AT, COLON, HYPHEN, DOT), strict=True):
        triggers[mark] = trigger
    return runs, kinds, triggers


RUNS, _KIND, _TRIGGERS = _tables()


def triggers(zeros: Ints) -> Bytes:
    """What each byte may begin, where `zeros` are the code points of the decimal zeros."""
    table = _TRIGGERS.copy()
    leads = {chr(zero).encode()[0] for zero in zeros.tolist()} - set(_DIGITS)
    table[sorted(leads)] = FOREIGN
    return table


@njit(cache=True, nogil=True)
def digit(data: Bytes, place: int, end: int, zeros: Ints) -> tuple[np.int64 | int, int]:
    """(value, bytes) of the decimal digit at `place` in any script; a value of -1: none is there.

    The bytes are those of the character, whatever it is.
    """
    if place >= end:
        return -1, 0
    first = np.int64(data[place])
    if first < 128:
        return (first - 48 if 48 <= first <= 57 else -1), 1
    size = 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    if size == 1 or place + size > end:
        return -1, 1
    point = first & (0xFF >> (size + 1))
    for k in range(1, size):
        point = point << 6 | (np.int64(data[place + k]) & 0x3F)
    low, high = 0, len(zeros)
    while low < high:
        middle = (low + high) // 2
        if zeros[middle] <= point:
            low = middle + 1
        else:
            high = middle
    if low > 0 and point - zeros[low - 1] < 10:
        return point - zeros[low - 1], size
    return -1, size


@njit(cache=True, nogil=True)
def digit_group(data: Bytes, place: int, end: int, zeros: Ints) -> tuple[int, int]:
    """(where the digits that begin at `place` end, how many they are)."""
    count = 0
    while place < end:
        value, size = digit(data, place, end, zeros)
        if value < 0:
            break
        count += 1
        place += size
    return place, count


@njit(cache=True, nogil=True)
def is_kind(data: Bytes, place: int, low: int, end: int, kind: int) -> bool:
    return low <= place < end and _KIND[data[place]] & kind != 0


@njit(cache=True, nogil=True)
def _follows_plus(data: Bytes, low: int, place: int) -> bool:
    """Whether a plus sign stands before the digits at `place`, brackets and marks between."""
    for k in range(place - 1, max(low, place - 40) - 1, -1):
        if data[k] == 43 or (
            data[k] == 0x8B and k - low >= 2 and data[k - 1] == 0xBC and data[k - 2] == 0xEF
        ):
            return True
        if not _KIND[data[k]] & _IS_GAP:
            return False
    return False


@njit(cache=True, nogil=True)
def _letters_of_extension(data: Bytes, place: int, end: int) -> int:
    """How many letters stand behind the marks at `place` and before digits: 3 in `ext. 12`."""
    while place < end and (data[place] in (9, 32, 44) or data[place] >= 128):
        place += 1
    letters = 0
    while place < end and letters < 12 and RUNS[data[place]] >> PHONE & 1:
        if _KIND[data[place]] & IS_DIGIT:
            return letters
        letters += _KIND[data[place]] & _IS_LETTER != 0
        place += 1
    return 0


@njit(cache=True, nogil=True)
def _is_time(data: Bytes, low: int, place: int, stop: int, end: int) -> bool:
    """Whether [place, stop) is `2012-01-02 08` of `2012-01-02 08:15`, with no digits before.

    libphonenumber leaves such candidates alone, whole and in parts. It takes `/` or nothing for
    `-`, too, which does not matter here.
    """
    if stop - place != 13 or stop + 2 >= end or data[stop] != 58:
        return False
    for p in range(place - 1, max(low, place - 6) - 1, -1):
        if data[p] >= 128 or _KIND[data[p]] & IS_DIGIT:
            return False
        if not _KIND[data[p]] & _IS_GAP:
            break
    for k in range(13):
        byte = data[place + k]
        if k in (4, 7, 10):
            if byte != (32 if k == 10 else 45):
                return False
        elif not _KIND[byte] & IS_DIGIT:
            return False
    return (
        data[place] in (49, 50)
        and data[place + 5] <= 49
        and data[place + 8] <= 51
        and data[place + 11] <= 50
        and 48 <= data[stop + 1] <= 53
        and _KIND[data[stop + 2]] & IS_DIGIT != 0
    )


@njit(cache=True, nogil=True)
def phone(data: Bytes, low: int, place: int, end: int, rules: Rules) -> int:
    """The plans, as bits, by which groups of digits from `place` on may be a number.

    libphonenumber takes whole groups with up to four marks between two of them. It reads letters
    as digits where it sees three, and blocks of more than 20 digits in parts: both always count.
    """
    zeros, steps, accepts, least = rules.zeros, rules.steps, rules.accepts, rules.least
    every = (1 << len(rules.starts)) - 1
    values = np.empty(_LONGEST, np.int8)
    last = np.zeros(_LONGEST, np.int8)
    count = in_group = letters = 0
    p = place
    while p < end and count < _LONGEST:
        value, size = digit(data, p, end, zeros)
        if value >= 0:
            values[count] = value
            count += 1
            in_group += 1
            if in_group > 20:
                return every
            p += size
            continue
        last[count - 1] = _LAST
        in_group = 0
        for _ in range(4):
            if value < 0 and p < end and _KIND[data[p]] & _IS_GAP:
                if data[p] | 32 == 120:
                    letters += 1
                if data[p] | 32 == 120 or data[p] == 126 or data[p] >= 128:
                    last[count - 1] = _LAST_BUT_EXTENSION
                p += size
                value, size = digit(data, p, end, zeros)
        if value < 0:
            break
    last[count - 1] = _LAST
    if count < least or _is_time(data, low, place, p, end):
        return 0
    letters += _letters_of_extension(data, p, end)
    if letters >= 3 or _follows_plus(data, low, place):
        return every
    plans = 0
    for plan in range(len(rules.starts)):
        state = rules.starts[plan]
        for k in range(count):
            state = steps[state, values[k]]
            if state < 0:
                break
            enough = (k + 1 >= least and last[k]) or last[k] == _LAST_BUT_EXTENSION
            if enough and accepts[state]:
                plans |= 1 << plan
                break
    return plans


@njit(cache=True, nogil=True)
def card(data: Bytes, place: int, end: int, zeros: Ints) -> bool:
    """13 to 17 digits in up to four groups, with one hyphen or space between two."""
    if data[place] not in (49, 51, 52, 53, 54):
        return False
    total = 0
    for _ in range(4):
        place, count = digit_group(data, place, end, zeros)
        total += count
        if count == 0 or total > 17:
            return False
        if total >= 13:
            return True
        if place >= end or data[place] not in (32, 45):
            return False
        place += 1
    return False


@njit(cache=True, nogil=True)
def _ascii_group(data: Bytes, place: int, end: int) -> int:
    stop = place
    while stop < end and 48 <= data[stop] <= 57:
        stop += 1
    return stop - place


@njit(cache=True, nogil=True)
def ssn(data: Bytes, low: int, place: int, end: int) -> bool:
    """Nine digits: in one group, 5-4, 3-6 or 3-2-4 with a hyphen, 3 2 4 with `-`, ` ` or `.`."""
    if is_kind(data, place - 1, low, end, _IS_WORD):
        return False
    first = _ascii_group(data, place, end)
    if first == 9:
        return True
    mark = place + first
    if first not in (3, 5) or mark >= end or data[mark] not in (32, 45, 46):
        return False
    second = _ascii_group(data, mark + 1, end)
    if first + second == 9:
        return True
    mark += 1 + second
    if first != 3 or second != 2 or mark >= end or data[mark] not in (32, 45, 46):
        return False
    return _ascii_group(data, mark + 1, end) == 4


@njit(cache=True, nogil=True)
def ip4(data: Bytes, place: int, end: int) -> bool:
    """Four groups of digits up to 255 with dots between, and no word behind."""
    for k in range(4):
        count = _ascii_group(data, place, end)
        if not 1 <= count <= 3:
            return False
        value = 0
        for p in range(place, place + count):
            value = 10 * value + data[p] - 48
        place += count
        if value > 255 or (k < 3 and (place >= end or data[place] != 46)):
            return False
        place += k < 3
    return not is_kind(data, place, place, end, _IS_WORD)


@njit(cache=True, nogil=True)
def ip6(data: Bytes, low: int, place: int, end: int) -> tuple[bool, int]:
    """(whether hex digits and colons around the colon at `place` may be an address, their end).

    An address holds two colons in a row, or seven, or an IPv4 address; it is no part of a word.
    """
    left = place
    while is_kind(data, left - 1, low, end, _IS_HEX):
        left -= 1
    right, colons, double = place, 0, False
    while right < end and (data[right] == 58 or _KIND[data[right]] & _IS_HEX):
        if data[right] == 58:
            colons += 1
            double |= right > place and data[right - 1] == 58
        right += 1
    in_word = is_kind(data, left - 1, low, end, _IS_WORD) or is_kind(
        data, right, low, end, _IS_WORD
    )
    return (double or colons >= 7) and place - left <= 4 and not in_word, right


@njit(cache=True, nogil=True)
def mac(data: Bytes, low: int, place: int, end: int, size: int, groups: int) -> bool:
    """`groups` groups of `size` hex digits, the mark at `place` between the first two."""
    start = place - size
    if start < low or start + groups * (size + 1) - 1 > end:
        return False
    for k in range(groups):
        first = start + k * (size + 1)
        if k < groups - 1 and data[first + size] != data[place]:
            return False
        for p in range(first, first + size):
            if not _KIND[data[p]] & _IS_HEX:
                return False
    return True


@njit(cache=True, nogil=True)
def email(data: Bytes, low: int, place: int, end: int) -> bool:
    """A character of a local part before the at sign at `place`, a domain with a dot after it."""
    if not is_kind(data, place - 1, low, end, _IS_LOCAL):
        return False
    p = place + 1
    while p < end and (_KIND[data[p]] & _IS_WORD or data[p] in (45, 46) or data[p] >= 128):
        if data[p] == 46 and p > place + 1:
            return True
        p += 1
    return False


@njit(cache=True, nogil=True)
def iban(data: Bytes, low: int, place: int, end: int, countries: Mask) -> bool:
    """A country's two letters before two digits at `place`, two groups of four after them.

    Where case is ignored, the long s (C5 BF in UTF-8) and the dotless i (C4 B1) are letters.
    """
    if place - 2 < low or place + 2 > end or _ascii_group(data, place, end) < 2:
        return False
    first, second = data[place - 2], data[place - 1]
    if first < 128 and second < 128:
        letters = _KIND[first] & _KIND[second] & _IS_LETTER
        if not letters or not countries[first & 31, second & 31]:
            return False
        if is_kind(data, place - 3, low, end, _IS_ALNUM):
            return False
    elif second < 128:
        if first not in (0xB1, 0xBF) or not _KIND[second] & _IS_LETTER:
            return False
    elif first not in (0xC4, 0xC5):
        return False
    p = place + 2
    for _ in range(2):
        if p < end and data[p] in (32, 45):
            p += 1
        for _ in range(4):
            if p < end and data[p] in (0xC4, 0xC5):
                return True
            if p >= end or not _KIND[data[p]] & _IS_ALNUM:
                return False
            p += 1
    return True


@njit(cache=True, nogil=True)
def crypto(data: Bytes, low: int, place: int, stop: int, end: int) -> bool:
    """Whether a digit in [place, stop) may begin a Bitcoin address.

    An address is 1 or 3 and 25 to 59 characters of base 58, or bc1 and as many of base 32.
    """
    run = stop
    while run < min(end, stop + 60) and _KIND[data[run]] & _IS_ALNUM:
        run += 1
    for p in range(place, stop):
        if data[p] not in (49, 51) or run - p < 26:
            continue
        if data[p] == 49 and p - low >= 2 and data[p - 1] | 32 == 99 and data[p - 2] | 32 == 98:
            return True
        last = min(run, p + 60)
        q = p
        while q < last and _KIND[data[q]] & _IS_BASE58:
            q += 1
        if q == last:
            return True
    return False
