"""What is measured of a document: its language and the heuristics of Gopher, C4 and FineWeb.

A signal is a number about one text, measured once and stored; which numbers condemn a document is
`tasks/select.py`'s business. The papers:

- Gopher: Rae et al., "Scaling language models", 2021, appendix A.1.1 and table A1
- C4: Raffel et al., "Exploring the limits of transfer learning", 2020, section 2.2
- FineWeb: Penedo et al., "The FineWeb datasets", 2024, section 3.6

Three units are shared by all of them. A **line** is what lies between line breaks and holds more
than white space. A **word** is a run of characters that are not white space; a character of a
script written without spaces (`UNSPACED`) is a word of its own, with nothing between it and the
next. A **character** is a Unicode code point, and a share of characters is of the whole text's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from llm.config import Config
from tasks.language import FastTextModel, LanguageModel
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
"""Every measured signal, in the order of its column; `measure` says what each one is."""

_COLUMNS = [
    ("id", pa.string()),
    ("digest", pa.string()),
    ("language", pa.string()),
    ("language_score", pa.float64()),
    ("language_from", pa.string()),
    ("quality", pa.float64()),
    *((name, pa.float64()) for name in SIGNAL_NAMES),
]

# language_from: "model", "page" (its lang attribute; no score) or "none" (language is null).
# quality: the classifier's probability, null without one.
SIGNALS = Schema("signals", pa.schema(_COLUMNS), tuple(name for name, _ in _COLUMNS))


class AnnotateConfig(Config):
    """Which models tell language and quality. What the heuristics measure is fixed: it is the
    stage's version."""

    language_model: str | None = None
    """Path or URL of fastText's lid.176 (Joulin et al. 2016), .bin or .ftz; without one a
    document's language is what its page says. Pinned by content."""

    language_model_sha256: str | None = None
    """What the language model's sha256 must be, if it is to be checked."""

    quality_model: str | None = None
    """Path or URL of a supervised fastText classifier of good against ordinary text, after Brown
    et al. 2020, appendix A, and DCLM (Li et al. 2024). Pinned by content."""

    quality_model_sha256: str | None = None
    """What the quality model's sha256 must be, if it is to be checked."""

    quality_label: str = "hq"
    """The classifier's label for good text, without `__label__`; its probability is the signal."""


def annotate_shard(
    documents: pa.Table,
    config: AnnotateConfig,
    lid: LanguageModel | None,
    quality: FastTextModel | None,
) -> pa.Table:
    """The signals of each document: one row of SIGNALS per row of DOCUMENTS, in the same order."""
    rows: list[dict[str, object]] = []
    columns = ["id", "digest", "text", "language"]
    for batch in documents.select(columns).to_batches(max_chunksize=256):
        part = batch.to_pydict()
        texts = part["text"]
        languages = _languages(texts, part["language"], lid)
        scores = quality.probability(texts, config.quality_label) if quality else None
        for i, text in enumerate(texts):
            code, score, origin = languages[i]
            row: dict[str, object] = {"id": part["id"][i], "digest": part["digest"][i]}
            row |= {"language": code, "language_score": score, "language_from": origin}
            row["quality"] = scores[i] if scores else None
            rows.append(row | measure(text))
    return SIGNALS.table(rows)


def _languages(
    texts: Sequence[str], pages: Sequence[str | None], lid: LanguageModel | None
) -> list[tuple[str | None, float | None, str]]:
    """(language, score, where it is from) of each text."""
    if lid is None:
        return [(page, None, "page") if page else (None, None, "none") for page in pages]
    codes, scores = lid.predict(texts)
    return [
        (code, score, "model") if code else (None, None, "none")
        for code, score in zip(codes, scores, strict=True)
    ]


def measure(text: str) -> dict[str, float]:
    """Every signal of `text`, rounded to 6 decimals; of a blank text all are 0."""
    words = Words.of(text)
    if not words.ids:
        return dict.fromkeys(SIGNAL_NAMES, 0.0)
    lines = [line for line in text.split("\n") if line.strip()]
    found = (
        gopher_quality(text, words, lines)
        | gopher_repetition(text, words, lines)
        | c4(text, lines)
        | fineweb(text, words, lines)
    )
    return {name: round(float(found[name]), 6) for name in SIGNAL_NAMES}


UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"  # kana and iteration marks
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
)
"""The scripts that put no space between words, as the inside of a character class."""

_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_UNSPACED = re.compile(rf"[{UNSPACED}]")


@dataclass(frozen=True)
class Words:
    """The words of a text: `ids[i]` is the i-th word's place in `vocabulary`, and `spans[i]` counts
    the characters of the first i words with one space for each gap of white space before a word."""

    vocabulary: list[str]
    ids: list[int]
    spans: list[int]
    gaps: list[bool]

    @classmethod
    def of(cls, text: str) -> Words:
        index: dict[str, int] = {}
        ids: list[int] = []
        lengths: list[int] = []
        gaps: list[bool] = []
        end = -1
        for found in _WORD.finditer(text):
            word = found.group()
            ids.append(index.setdefault(word, len(index)))
            gaps.append(found.start() != end)
            lengths.append(len(word) + gaps[-1])
            end = found.end()
        return cls(list(index), ids, [0, *accumulate(lengths)], gaps)


def gopher_quality(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    """The measures behind Gopher's quality filter (Rae et al. 2021, A.1.1).

    - word_count: words with a letter or digit; mean_word_length: their mean number of characters
    - hash_ratio, ellipsis_ratio: occurrences of `#`, and of `...` or `…`, per word
    - bullet_line_share, ellipsis_line_share: of lines, those that begin with a bullet or a hyphen,
      those that end with an ellipsis
    - alphabetic_word_share: of words, those with a letter
    - stop_word_count: how many of the, be, to, of, and, that, have, with occur, in any case
    - unspaced_share: of words, those that are one character of `UNSPACED` (not Gopher's: it says
      where rules about words do not apply)
    """
    counts = Counter(words.ids)
    total = len(words.ids)
    plain = letters = plain_chars = unspaced = 0
    stop_words = set()
    for number, word in enumerate(words.vocabulary):
        count = counts[number]
        if word.isalpha() or any(map(str.isalpha, word)):
            letters += count
        elif not any(map(str.isalnum, word)):
            continue
        plain += count
        plain_chars += count * len(word)
        if _UNSPACED.match(word):
            unspaced += count
        bare = word.strip(_MARKS_AROUND).lower()
        if bare in STOP_WORDS:
            stop_words.add(bare)
    return {
        "word_count": plain,
        "mean_word_length": plain_chars / plain if plain else 0.0,
        "hash_ratio": text.count("#") / total,
        "ellipsis_ratio": (text.count("...") + text.count("…")) / total,
        "bullet_line_share": _share(line.lstrip().startswith(BULLETS) for line in lines),
        "ellipsis_line_share": _share(line.rstrip().endswith(("...", "…")) for line in lines),
        "alphabetic_word_share": letters / total,
        "stop_word_count": len(stop_words),
        "unspaced_share": unspaced / total,
    }


STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "◦", "▪", "●", "*", "-")
_MARKS_AROUND = ".,;:!?\"'()[]“”‘’«»*_"


def gopher_repetition(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    """The measures behind Gopher's repetition filter (Rae et al. 2021, table A1).

    - duplicate_line_share: of lines, those that repeat an earlier one; duplicate_line_char_share:
      of characters, those in such lines; the same for paragraphs, which blank lines part
    - top_Ngram_char_share: of characters, those in the most frequent N-gram of words, its spaces
      included, the first one among equals; 0 where none occurs twice
    - duplicate_Ngram_char_share: of characters, those in words of N-grams that repeat an earlier
      one; reading on behind each one found, so that no character counts twice
    """
    paragraphs = [part for part in _PARAGRAPH_BREAK.split(text) if part.strip()]
    size = len(text)
    line_count, line_chars = _duplicates(lines)
    paragraph_count, paragraph_chars = _duplicates(paragraphs)
    found = {
        "duplicate_line_share": line_count / len(lines),
        "duplicate_line_char_share": line_chars / size,
        "duplicate_paragraph_share": paragraph_count / len(paragraphs),
        "duplicate_paragraph_char_share": paragraph_chars / size,
    }
    grams = words.ids
    for n in range(2, DUPLICATE_NGRAMS[-1] + 1):
        grams = _longer(grams, words.ids[n - 1 :], len(words.vocabulary))
        if n in TOP_NGRAMS:
            found[f"top_{n}gram_char_share"] = _top_chars(grams, words, n) / size
        else:
            found[f"duplicate_{n}gram_char_share"] = _duplicate_chars(grams, words, n) / size
    return found


_PARAGRAPH_BREAK = re.compile(r"\n{2,}")


def _duplicates(parts: list[str]) -> tuple[int, int]:
    """How many of `parts` repeat an earlier one, and their characters."""
    seen: set[str] = set()
    count = chars = 0
    for part in parts:
        if part in seen:
            count += 1
            chars += len(part)
        seen.add(part)
    return count, chars


def _longer(grams: list[int], following: list[int], n_words: int) -> list[int]:
    """The (n+1)-grams at each place, from the n-grams there and the words that follow them.

    Numbers stand for n-grams: equal ones for equal n-grams, in order of first appearance.
    """
    index: dict[int, int] = {}
    return [
        index.setdefault(gram * n_words + word, len(index))
        for gram, word in zip(grams, following, strict=False)
    ]


def _top_chars(grams: list[int], words: Words, n: int) -> int:
    if not grams:
        return 0
    gram, count = Counter(grams).most_common(1)[0]
    if count == 1:
        return 0
    first = grams.index(gram)
    return count * (words.spans[first + n] - words.spans[first] - words.gaps[first])


def _duplicate_chars(grams: list[int], words: Words, n: int) -> int:
    seen: set[int] = set()
    chars = place = 0
    while place < len(grams):
        gram = grams[place]
        if gram in seen:
            end = place + n
            chars += words.spans[end] - words.spans[place] - sum(words.gaps[place:end])
            place = end
        else:
            seen.add(gram)
            place += 1
    return chars


def c4(text: str, lines: list[str]) -> dict[str, float]:
    """The measures behind C4's rules (Raffel et al. 2020, 2.2, and the code that made C4).

    C4 deletes lines and then judges what is left. Here no text is changed: the shares tell of the
    lines it would delete, and sentence_count counts sentences in the others only.

    - terminal_line_share: of lines, those that end in a terminal mark or a quotation mark, but not
      in an ellipsis
    - javascript_line_share, policy_line_share: of lines, those that mention JavaScript, and those
      with a phrase of `POLICY_PHRASES`
    - lorem_ipsum_count, curly_bracket_count: occurrences of `lorem ipsum` and of `{`
    - sentence_count: sentences in lines of three words or more, none over 1,000 characters, that
      mention neither JavaScript nor a policy. A terminal mark before white space ends a sentence,
      one of a script without spaces anywhere, and so does the end of a line
    """
    javascript = policy = terminal = sentences = 0
    for line in lines:
        lower = line.lower()
        has_script = "javascript" in lower
        has_policy = any(phrase in lower for phrase in POLICY_PHRASES)
        javascript += has_script
        policy += has_policy
        terminal += _is_terminal(line)
        if not (has_script or has_policy) and _is_sentence_like(line):
            sentences += _sentences(line)
    return {
        "terminal_line_share": terminal / len(lines),
        "javascript_line_share": javascript / len(lines),
        "policy_line_share": policy / len(lines),
        "lorem_ipsum_count": text.lower().count("lorem ipsum"),
        "curly_bracket_count": text.count("{"),
        "sentence_count": sentences,
    }


POLICY_PHRASES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)

SPACED_MARKS = (
    ".!?\u037e\u0589\u061d\u061e\u061f\u06d4\u0964\u0965\u1362\u1367\u203c\u203d\u2047-\u2049"
)
UNSPACED_MARKS = "\u0f0d\u0f0e\u104a\u104b\u17d4\u17d5\u3002\uff01\uff0e\uff1f\uff61"
"""Terminal marks: Unicode's Sentence_Terminal (PropList.txt) for living scripts, with the Greek
question mark and the Tibetan shad; those of `UNSPACED` scripts apart."""

_CLOSING = "\"'”’»›」』）)]"
_END_RUN = re.compile(rf"[{SPACED_MARKS}{UNSPACED_MARKS}{re.escape(_CLOSING)}]+")
_SPACED_MARK = re.compile(rf"[{SPACED_MARKS}]")
_UNSPACED_MARK = re.compile(rf"[{UNSPACED_MARKS}]")
_PUNCTUATED = re.compile(rf"[{SPACED_MARKS}{UNSPACED_MARKS}]$")
_MIN_LINE_WORDS = 3
_MAX_WORD_CHARS = 1000


def _is_sentence_like(line: str) -> bool:
    words = _WORD.findall(line)
    return len(words) >= _MIN_LINE_WORDS and max(map(len, words)) <= _MAX_WORD_CHARS


def _is_terminal(line: str) -> bool:
    line = line.rstrip()
    return line.endswith(('"', "'")) or (
        _PUNCTUATED.search(line.rstrip(_CLOSING)) is not None and not line.endswith("...")
    )


def _sentences(line: str) -> int:
    count = end = 0
    for run in _END_RUN.finditer(line):
        at_space = run.end() == len(line) or line[run.end()].isspace()
        marks = run.group()
        if _UNSPACED_MARK.search(marks) or (at_space and _SPACED_MARK.search(marks)):
            count, end = count + 1, run.end()
    return count + bool(line[end:].strip())


def fineweb(text: str, words: Words, lines: list[str]) -> dict[str, float]:
    """The measures behind FineWeb's own filters (Penedo et al. 2024, 3.6, and its code).

    - punctuated_line_share: of lines, those that end in a terminal mark
    - short_line_share: of lines, those of at most 30 characters
    - newline_ratio: line breaks per word
    Its share of characters in duplicate lines is `duplicate_line_char_share`.
    """
    return {
        "punctuated_line_share": _share(bool(_PUNCTUATED.search(line)) for line in lines),
        "short_line_share": _share(len(line) <= 30 for line in lines),
        "newline_ratio": text.count("\n") / len(words.ids),
    }


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values)
