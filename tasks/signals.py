"""What is measured of a document: its language and the heuristics of Gopher, C4 and FineWeb.

A signal is a number about one text, measured once and stored; which numbers condemn a document is
`tasks/select.py`'s business. The papers:

- Gopher: Rae et al., "Scaling language models", 2021, appendix A.1.1 and table A1
- C4: Raffel et al., "Exploring the limits of transfer learning", 2020, section 2.2
- FineWeb: Penedo et al., "The FineWeb datasets", 2024, section 3.6

Three units are shared by all of them. A **line** is what lies between line breaks and holds more
than white space. A **word** is a run of characters that are not white space; a character of a
script written without spaces (`UNSPACED_SCRIPTS`) is a word of its own, with nothing between it and
the next. A **character** is a Unicode code point, and a share of characters is of the whole text's.
White space, letters and digits are what Python's `isspace`, `isalpha` and `isalnum` say; `in any
case` speaks of ASCII letters.

`tasks/kernels/text_signals.py` counts, in one pass over a batch of texts; here the counts become
signals.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.store.schema import Schema

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

SIGNAL_NAMES = (
    "word_count",
    "mean_word_length",
    "hash_ratio",
    "ellipsis_ratio",
    "bullet_line_share",
    "ellipsis_line_share",
    "alphabetic_word_share",
    "stop_word_count",
    "unspaced_share",
    "duplicate_line_share",
    "duplicate_line_char_share",
    "duplicate_paragraph_share",
    "duplicate_paragraph_char_share",
    *(f"top_{n}gram_char_share" for n in TOP_NGRAMS),
    *(f"duplicate_{n}gram_char_share" for n in DUPLICATE_NGRAMS),
    "terminal_line_share",
    "javascript_line_share",
    "policy_line_share",
    "lorem_ipsum_count",
    "curly_bracket_count",
    "sentence_count",
    "punctuated_line_share",
    "short_line_share",
    "newline_ratio",
)
"""Every measured signal, in the order of its column; the functions below say what each one is."""

Counts = npt.NDArray[np.void]
Values = dict[str, npt.NDArray[np.float64]]

_COLUMNS = [
    ("id", pa.string()),
    ("digest", pa.string()),
    ("language", pa.string()),
    ("language_score", pa.float64()),
    ("language_from", pa.string()),
    ("quality", pa.float64()),
    ("topic", pa.string()),
    ("topic_score", pa.float64()),
    *((name, pa.float64()) for name in SIGNAL_NAMES),
]

# language_from: "model", "page" (its lang attribute; no score) or "none" (language is null).
# quality: the classifier's probability, null without one.
# topic: the topic model's best label and its probability, null without one.
SIGNALS = Schema("signals", pa.schema(_COLUMNS), tuple(name for name, _ in _COLUMNS))


def text_signals(texts: pa.Array | pa.ChunkedArray) -> dict[str, pa.Array]:
    """Each of SIGNAL_NAMES as a float64 array, a value per text, rounded by numpy to 6 decimals.

    `texts` are strings without nulls. Of a blank text every signal is 0.
    """
    from tasks.kernels.characters import tables
    from tasks.kernels.text_signals import count_texts

    counts, grams = count_texts(*_buffers(texts), tables())
    found = gopher_quality(counts) | gopher_repetition(counts, grams) | c4(counts) | fineweb(counts)
    return {name: pa.array(np.round(found[name], 6), pa.float64()) for name in SIGNAL_NAMES}


def _buffers(
    texts: pa.Array | pa.ChunkedArray,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Where each text starts and ends (texts + 1), and the bytes."""
    column = texts.cast(pa.large_string())
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not len(column):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    return bounds, np.frombuffer(data or b"", np.uint8)


def gopher_quality(counts: Counts) -> Values:
    """The measures behind Gopher's quality filter (Rae et al. 2021, A.1.1).

    - word_count: words with a letter or digit; mean_word_length: their mean number of characters
    - hash_ratio, ellipsis_ratio: occurrences of `#`, and of `...` or `…`, per word
    - bullet_line_share, ellipsis_line_share: of lines, those that begin with a bullet or a hyphen,
      those that end with an ellipsis
    - alphabetic_word_share: of words, those with a letter
    - stop_word_count: how many of the, be, to, of, and, that, have, with occur, between marks and
      in any case
    - unspaced_share: of words, those that are one letter or digit of `UNSPACED_SCRIPTS` (not
      Gopher's: it says where rules about words do not apply)
    """
    words, lines = counts["words"], counts["lines"]
    return {
        "word_count": counts["plain_words"].astype(np.float64),
        "mean_word_length": _ratio(counts["plain_characters"], counts["plain_words"]),
        "hash_ratio": _ratio(counts["hashes"], words),
        "ellipsis_ratio": _ratio(counts["ellipses"], words),
        "bullet_line_share": _ratio(counts["bullet_lines"], lines),
        "ellipsis_line_share": _ratio(counts["ellipsis_lines"], lines),
        "alphabetic_word_share": _ratio(counts["alphabetic_words"], words),
        "stop_word_count": counts["stop_words"].astype(np.float64),
        "unspaced_share": _ratio(counts["unspaced_words"], words),
    }


def gopher_repetition(counts: Counts, grams: npt.NDArray[np.int64]) -> Values:
    """The measures behind Gopher's repetition filter (Rae et al. 2021, table A1).

    - duplicate_line_share: of lines, those that repeat an earlier one; duplicate_line_char_share:
      of characters, those in such lines; the same for paragraphs, which empty lines part
    - top_Ngram_char_share: of characters, those in the most frequent N-gram of words, its spaces
      included, the first one among equals; 0 where none occurs twice
    - duplicate_Ngram_char_share: of characters, those in words of N-grams that repeat an earlier
      one; reading on behind each one found, so that no character counts twice
    """
    characters = counts["characters"]
    found: Values = {}
    for part in ("line", "paragraph"):
        repeated = counts[f"duplicate_{part}s"]
        in_repeated = counts[f"duplicate_{part}_characters"]
        found[f"duplicate_{part}_share"] = _ratio(repeated, counts[f"{part}s"])
        found[f"duplicate_{part}_char_share"] = _ratio(in_repeated, characters)
    for column, n in enumerate(TOP_NGRAMS):
        found[f"top_{n}gram_char_share"] = _ratio(grams[:, column], characters)
    for column, n in enumerate(DUPLICATE_NGRAMS, len(TOP_NGRAMS)):
        found[f"duplicate_{n}gram_char_share"] = _ratio(grams[:, column], characters)
    return found


def c4(counts: Counts) -> Values:
    """The measures behind C4's rules (Raffel et al. 2020, 2.2, and the code that made C4).

    C4 deletes lines and then judges what is left. Here no text is changed: the shares tell of the
    lines it would delete, and sentence_count counts sentences in the others only.

    - terminal_line_share: of lines, those that end in a terminal mark or a quotation mark, but not
      in an ellipsis
    - javascript_line_share, policy_line_share: of lines, those that mention JavaScript, and those
      with a phrase of `PHRASES` about policies, in any case
    - lorem_ipsum_count, curly_bracket_count: occurrences of `lorem ipsum`, in any
      case, and of `{`
    - sentence_count: sentences in lines of three words or more, none over 1,000 characters, that
      mention neither JavaScript nor a policy. A terminal mark before white space ends a sentence,
      one of a script without spaces anywhere, and so does the end of a line
    """
    lines = counts["lines"]
    return {
        "terminal_line_share": _ratio(counts["terminal_lines"], lines),
        "javascript_line_share": _ratio(counts["javascript_lines"], lines),
        "policy_line_share": _ratio(counts["policy_lines"], lines),
        "lorem_ipsum_count": counts["lorem_ipsums"].astype(np.float64),
        "curly_bracket_count": counts["curly_brackets"].astype(np.float64),
        "sentence_count": counts["sentences"].astype(np.float64),
    }


def fineweb(counts: Counts) -> Values:
    """The measures behind FineWeb's own filters (Penedo et al. 2024, 3.6, and its code).

    - punctuated_line_share: of lines, those that end in a terminal mark
    - short_line_share: of lines, those of at most 30 characters
    - newline_ratio: line breaks per word
    Its share of characters in duplicate lines is `duplicate_line_char_share`.
    """
    lines = counts["lines"]
    return {
        "punctuated_line_share": _ratio(counts["punctuated_lines"], lines),
        "short_line_share": _ratio(counts["short_lines"], lines),
        "newline_ratio": _ratio(counts["breaks"], counts["words"]),
    }


def _ratio(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """`part / whole`, and 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
