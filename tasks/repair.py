"""Repair of damaged text as ftfy does it, but only where ftfy would change something.

`repair_text` gives what `ftfy.fix_text` gives (Speer 2019), and `filter_characters` takes out the
families of special characters that a corpus does not want. Both look at most text once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import ftfy


@cache
def ftfy_options(fix_encoding: bool = True) -> ftfy.TextFixerConfig:
    """ftfy's defaults but for three options.

    `uncurl_quotes` is off, since curly quotes are what the author wrote; `unescape_html`, since an
    entity that is left after parsing is meant; and `fix_character_width`, since it makes Latin
    punctuation of Chinese and Japanese. That is: unescape_html=False, remove_terminal_escapes=True,
    fix_encoding as given, restore_byte_a0=True, replace_lossy_sequences=True,
    decode_inconsistent_utf8=True, fix_c1_controls=True, fix_latin_ligatures=True,
    fix_character_width=False, uncurl_quotes=False, fix_line_breaks=True, fix_surrogates=True,
    remove_control_chars=True, normalization="NFC", max_decode_length=1000000.
    """
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        fix_encoding=fix_encoding,
        fix_character_width=False,
        uncurl_quotes=False,
        explain=False,
    )


def repair_text(text: str, fix_encoding: bool = True) -> str:
    """What `ftfy.fix_text(text, ftfy_options(fix_encoding))` returns, an order of magnitude sooner.

    ftfy takes lines one by one and leaves a line as it is unless it finds bad sequences in it, or
    a character that one of its fixers replaces, or composition changes it. So lines in which
    `_suspicious` finds neither of the first two are only composed; if that changes them, they are
    looked at again, as ftfy does. The rest is ftfy's.
    """
    if "\r" in text and "\r\r\n" not in text:
        # As ftfy does at last, and as nothing before depends on; of \r\r\n it makes two lines.
        text = text.replace("\r\n", "\n")
    raw = text.encode("utf-8", "surrogatepass")
    if text.isascii() and len(raw) == len(raw.translate(None, _ASCII_CONTROLS)):
        return text
    import ftfy

    options = ftfy_options(fix_encoding)
    # A longer text may have lines that ftfy takes in parts; RE2 passes over surrogates.
    if len(text) > options.max_decode_length or _SURROGATE.search(raw):
        return ftfy.fix_text(text, options)
    at, pieces = 0, []
    for start, end in _suspicious_lines(raw):
        pieces.append(_composed(raw[at:start].decode(), fix_encoding))
        pieces.append(ftfy.fix_text(raw[start:end].decode(), options))
        at = end
    pieces.append(_composed(raw[at:].decode() if at else text, fix_encoding))
    return "".join(pieces)


def _composed(lines: str, fix_encoding: bool) -> str:
    composed = unicodedata.normalize("NFC", lines)
    return lines if composed == lines else repair_text(composed, fix_encoding)


_ASCII_CONTROLS = bytes((*range(9), 0x0B, *range(0x0D, 0x20), 0x7F))
_SURROGATE = re.compile(rb"\xed[\xa0-\xbf]")


def _suspicious_lines(raw: bytes) -> Iterator[tuple[int, int]]:
    """Where the lines of UTF-8 text start and end, line break included, that ftfy may change.

    A match may start in one line and end in the next: then it is both, since it may hide one that
    starts in its second half.
    """
    done = 0
    for found in _suspicious().finditer(raw):
        if found.end() <= done:
            continue
        start = max(done, raw.rfind(b"\n", 0, found.start()) + 1)
        done = raw.find(b"\n", max(found.end() - 1, found.start())) + 1 or len(raw)
        yield start, done


@cache
def _suspicious() -> Any:
    """A pattern that is found in every line that ftfy's fixers would change before composition.

    It is ftfy's own expression for badness, written for RE2, which takes time linear in the text
    however many alternatives there are, and all characters that its other fixers look for.
    """
    import re2
    from ftfy.badness import BADNESS_RE
    from ftfy.chardata import CONTROL_CHARS, LIGATURES

    characters = {*CONTROL_CHARS, *LIGATURES, *map(ord, "\r\u2028\u2029"), *range(0x80, 0xA0)}
    touched = "".join(f"\\x{{{code:x}}}" for code in sorted(characters))
    return re2.compile(f"[{touched}]|{_for_re2(BADNESS_RE.pattern)}".encode())


_VERBOSE = re.compile(r"(\[[^]]*\])|\s+|#[^\n]*")


def _for_re2(pattern: str) -> str:
    """A verbose pattern without its blanks and comments, finding at least what it finds.

    RE2 knows no verbose patterns and only ASCII in `\\s` and `\\w`: any character stands for one.
    A text there is many lines, and `^` the start of each.
    """
    plain = _VERBOSE.sub(lambda found: found.group(1) or "", pattern)
    return "(?m:" + plain.replace("\\s", "(?s:.)").replace("\\w", "(?s:.)") + ")"


Family = Literal[
    "noncharacters", "soft_hyphens", "zero_width", "joiners", "bidi_controls", "private_use",
    "replacement", "variation_selectors", "tags", "box_drawing", "spaces",
]  # fmt: skip
"""A family of special characters that can be taken out of text."""

_LAST_OF_PLANES = range(0xFFFF, 0x110000, 0x10000)
FAMILIES: dict[Family, tuple[str, str]] = {
    "noncharacters": (
        "\ufdd0-\ufdef" + "".join(f"{chr(last - 1)}{chr(last)}" for last in _LAST_OF_PLANES),
        "",
    ),
    "soft_hyphens": ("\xad", ""),
    "zero_width": ("\u180e\u200b\u2060-\u2064", ""),
    "joiners": ("\u034f\u200c\u200d", ""),
    "bidi_controls": ("\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069", ""),
    "private_use": ("\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd", ""),
    "replacement": ("\ufffd", ""),
    "variation_selectors": ("\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef", ""),
    "tags": ("\U000e0001\U000e0020-\U000e007f", ""),
    "box_drawing": ("\u2500-\u259f", " "),
    "spaces": ("\xa0\u1680\u2000-\u200a\u202f\u205f\u3000", " "),
}  # fmt: skip
"""The characters of each family, as in a character class, and what takes their place."""


def filter_characters(text: str, families: tuple[Family, ...]) -> str:
    """`text` with the characters of `families` removed, or replaced as FAMILIES says.

    Text in NFC stays in NFC.
    """
    if text.isascii():
        return text
    raw = text.encode("utf-8", "surrogatepass")
    for gate, pattern, replacement in _filters(families):
        if gate.search(raw):
            text = unicodedata.normalize("NFC", pattern.sub(replacement, text))
    return text


@cache
def _filters(families: tuple[Family, ...]) -> list[tuple[Any, re.Pattern[str], str]]:
    """One pass for each replacement: a gate for RE2, then what replaces, and by what."""
    import re2

    by_replacement: dict[str, str] = {}
    for name in families:
        characters, replacement = FAMILIES[name]
        by_replacement[replacement] = by_replacement.get(replacement, "") + characters
    return [
        (re2.compile(f"[{found}]".encode()), re.compile(f"[{found}]"), replacement)
        for replacement, found in sorted(by_replacement.items())
    ]
