"""Splitting text into paragraphs and sentences, as a library call.

Both give spans that cover the text from its first to its last character: nothing is lost, and
joining the pieces gives the text back. White space belongs to the piece before it.

    [text[start:end] for start, end in sentences(text, "en")]

Sentences are told by rules alone, after the ideas of Kiss and Strunk, "Unsupervised multilingual
sentence boundary detection", 2006, without its learning: what ends one is a terminal mark that is
no abbreviation, initial, ordinal or decimal point, and that no small letter follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

# Unicode's Sentence_Terminal (PropList.txt) for living scripts, those before white space apart
# from those of scripts that are written without it.
_SPACED = ".!?…\u037e\u0589\u061f\u06d4\u0964\u0965\u1362\u1367\u203c\u203d\u2047-\u2049"
_UNSPACED = "\u3002\uff01\uff0e\uff1f\uff61\u104a\u104b\u17d4\u17d5\u0f0d\u0f0e"
_CLOSING = "\"'”’»›」』）)\\]］】"

# A run of marks or of white space is tried from its first character only, so that the time is
# linear in the text whatever it holds.
_BLANK_LINE = r"(?<!\s)\s*\n[ \t\r]*\n\s*"
_END = re.compile(
    rf"(?<![{_SPACED}])(?P<mark>[{_SPACED}]++)(?:[{_CLOSING}]| »)*(?P<gap>\s+)"
    rf"|[{_UNSPACED}]+[{_CLOSING}]*\s*"
    rf"|{_BLANK_LINE}"
)
_PARAGRAPH_END = re.compile(_BLANK_LINE)
_LAST_WORD = re.compile(r"[^\s(\[{«„“\"'‘-]+$")
_OPENING = "\"'“”‘’«»„‚‹›¿¡([{-–—*•"

# What is written with a dot and goes on; lower case, without the last dot.
_ABBREVIATIONS = {
    "en": "mr mrs ms dr prof st sr jr rev hon gen col capt lt sgt gov sen rep messrs vs viz cf eg "
    "ie e.g i.e etc al fig figs nos vol vols pp p ch sec ed eds approx dept est inc ltd co corp "
    "jan feb mar apr jun jul aug sep sept oct nov dec mt ft",
    "de": "dr prof hr fr frl st bzw ca z.b d.h u.a usw vgl evtl ggf inkl nr str bd abb kap s sog "
    "z d u o bspw mio mrd jh jhd geb gest i.d.r o.g v.a",
    "fr": "m mm mme mlle dr pr st ste etc cf p ex env av apr chap fig vol éd n°",
    "es": "sr sra srta dr dra d da ud uds etc pág págs p ej núm vol cap av gral",
    "it": "sig sigg dott prof ing avv ecc pag pagg cap vol fig es n s",
    "pt": "sr sra srta dr dra prof etc pág págs vol cap núm av exmo",
    "nl": "dhr mevr mr dr prof ir ing bijv nl blz enz o.a d.w.z t.o.v nr ca evt",
    "sv": "t.ex bl.a m.m d.v.s osv dvs ca kl nr s st dr prof",
    "da": "f.eks bl.a m.m d.v.s osv ca kl nr s st dr prof hr fru",
    "ru": "г гг т т.е т.к т.д т.п др пр ул им руб коп тыс млн млрд см рис стр напр",
    "pl": "dr prof np m.in itd itp tzn tzw ul al r w nr str por św",
    "cs": "dr prof např tj tzv atd apod č str ul mj",
}
_KNOWN = {language: frozenset(words.split()) for language, words in _ABBREVIATIONS.items()}

# Languages that write ordinals, days and centuries as a number with a dot.
_ORDINALS = frozenset(
    [
        *("bs", "cs", "da", "de", "et", "eu", "fi", "hr", "hu", "is"),
        *("lb", "lv", "nb", "nn", "no", "pl", "sk", "sl", "sr", "tr"),
    ]
)


def paragraphs(text: str) -> list[Span]:
    """Spans (start, end) in characters of the paragraphs of `text`, which blank lines part."""
    return _spans(text, (found.end() for found in _PARAGRAPH_END.finditer(text)))


def sentences(text: str, language: str | None = None) -> list[Span]:
    """Spans (start, end) in characters of the sentences of `text`.

    `language` is an ISO 639-1 code; it adds that language's abbreviations and habits to the rules
    that hold for all. A blank line always ends a sentence, a single line break never does by
    itself. An empty text has no sentence.
    """
    ends = (
        found.end()
        for found in _END.finditer(text)
        if found["mark"] is None or _ends_sentence(text, found, language or "")
    )
    return _spans(text, ends)


def _spans(text: str, ends: Iterator[int]) -> list[Span]:
    spans: list[Span] = []
    start = 0
    for end in [*ends, len(text)]:
        if text[start:end].strip():
            spans.append((start, end))
            start = end
    if spans:
        spans[-1] = (spans[-1][0], len(text))
    elif text:
        spans.append((0, len(text)))
    return spans


def _ends_sentence(text: str, found: re.Match[str], language: str) -> bool:
    """Whether a terminal mark with white space behind it ends a sentence."""
    if "\n" in found["gap"] and _PARAGRAPH_END.fullmatch(found["gap"]):
        return True
    after = text[found.end() : found.end() + 8].lstrip(_OPENING)
    if after[:1].islower():
        return False
    if found["mark"] != ".":
        return True
    before = _LAST_WORD.search(text, max(0, found.start() - 24), found.start())
    word = before.group() if before else ""
    if len(word) == 1 and word.isalpha() and word.isupper():
        return False  # an initial
    if word.isdecimal() and len(word) < 4 and language in _ORDINALS:
        return False
    return word.lower() not in _KNOWN.get(language, frozenset())
