"""What a canary's text says: personal data, near-duplicates, leaks and spam, all made up.

Each function takes a real text and gives it one defect, drawn from the generator it is handed: the
same generator, the same canary. `tasks/planting.py` chooses the texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Shingles = Callable[[str], npt.NDArray[np.uint64]]

# A word, or part of one: scripts without spaces would otherwise give a sentence.
_PIECE = re.compile(r"\w{1,12}")
_GAP = re.compile(r"\s+")


def insert(text: str, values: Sequence[str], rng: Random) -> tuple[str, list[tuple[int, int]]]:
    """`text` with the values between its words, no two at one place, and where each stands.

    Where it has fewer gaps than there are values, the last ones are left out.
    """
    gaps = [gap.start() for gap in _GAP.finditer(text)]
    places = sorted(rng.sample(gaps, min(len(values), len(gaps))))
    result, spans, done = "", [], 0
    for value, place in zip(values, places, strict=False):
        result += text[done:place] + " "
        spans.append((len(result), len(result) + len(value)))
        result += value
        done = place
    return result + text[done:], spans


# personal data


def email(rng: Random) -> str:
    first = rng.choice(["anna", "boris", "chen", "dora", "emil", "farah", "goran", "hana"])
    last = rng.choice(["bell", "carver", "dupont", "eriksen", "fuchs", "garcia", "hale"])
    domain = rng.choice(["example.com", "mail.example.org", "example.net", "example.co.uk"])
    return f"{first}{rng.choice(['.', '_', '-', '+'])}{last}{rng.randrange(1000, 10000)}@{domain}"


def phone(rng: Random) -> str:
    """Numbers kept for fiction: 555-01xx in North America, what Ofcom set aside in Britain."""
    area, line = rng.choice([202, 212, 312, 415, 617]), rng.randrange(100, 200)
    london = rng.randrange(100, 1000)
    return rng.choice(
        [
            f"+1 {area}-555-0{line}",
            f"({area}) 555-0{line}",
            f"{area}.555.0{line}",
            f"{area}-555-0{line}",
            f"+44 20 7946 0{london}",
            f"+442079460{london}",
        ]
    )


def iban(rng: Random) -> str:
    """With the check digits of ISO 7064 (mod 97, 10), in one run or in groups of four."""
    country, letters, digits = rng.choice([("DE", 0, 18), ("ES", 0, 20), ("GB", 4, 14)])
    account = "".join(rng.choices("ABCDEFGHIKLMNOPRSTUW", k=letters)) + _digits(rng, digits)
    moved = "".join(str(int(letter, 36)) for letter in account + country + "00")
    number = f"{country}{98 - int(moved) % 97:02d}{account}"
    grouped = " ".join(number[at : at + 4] for at in range(0, len(number), 4))
    return rng.choice([number, grouped])


def credit_card(rng: Random) -> str:
    """16 digits of which the last is that of Luhn (ISO/IEC 7812-1)."""
    digits = rng.choice(["4", "51", "55", "6011"])
    digits += _digits(rng, 15 - len(digits))
    doubled = [int(d) * (2 - place % 2) for place, d in enumerate(digits)]
    digits += str(-sum(n // 10 + n % 10 for n in doubled) % 10)
    return rng.choice(["", " ", "-"]).join(digits[at : at + 4] for at in range(0, 16, 4))


def ip_address(rng: Random) -> str:
    """A public address, of version 4 or 6."""
    if rng.random() < 0.5:
        parts = [rng.choice([23, 45, 81, 93, 130, 185]), *(rng.randrange(1, 255) for _ in "abc")]
        return ".".join(map(str, parts))
    groups = [f"{rng.randrange(0x1000, 0x10000):x}" for _ in range(7)]
    return ":".join([f"2a0{rng.randrange(16):x}", *groups])


def mac_address(rng: Random) -> str:
    """Locally administered, so that no maker gave it to a device."""
    parts = [rng.choice("048c") + "2", *(f"{rng.randrange(256):02x}" for _ in range(5))]
    return rng.choice([":", "-"]).join(parts)


def us_ssn(rng: Random) -> str:
    """Of an area from 900 on, which no social security number has."""
    area, group, serial = rng.randrange(900, 1000), rng.randrange(1, 100), rng.randrange(1, 10_000)
    return f"{area}-{group:02d}-{serial:04d}"


def crypto_address(rng: Random) -> str:
    """A Bitcoin address of no known key: base 58 with the first four bytes of a double sha256."""
    payload = bytes([0, *(rng.randrange(1, 256) for _ in range(20))])
    number = int.from_bytes(payload + sha256(sha256(payload).digest()).digest()[:4], "big")
    letters = ""
    while number:
        number, rest = divmod(number, 58)
        letters = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[rest] + letters
    return "1" + letters


def _digits(rng: Random, n: int) -> str:
    return "".join(rng.choices("0123456789", k=n))


# By Presidio's name of the type.
PERSONAL: dict[str, Callable[[Random], str]] = {
    "CREDIT_CARD": credit_card,
    "CRYPTO": crypto_address,
    "EMAIL_ADDRESS": email,
    "IBAN_CODE": iban,
    "IP_ADDRESS": ip_address,
    "MAC_ADDRESS": mac_address,
    "PHONE_NUMBER": phone,
    "US_SSN": us_ssn,
}


# near-duplicates


def shingles_of(ngram: int, by_letter: bool) -> Shingles:
    """What gives the distinct hashes of a text's shingles, as duplicates are compared by."""
    from tasks.kernels.words import hash_units, ngram_hashes

    def shingles(text: str) -> npt.NDArray[np.uint64]:
        units, _ = hash_units(pa.array([text], pa.large_string()), by_letter)
        return np.unique(ngram_hashes(units, min(ngram, max(1, len(units)))))

    return shingles


def jaccard(one: npt.NDArray[np.uint64], two: npt.NDArray[np.uint64]) -> float:
    """The similarity of two sets, each sorted and distinct; of two empty ones 1."""
    common = len(np.intersect1d(one, two, assume_unique=True))
    union = len(one) + len(two) - common
    return common / union if union else 1.0


def edited(text: str, similarity: float, shingles: Shingles, rng: Random) -> tuple[str, float]:
    """`text` with as many words changed as leave it at least so similar, and how similar it is.

    A word becomes another of the same text. One word is changed at least, where `similarity` is
    under 1, however much that costs a short text.
    """
    spans = [found.span() for found in _PIECE.finditer(text)]
    if similarity == 1 or not spans:
        return text, 1.0
    others = [text[slice(*rng.choice(spans))] for _ in spans]
    changes = list(zip(spans, others, strict=True))
    rng.shuffle(changes)
    before = shingles(text)

    def after(n: int) -> tuple[str, float]:
        changed = _changed(text, changes[:n])
        return changed, jaccard(before, shingles(changed))

    low, high = 1, len(changes) + 1
    best = after(low)
    while high - low > 1:
        middle = (low + high) // 2
        tried = after(middle)
        if tried[1] >= similarity:
            low, best = middle, tried
        else:
            high = middle
    return best


def _changed(text: str, changes: Sequence[tuple[tuple[int, int], str]]) -> str:
    parts, done = [], 0
    for (start, end), word in sorted(changes):
        parts += [text[done:start], word]
        done = end
    return "".join([*parts, text[done:]])


# leaks

LEAKS: dict[str, Callable[[str, Random], str]] = {
    "verbatim": lambda passage, _: passage,
    "upper_case": lambda passage, _: passage.upper(),
    "punctuation": lambda passage, rng: "".join(
        word + rng.choice([" ", ", ", "; ", " - ", "\n", "\n\n"]) for word in passage.split()
    ),
}
"""How a benchmark's passage is written in a document that leaks it."""


# spam


@dataclass(frozen=True)
class Spam:
    """A defect that one of the rules with these reasons is to drop a document for.

    `spaced` ones mean something in scripts with spaces between words only, `english` ones in
    English.
    """

    make: Callable[[str, Random], str]
    reasons: Collection[str]
    spaced: bool = False
    english: bool = False


STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])


def _each_word(write: Callable[[str], str]) -> Callable[[str, Random], str]:
    return lambda text, _: " ".join(map(write, text.split()))


def _lines_of(n: int, begin: str) -> Callable[[str, Random], str]:
    def make(text: str, _: Random) -> str:
        words = text.split()
        lines = (" ".join(words[at : at + n]) for at in range(0, len(words), n))
        return "\n".join(begin + line for line in lines)

    return make


def _numbers(text: str, rng: Random) -> str:
    return " ".join(
        word if place % 3 == 0 else str(rng.randrange(10, 10_000))
        for place, word in enumerate(text.split())
    )


def _without_spaces(text: str, _: Random) -> str:
    words = text.split()
    return " ".join("".join(words[at : at + 5]) for at in range(0, len(words), 5))


def _without_stop_words(text: str, _: Random) -> str:
    return " ".join(w for w in text.split() if re.sub(r"\W", "", w).lower() not in STOP_WORDS)


def _without_marks(text: str, _: Random) -> str:
    return re.sub(r"[^\w\s]", "", text)


SPAM: dict[str, Spam] = {
    "few_words": Spam(lambda text, _: text[:25], {"gopher_few_words"}),
    "hash_signs": Spam(_each_word("# {}".format), {"gopher_hashes"}),
    "ellipses": Spam(_each_word("{} ...".format), {"gopher_ellipses"}),
    "bullets": Spam(_lines_of(8, "• "), {"gopher_bullet_lines"}),
    "numbers": Spam(_numbers, {"gopher_alphabetic"}, spaced=True),
    "words_run_together": Spam(_without_spaces, {"gopher_long_words"}, spaced=True),
    "no_stop_words": Spam(_without_stop_words, {"gopher_stop_words"}, spaced=True, english=True),
    "repeated_line": Spam(
        lambda text, _: "\n".join([" ".join(text.split())[:200]] * 20),
        {"gopher_duplicate_line_share", "gopher_duplicate_line_char_share",
         "fineweb_duplicate_chars"},
    ),
    "repeated_phrase": Spam(
        lambda text, _: " ".join(_PIECE.findall(text)[:3] * 60),
        {"gopher_top_2gram", "gopher_top_3gram", "gopher_top_4gram"},
    ),
    "lorem_ipsum": Spam(
        lambda text, _: f"Lorem ipsum dolor sit amet. {text}", {"c4_lorem_ipsum"}
    ),
    "curly_brackets": Spam(
        lambda text, _: f"{text}\nif (open) {{ close(); }}", {"c4_curly_brackets"}
    ),
    "no_punctuation": Spam(_without_marks, {"c4_few_sentences", "fineweb_punctuation"}),
    "short_lines": Spam(
        _lines_of(2, ""), {"fineweb_short_lines", "fineweb_newlines"}, spaced=True
    ),
}  # fmt: skip


def spam_for(text: str, language: str | None, families: Collection[str], turn: int) -> str | None:
    """The family of spam that is this text's turn, of those that can be made of it."""
    words = text.split()
    spaced = len(text) < 15 * len(words)
    fitting = [
        name
        for name in sorted(families)
        if (spaced or not SPAM[name].spaced) and (language == "en" or not SPAM[name].english)
    ]
    return fitting[turn % len(fitting)] if fitting else None
