"""The counts behind text signals: one call reads a batch of texts from Arrow's buffers.

`tasks/signals.py` says what each count means. A text is decoded once into code points and their
kinds; symbols, words, lines and n-grams are then plain loops over those.

A table of hashes is two arrays: it numbers distinct keys in order of first appearance. `slots` (a
power of two, at least twice the keys) holds `base` plus a key's number, and `keys` the key of each
number. What is below `base` is of an earlier use: a table is cleared by raising `base`.

Numba caches a function by the file it is written in, so all that is compiled stands in this one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]
Kinds = npt.NDArray[np.uint16]
Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Places = npt.NDArray[np.int32]

# One bit for each kind of character. A terminal mark is of SPACED_MARK or of UNSPACED_MARK.
SPACE, LETTER, ALPHANUMERIC, UNSPACED = 1, 2, 4, 8
SPACED_MARK, UNSPACED_MARK, CLOSING, AROUND = 16, 32, 64, 128
BULLET, RARE, SYMBOL = 256, 512, 1024
_MARK = SPACED_MARK | UNSPACED_MARK

_SHORT_LINE = 30
_MIN_LINE_WORDS = 3
_MAX_WORD_CHARACTERS = 1000
_FIRST_DUPLICATE, _LONGEST = 5, 10

_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd (Knuth, TAOCP 6.4)
_SEED = np.uint64(0xD6E8FEB86659FD93)  # any but 0, which a character of 0 would not change
_HALF = np.uint64(32)

_COUNTED = (
    "characters words lines paragraphs breaks plain_words plain_characters alphabetic_words "
    "unspaced_words stop_words hashes ellipses curly_brackets lorem_ipsums bullet_lines "
    "ellipsis_lines terminal_lines punctuated_lines short_lines javascript_lines policy_lines "
    "sentences duplicate_lines duplicate_line_characters duplicate_paragraphs "
    "duplicate_paragraph_characters"
)
COUNTS = np.dtype([(name, np.int64) for name in _COUNTED.split()])
"""What is counted of a text, but for its n-grams."""


class Tables(NamedTuple):
    """What is looked for. `kinds` (0x110000) of each code point; `stop_words` (up to 4 letters) as
    big-endian numbers; `phrases` (P, longest) in lower case, padded with 0: one on JavaScript, one
    of lorem ipsum, the others on policies; `rare` (P): where each has its first RARE letter."""

    kinds: Kinds
    stop_words: Ints
    phrases: Codes
    rare: Ints


def count_texts(offsets: Ints, data: Bytes, tables: Tables) -> tuple[npt.NDArray[np.void], Ints]:
    """COUNTS (texts,) and the characters in n-grams (texts, 9): top 2-4, duplicate 5-10.

    Text i is `data[offsets[i] : offsets[i + 1]]`, valid UTF-8.
    """
    found = np.zeros(len(offsets) - 1, COUNTS)
    grams = np.zeros((len(offsets) - 1, _LONGEST - 1), np.int64)
    _count_texts(offsets, data, tables, found, grams)
    return found, grams


@njit(cache=True, nogil=True)
def _count_texts(
    offsets: Ints, data: Bytes, tables: Tables, found: npt.NDArray[np.void], grams: Ints
) -> None:
    for i in range(len(offsets) - 1):
        row = found[i]
        codes, kinds = _decode(data, offsets[i], offsets[i + 1], tables.kinds)
        row.characters = len(codes)
        _symbols(codes, kinds, row)
        # Words take a byte and a space, or three bytes in scripts without spaces.
        bound = (offsets[i + 1] - offsets[i]) // 2 + 1
        hashes, starts = np.empty(bound, np.uint64), _empty(bound)
        letters, gaps = _empty(bound + 1), _empty(bound + 1)
        _words(codes, kinds, tables.stop_words, hashes, starts, letters, gaps, row)
        n_words = row.words
        size = 2
        while size < 2 * n_words:
            size *= 2
        slots, keys = np.zeros(size, np.int64), np.empty(n_words, np.uint64)
        base = _lines(codes, kinds, starts, letters, tables, slots, keys, row)
        _ngrams(hashes[:n_words], letters, gaps, slots, keys, base, grams[i])


@njit(cache=True, nogil=True)
def _empty(size: int) -> Places:
    return np.empty(size, np.int32)


@njit(cache=True, nogil=True)
def _decode(data: Bytes, start: int, stop: int, table: Kinds) -> tuple[Codes, Kinds]:
    """The code points of UTF-8 and the kinds of each."""
    codes, kinds = np.empty(stop - start, np.int32), np.empty(stop - start, np.uint16)
    n = 0
    i = start
    while i < stop:
        code = np.int32(data[i])
        if code < 0x80:
            i += 1
        elif code < 0xE0:
            code = (code & 0x1F) << 6 | np.int32(data[i + 1]) & 0x3F
            i += 2
        elif code < 0xF0:
            code = (code & 0x0F) << 12 | (np.int32(data[i + 1]) & 0x3F) << 6
            code |= np.int32(data[i + 2]) & 0x3F
            i += 3
        else:
            code = (code & 0x07) << 18 | (np.int32(data[i + 1]) & 0x3F) << 12
            code |= (np.int32(data[i + 2]) & 0x3F) << 6 | np.int32(data[i + 3]) & 0x3F
            i += 4
        codes[n], kinds[n] = code, table[code]
        n += 1
    return codes[:n], kinds[:n]


@njit(cache=True, nogil=True)
def _symbols(codes: Codes, kinds: Kinds, row: Any) -> None:
    """Counts line breaks, `#`, `{`, `…` and `...`; of a run of dots every third."""
    dots, last = 0, -2
    for i in range(len(codes)):
        if not kinds[i] & SYMBOL:
            continue
        code = codes[i]
        if code == ord("."):
            dots = dots + 1 if last == i - 1 else 1
            last = i
            row.ellipses += dots % 3 == 0
        else:
            row.breaks += code == ord("\n")
            row.hashes += code == ord("#")
            row.curly_brackets += code == ord("{")
            row.ellipses += code == ord("…")


@njit(cache=True, nogil=True)
def _words(
    codes: Codes,
    kinds: Kinds,
    stop_words: Ints,
    hashes: Hashes,
    starts: Places,
    letters: Places,
    gaps: Places,
    row: Any,
) -> None:
    """Finds the words: `hashes` and `starts` of each, `letters[i]` the characters of the first i
    and `gaps[i]` how many of them stand behind white space, or first."""
    words = plain = plain_characters = alphabetic = unspaced = stops = 0
    letters[0] = gaps[0] = 0
    i, end = 0, -1
    while i < len(codes):
        kind = kinds[i]
        if kind & SPACE:
            i += 1
            continue
        start, kinds_in, value = i, kind, _mixed(_SEED, np.uint64(codes[i]))
        i += 1
        if not kind & UNSPACED:
            while i < len(codes) and not kinds[i] & (SPACE | UNSPACED):
                value = _mixed(value, np.uint64(codes[i]))
                kinds_in |= kinds[i]
                i += 1
        hashes[words], starts[words] = value, start
        letters[words + 1] = letters[words] + i - start
        gaps[words + 1] = gaps[words] + (start != end)
        words += 1
        end = i
        if kinds_in & ALPHANUMERIC:
            plain += 1
            plain_characters += i - start
            alphabetic += (kinds_in & LETTER) != 0
            unspaced += (kind & UNSPACED) != 0
            stops |= _stop_word(codes, kinds, start, i, stop_words)
    row.words, row.plain_words, row.plain_characters = words, plain, plain_characters
    row.alphabetic_words, row.unspaced_words = alphabetic, unspaced
    while stops:
        row.stop_words += stops & 1
        stops >>= 1


@njit(cache=True, nogil=True)
def _stop_word(codes: Codes, kinds: Kinds, start: int, stop: int, stop_words: Ints) -> int:
    """The bit of the stop word between the marks around a word, or 0."""
    while start < stop and kinds[start] & AROUND:
        start += 1
    while start < stop and kinds[stop - 1] & AROUND:
        stop -= 1
    if stop - start > 4:
        return 0
    packed = 0
    for i in range(start, stop):
        if codes[i] > 127:
            return 0
        packed = packed << 8 | _lower(codes[i])
    for k in range(len(stop_words)):
        if packed == stop_words[k]:
            return 1 << k
    return 0


@njit(cache=True, nogil=True)
def _lower(code: int) -> int:
    """The lower case of an ASCII letter; any other character as it is."""
    return code + 32 if ord("A") <= code <= ord("Z") else code


@njit(cache=True, nogil=True)
def _lines(
    codes: Codes,
    kinds: Kinds,
    starts: Places,
    letters: Places,
    tables: Tables,
    slots: Ints,
    keys: Hashes,
    row: Any,
) -> int:
    """Counts the lines of each sort and what repeats among them and paragraphs; the next base."""
    n_words = row.words
    lines, line_sizes = np.empty(n_words, np.uint64), _empty(n_words)
    parts, part_sizes = np.empty(n_words, np.uint64), _empty(n_words)
    n_lines = n_parts = word = start = 0
    part, part_size, part_word = _SEED, 0, 0
    while start <= len(codes):
        stop, line = start, _SEED
        while stop < len(codes) and codes[stop] != ord("\n"):
            line = _mixed(line, np.uint64(codes[stop]))
            stop += 1
        first = word
        while word < n_words and starts[word] < stop:
            word += 1
        if word > first:
            lines[n_lines], line_sizes[n_lines] = line, stop - start
            n_lines += 1
            _line(codes, kinds, start, stop, starts, letters, first, word, tables, row)
        if stop > start:
            part = _mixed(part, line)
            part_size += stop - start + (part_size > 0)
        if (stop == start or stop == len(codes)) and word > part_word:
            parts[n_parts], part_sizes[n_parts] = part, part_size
            n_parts += 1
        if stop == start:
            part, part_size, part_word = _SEED, 0, word
        start = stop + 1
    row.lines, row.paragraphs = n_lines, n_parts
    count, characters, base = _duplicates(lines[:n_lines], line_sizes, slots, keys, 1)
    row.duplicate_lines, row.duplicate_line_characters = count, characters
    count, characters, base = _duplicates(parts[:n_parts], part_sizes, slots, keys, base)
    row.duplicate_paragraphs, row.duplicate_paragraph_characters = count, characters
    return base


@njit(cache=True, nogil=True)
def _line(
    codes: Codes,
    kinds: Kinds,
    start: int,
    stop: int,
    starts: Places,
    letters: Places,
    first: int,
    last: int,
    tables: Tables,
    row: Any,
) -> None:
    """Counts what the line of characters `start` to `stop`, words `first` to `last`, is."""
    end = starts[last - 1] + letters[last] - letters[last - 1]
    row.bullet_lines += (kinds[starts[first]] & BULLET) != 0
    row.short_lines += stop - start <= _SHORT_LINE
    row.punctuated_lines += (kinds[stop - 1] & _MARK) != 0
    dots = end - start >= 3
    for i in range(max(start, end - 3), end):
        dots &= codes[i] == ord(".")
    row.ellipsis_lines += dots or codes[end - 1] == ord("…")
    mark = end - 1
    while mark > start and kinds[mark] & CLOSING:
        mark -= 1
    quoted = codes[end - 1] == ord('"') or codes[end - 1] == ord("'")
    row.terminal_lines += quoted or ((kinds[mark] & _MARK) != 0 and not dots)
    javascript, lorem_ipsums, policy = _phrases(codes, kinds, start, stop, tables)
    row.javascript_lines += javascript
    row.lorem_ipsums += lorem_ipsums
    row.policy_lines += policy
    if javascript or policy or last - first < _MIN_LINE_WORDS:
        return
    for word in range(first, last):
        if letters[word + 1] - letters[word] > _MAX_WORD_CHARACTERS:
            return
    row.sentences += _sentences(kinds, start, stop, end)


@njit(cache=True, nogil=True)
def _phrases(
    codes: Codes, kinds: Kinds, start: int, stop: int, tables: Tables
) -> tuple[bool, int, bool]:
    """Whether a line mentions JavaScript, how often lorem ipsum, and whether a policy."""
    javascript, lorem_ipsums, policy = False, 0, False
    for i in range(start, stop):
        if not kinds[i] & RARE:
            continue
        for k in range(len(tables.phrases)):
            if _is_at(codes, i - tables.rare[k], start, stop, tables.phrases[k]):
                javascript |= k == 0
                lorem_ipsums += k == 1
                policy |= k > 1
    return javascript, lorem_ipsums, policy


@njit(cache=True, nogil=True)
def _is_at(codes: Codes, place: int, start: int, stop: int, phrase: Codes) -> bool:
    """Whether the phrase stands at a place of the line `start` to `stop`."""
    if place < start:
        return False
    for k in range(len(phrase)):
        if phrase[k] == 0:
            return True
        if place + k >= stop or _lower(codes[place + k]) != phrase[k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _sentences(kinds: Kinds, start: int, stop: int, end: int) -> int:
    """Counts the sentences of a line whose last word ends at `end`: one for each run of terminal
    and closing marks that ends one, and one for words left behind the last."""
    count, begin, i = 0, start, start
    while i < stop:
        run = kinds[i] & (_MARK | CLOSING)
        i += 1
        if not run:
            continue
        while i < stop and kinds[i] & (_MARK | CLOSING):
            run |= kinds[i]
            i += 1
        at_space = i == stop or (kinds[i] & SPACE) != 0
        if run & UNSPACED_MARK or (at_space and run & SPACED_MARK):
            count, begin = count + 1, i
    return count + (end > begin)


@njit(cache=True, nogil=True)
def _mixed(value: np.uint64, more: np.uint64) -> np.uint64:
    """One step of a 64-bit hash: exclusive or, multiply, fold."""
    value = (value ^ more) * _SPREAD
    return value ^ (value >> _HALF)


@njit(cache=True, nogil=True)
def _number(key: np.uint64, slots: Ints, keys: Hashes, base: int, used: int) -> int:
    """The number of a key in its table; a new one is entered and gets the number `used`."""
    last = len(slots) - 1
    slot = np.int64(_mixed(key, _SEED)) & last
    while True:
        number = slots[slot] - base
        if number < 0:
            slots[slot] = base + used
            keys[used] = key
            return used
        if keys[number] == key:
            return number
        slot = (slot + 1) & last


@njit(cache=True, nogil=True)
def _duplicates(
    hashes: Hashes, sizes: Places, slots: Ints, keys: Hashes, base: int
) -> tuple[int, int, int]:
    """How many hashes repeat an earlier one, the sum of their sizes, and the next base."""
    used = count = size = 0
    for i in range(len(hashes)):
        if _number(hashes[i], slots, keys, base, used) == used:
            used += 1
        else:
            count += 1
            size += sizes[i]
    return count, size, base + used


@njit(cache=True, nogil=True)
def _ngrams(
    hashes: Hashes, letters: Places, gaps: Places, slots: Ints, keys: Hashes, base: int, found: Ints
) -> None:
    """Fills `found` with the characters in the top 2- to 4-gram and in repeated 5- to 10-grams.

    An n-gram that occurs twice is made of two (n-1)-grams which do, so it is looked for only where
    those are, and in most texts they soon are few.
    """
    n_words = len(hashes)
    words, places, grams = _empty(n_words), np.arange(n_words).astype(np.int32), _empty(n_words)
    counts, firsts = _empty(n_words), _empty(n_words)
    vocabulary = 0
    for i in range(n_words):
        word = _number(hashes[i], slots, keys, base, vocabulary)
        if word == vocabulary:
            vocabulary += 1
            counts[word] = 0
        counts[word] += 1
        words[i] = grams[i] = word
    base += vocabulary
    n_places = _repeated(places, grams, n_words, counts)
    for n in range(2, _LONGEST + 1):
        used = kept = 0
        for k in range(n_places - 1):
            place = places[k]
            if places[k + 1] != place + 1:
                continue
            key = np.uint64(grams[k]) * np.uint64(vocabulary) + np.uint64(words[place + n - 1])
            gram = _number(key, slots, keys, base, used)
            if gram == used:
                used += 1
                counts[gram], firsts[gram] = 0, place
            counts[gram] += 1
            places[kept], grams[kept] = place, gram
            kept += 1
        base += used
        if n < _FIRST_DUPLICATE:
            found[n - 2] = _top(counts[:used], firsts, letters, gaps, n)
        n_places = _repeated(places, grams, kept, counts)
        if n >= _FIRST_DUPLICATE:
            found[n - 2] = _duplicate(places[:n_places], grams, counts, letters, n)


@njit(cache=True, nogil=True)
def _repeated(places: Places, grams: Places, n_places: int, counts: Places) -> int:
    """Keeps the places whose n-gram occurs twice; how many they are."""
    kept = 0
    for k in range(n_places):
        if counts[grams[k]] > 1:
            places[kept], grams[kept] = places[k], grams[k]
            kept += 1
    return kept


@njit(cache=True, nogil=True)
def _top(counts: Places, firsts: Places, letters: Places, gaps: Places, n: int) -> int:
    """The characters in the most frequent n-gram, the first one among equals."""
    best, most = 0, 1
    for gram in range(len(counts)):
        if counts[gram] > most:
            best, most = gram, counts[gram]
    if most == 1:
        return 0
    start = firsts[best]
    return most * (letters[start + n] - letters[start] + gaps[start + n] - gaps[start + 1])


@njit(cache=True, nogil=True)
def _duplicate(places: Places, grams: Places, counts: Places, letters: Places, n: int) -> int:
    """The characters in words of n-grams seen before, reading on behind each; clears `counts`."""
    characters = end = 0
    for k in range(len(places)):
        place, gram = places[k], grams[k]
        if place < end:
            continue
        if counts[gram] == 0:
            end = place + n
            characters += letters[end] - letters[place]
        counts[gram] = 0
    return characters
