"""Benchmarks, as people use them, and leaks of them planted in text in many typographies."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.benchmarks import Benchmark, load_benchmark

# What is looked for in each: about 10,000 questions in all.
QUESTIONS = {
    "gsm8k-test": ("question", "answer"),
    "gsm8k-train-2000": ("question", "answer"),
    "mmlu-redux": ("question",),
    "HumanEval": ("prompt", "canonical_solution"),
    "truthfulqa-judge-dev": ("prompt",),
}


def read_benchmark(path: Path) -> Benchmark:
    """One of those, `NAME.jsonl.gz`."""
    name = path.name.partition(".")[0]
    return load_benchmark(path.read_bytes(), name, QUESTIONS[name])


def _spelled(first: int, lower: int) -> Callable[[str], str]:
    """Latin letters moved to those that start elsewhere in Unicode."""
    upper_case = {ord("A") + n: first + n for n in range(26)}
    lower_case = {ord("a") + n: lower + n for n in range(26)}
    return lambda text: text.translate(upper_case | lower_case)


VARIANTS: dict[str, Callable[[str], str]] = {
    "verbatim": str,
    "upper case": str.upper,
    "title case": str.title,
    "without punctuation": lambda text: "".join(
        c if c.isalnum() or c.isspace() else " " for c in text
    ),
    "other punctuation": lambda text: text.replace(" ", " — ").replace(".", "…"),
    "curly quotes": lambda text: text.replace("'", "’").replace('"', "“"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: "".join(
        chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text
    ),
    "mathematical bold": _spelled(0x1D400, 0x1D41A),
    "ligatures": lambda text: text.replace("fi", "\ufb01").replace("ff", "\ufb00"),
    "broken lines": lambda text: "\n\n".join(text.split(" ")),
    "no-break spaces": lambda text: text.replace(" ", "\u00a0"),
    "soft hyphens": lambda text: text.replace("e", "e\u00ad"),
    "zero-width spaces": lambda text: text.replace("a", "a\u200b"),
}


@dataclass(frozen=True)
class Planted:
    """A text that holds an item of a benchmark in one typography."""

    text: str
    benchmark: str
    item: str
    variant: str


def plant(
    benchmarks: Sequence[Benchmark], hosts: Sequence[str], each: int, min_words: int
) -> list[Planted]:
    """`each` passages of at least `min_words` words of every benchmark, in all typographies in
    turn, in the middle of the hosts. Texts are NFC, as a corpus is."""
    rng = random.Random(11)
    found: list[Planted] = []
    for source in benchmarks:
        sizeable = [passage for passage in source.passages if _words(passage[1]) >= min_words]
        for n, (item, text) in enumerate(rng.sample(sizeable, min(each, len(sizeable)))):
            variant = list(VARIANTS)[n % len(VARIANTS)]
            host = hosts[len(found) % len(hosts)].split(" ")
            at = rng.randrange(len(host))
            pieces = (" ".join(host[:at]), VARIANTS[variant](text), " ".join(host[at:]))
            whole = unicodedata.normalize("NFC", "\n".join(pieces))
            found.append(Planted(whole, source.name, item, variant))
    return found


def _words(text: str) -> int:
    """Runs of letters and digits: what counts as words, told apart from the code under test."""
    return len("".join(c if c.isalnum() else " " for c in text).split())
