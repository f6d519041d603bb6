"""What must not be trained on: benchmarks, reading their files, and how much of one condemns."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self
from unicodedata import normalize

from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError, DataError
from tasks.store.pins import Pin, hold_file
from tasks.store.run import Run

HELDOUT = "heldout"
"""What the pinned held-out documents are called where benchmarks are named."""

NGRAMS_KEPT = 16
"""N-grams of a passage that a document's match keeps for the decision."""


class BenchmarkConfig(Config):
    """A benchmark whose items must not be trained on."""

    name: str = Field(min_length=1)
    """What matches and drops call it."""

    path: str
    """Path or URL of its JSONL file, plain or gzipped; pinned by content."""

    fields: tuple[str, ...] = Field(min_length=1)
    """Keys of a row whose text must not be found in the corpus, such as question and answer.
    A list of texts counts as several passages."""


class DecontaminateConfig(Config):
    """What is looked for and how much of it condemns a document."""

    benchmarks: tuple[BenchmarkConfig, ...] = ()
    """Benchmarks to look for."""

    ngram: int = Field(13, ge=2)
    """Words in an n-gram (Brown et al. 2020, Language Models are Few-Shot Learners, appendix C)."""

    min_ngrams: int = Field(1, ge=1, le=NGRAMS_KEPT)
    """Distinct n-grams of one passage, common phrases aside, that condemn a document. A single one
    does in Brown et al. 2020. A passage that has fewer must be found whole."""

    max_common: int = Field(10, ge=1)
    """An n-gram found in more than this many documents is a common phrase and ignored (10 in
    Brown et al. 2020)."""

    min_short_words: int = Field(8, ge=1)
    """Passages shorter than `ngram` words are matched whole, as consecutive words; those shorter
    than this too are trivial and not looked for (8 is the shortest in Brown et al. 2020)."""

    paragraph_overlap: float = Field(0.7, gt=0, le=1)
    """Part of the n-grams of one passage at or above which a document copies it, even where they
    are so widely copied that they look common; for passages of at least `ngram` n-grams. 0.7 as in
    PaLM (Chowdhery et al. 2022, section 8)."""

    heldout_overlap: float = Field(0.5, gt=0, le=1)
    """Part of a document's own n-grams at or above which one held-out document condemns it. Half,
    the share of a test text that Tulu 3 lets match (Lambert et al. 2024, section 3.2)."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in names:
            if names.count(name) > 1 or name == HELDOUT:
                raise ValueError(f"the benchmark name {name!r} is taken: give each its own name")
        return self


@dataclass(frozen=True)
class Rejected:
    """A row of a benchmark that could not be read: its 0-based line and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """Passages as (item, text); an item is "line.field", with ".position" inside a list."""

    name: str
    passages: tuple[tuple[str, str], ...]
    rejected: tuple[Rejected, ...]


def load_benchmark(data: bytes, name: str, fields: Sequence[str]) -> Benchmark:
    """Read a JSONL file, plain or gzipped. A row that does not parse is set aside with its reason.

    Texts become NFC, as those of a corpus are.

    Raises:
        DataError: a damaged gzip stream, or no readable row.
        ConfigError: a field that no row has.
    """
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"benchmark {name} is a damaged gzip file ({error}): fetch it again"
            ) from error
    passages: list[tuple[str, str]] = []
    rejected: list[Rejected] = []
    keys: set[str] = set()
    for line, raw in enumerate(data.splitlines()):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8-sig"))
            if not isinstance(row, dict):
                raise ValueError(f"found {type(row).__name__}, expected an object")
            found = [passage for key in fields for passage in _texts_of(row, key, line)]
        except (ValueError, RecursionError) as error:
            rejected.append(Rejected(line, str(error)))
            continue
        keys.update(row)
        passages += found
    if not keys:
        raise DataError(f"benchmark {name} has no readable row of {len(rejected)}; expected JSONL")
    if missing := sorted(set(fields) - keys):
        raise ConfigError(f"benchmark {name} has no field {missing}; its rows have {sorted(keys)}")
    return Benchmark(name, tuple(passages), tuple(rejected))


def _texts_of(row: dict[str, object], key: str, line: int) -> Iterator[tuple[str, str]]:
    value = row.get(key)
    if isinstance(value, str):
        yield f"{line}.{key}", _composed(value)
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        yield from ((f"{line}.{key}.{place}", _composed(part)) for place, part in enumerate(value))
    elif value is not None:
        raise ValueError(f"found {type(value).__name__} in {key}, expected text or a list of text")


def _composed(text: str) -> str:
    """`text` in NFC. Raises ValueError where it holds half of a surrogate pair, as JSON may."""
    text.encode()
    return normalize("NFC", text)


def pin_benchmarks(run: Run, config: DecontaminateConfig) -> tuple[Pin, ...]:
    """Each benchmark's file, pinned by content the first time it is seen, if it can be read."""
    return tuple(
        hold_file(
            run,
            f"benchmark-{benchmark.name}",
            benchmark.path,
            "benchmark",
            check=partial(load_benchmark, name=benchmark.name, fields=benchmark.fields),
        )
        for benchmark in config.benchmarks
    )
