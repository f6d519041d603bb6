"""Personal data in texts: Presidio's findings, at the speed of a scan over bytes.

Presidio reads about 0.4 MB/s, and most of a text can hold no finding. A kernel finds the windows
that can (`tasks/kernels/pii.py` says why nothing is lost), over all texts of a batch at once, and
Presidio reads those alone. With the `no_op` engine the findings (type, start, end, score) are those
of `AnalyzerEngine.analyze` over each whole text with the same recognisers, entities and threshold,
but for two limits: libphonenumber gives up on a text after 65,535 wrong candidates, and an e-mail
address longer than 10,000 characters is read in parts.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from llm.errors import ConfigError
from tasks.phone_digits import Automaton, phone_automaton

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

    from tasks.kernels.pii_types import Rules


class Finding(NamedTuple):
    """One piece of personal data: Presidio's type and score, offsets in characters of the text."""

    type: str
    start: int
    end: int
    score: float


# Presidio's e-mail pattern is quadratic in the length of a run without spaces, and would time out
# by the wall clock. spaCy refuses a million characters, and its memory grows with the length.
_WINDOW_LIMIT = 10_000
_CHUNK_LIMIT = 100_000

# Where what is longer is cut, best first; with neither in reach, anywhere.
_CUTS = (re.compile(r"\n"), re.compile(r"\s"))

# Texts repeat the same addresses and versions: that many windows are remembered.
_REMEMBERED = 16_384


class Finder:
    """Presidio set up once, behind the gate. Expensive to build, cheap to use.

    `entities` are Presidio's names, `threshold` the least score of a finding. The types that the
    gate knows are read in windows; others are read in full, and so is everything with a
    `spacy_model` (a folder), whose names and context words reach over lines. `least_phone_digits`
    says that phone numbers may be missed that have fewer digits with at most four marks between
    two.
    """

    def __init__(
        self,
        entities: tuple[str, ...],
        threshold: float,
        language: str,
        spacy_model: str | None = None,
        least_phone_digits: int = 1,
    ) -> None:
        from tasks.kernels.pii_types import TYPES

        self._analyzer = _analyzer(entities, language, spacy_model)
        self._threshold = threshold
        self._language = language
        gated = [name for name in entities if name in TYPES and spacy_model is None]
        self._ungated = tuple(name for name in entities if name not in gated)
        self._phones = _phone_recognizer(self._analyzer)
        self._automaton = phone_automaton(tuple(self._phones.supported_regions))
        self._rules = _rules(gated, self._automaton, least_phone_digits) if gated else None
        self._phone_analyzer = lru_cache(self._phone_analyzer_of)
        self._found_in = lru_cache(_REMEMBERED)(self._analyze)

    def find(self, text: str) -> list[Finding]:
        """Every finding in `text`, overlapping or not, in no particular order."""
        body = text.encode("utf-8", "surrogatepass")
        found: list[Finding] = []
        offsets = np.array([0, len(body)], np.int64)
        for _, type_, start, end, plans in self._windows(offsets, np.frombuffer(body, np.uint8)):
            window = body[start:end].decode("utf-8", "surrogatepass")
            for offset, piece in pieces(window, _WINDOW_LIMIT):
                if findings := self._found_in(piece, (type_,), plans):
                    before = len(body[:start].decode("utf-8", "surrogatepass"))
                    found += _moved(findings, before + offset)
        if self._ungated:
            for offset, piece in pieces(text, _CHUNK_LIMIT):
                found += _moved(self._analyze(piece, self._ungated), offset)
        return found

    def suspects(self, texts: pa.LargeStringArray) -> list[int]:
        """The rows that may hold a finding, ascending; the others hold none."""
        if self._ungated:
            return list(range(len(texts)))
        _, starts, data = texts.buffers()
        offsets = np.frombuffer(starts, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        body = np.frombuffer(data or b"", np.uint8)
        return sorted({row for row, *_ in self._windows(offsets, body)})

    def _windows(
        self, offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]
    ) -> Iterator[tuple[int, str, int, int, int]]:
        """(row, type, start, end, plans of phone numbers) of each window, in bytes of `data`."""
        from tasks.kernels.pii import find_windows
        from tasks.kernels.pii_types import TYPES

        if self._rules is None:
            return
        for array in (offsets, data):
            # Arrow's buffers may be writeable or not, and each kind would be compiled anew.
            array.flags.writeable = False
        out = np.empty((len(offsets) + 1024, 5), np.int64)
        count = find_windows(offsets, data, self._rules, out)
        if count > len(out):
            out = np.empty((count, 5), np.int64)
            find_windows(offsets, data, self._rules, out)
        for row, type_, start, end, plans in out[:count].tolist():
            yield row, TYPES[type_], start, end, plans

    def _analyze(self, text: str, entities: tuple[str, ...], plans: int = 0) -> list[Finding]:
        analyzer = self._phone_analyzer(plans) if plans else self._analyzer
        results = analyzer.analyze(
            text, self._language, list(entities), score_threshold=self._threshold
        )
        return [Finding(r.entity_type, r.start, r.end, r.score) for r in results]

    def _phone_analyzer_of(self, plans: int) -> AnalyzerEngine:
        """Presidio with its recogniser of phone numbers alone, asking the regions of `plans` only.

        It asks one region after the other, and those of other plans find nothing in such a window.
        """
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry

        every = self._automaton.regions
        regions = [r for place, some in enumerate(every) if plans >> place & 1 for r in some]
        recognizer = copy(self._phones)
        recognizer.supported_regions = regions
        registry = RecognizerRegistry([recognizer], supported_languages=[self._language])
        return AnalyzerEngine(
            registry=registry,
            nlp_engine=self._analyzer.nlp_engine,
            supported_languages=[self._language],
        )


def pieces(text: str, limit: int) -> Iterator[tuple[int, str]]:
    """(offset, piece) of consecutive pieces of `text`, none longer than `limit` characters."""
    start = 0
    while len(text) - start > limit:
        half, full = start + limit // 2, start + limit
        cuts = ([hit.end() for hit in cut.finditer(text, half, full)] for cut in _CUTS)
        stop = next((stops[-1] for stops in cuts if stops), full)
        yield start, text[start:stop]
        start = stop
    yield start, text[start:]


def _moved(findings: list[Finding], offset: int) -> Iterator[Finding]:
    for type_, start, end, score in findings:
        yield Finding(type_, start + offset, end + offset, score)


def _phone_recognizer(analyzer: AnalyzerEngine) -> Any:
    from presidio_analyzer.predefined_recognizers import PhoneRecognizer

    recognizers = analyzer.registry.recognizers
    return next(one for one in recognizers if isinstance(one, PhoneRecognizer))


def _rules(gated: list[str], automaton: Automaton, least_phone_digits: int) -> Rules:
    """What the gate looks for: the types `gated`, in the terms of their recognisers."""
    import regex
    from presidio_analyzer.predefined_recognizers.generic.iban_patterns import regex_per_country

    from tasks.kernels.pii_types import TYPES, Rules, triggers

    characters = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    # Decimal digits of a script are ten in a row.
    zeros = np.array([ord(digit) for digit in regex.findall(r"\d", characters)[::10]], np.int64)
    countries = np.zeros((32, 32), np.bool_)
    for country in regex_per_country:
        first, second = country.encode()
        countries[first & 31, second & 31] = True
    return Rules(
        np.array([name in gated for name in TYPES]),
        triggers(zeros),
        zeros,
        countries,
        automaton.steps,
        automaton.accepts,
        automaton.starts,
        least_phone_digits,
    )


def _analyzer(entities: tuple[str, ...], language: str, spacy_model: str | None) -> AnalyzerEngine:
    """Presidio with its predefined recognisers, set up so that nothing asks the network."""
    with _without(*(() if spacy_model else ("torch", "transformers"))):
        from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
        from presidio_analyzer.nlp_engine import NlpEngine, NoOpNlpEngine, SpacyNlpEngine
        from presidio_analyzer.predefined_recognizers import EmailRecognizer
    from tldextract import TLDExtract

    # It warns of every recogniser that is for another language than asked for.
    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    bundled = TLDExtract(suffix_list_urls=(), cache_dir=None)

    class OfflineEmailRecognizer(EmailRecognizer):
        """Presidio's, but for the public suffix list: the bundled one, not a download."""

        def validate_result(self, pattern_text: str) -> bool:
            return bundled(pattern_text).fqdn != ""

    engine: NlpEngine
    if spacy_model is None:
        engine = NoOpNlpEngine([{"lang_code": language, "model_name": "none"}])
    else:
        engine = SpacyNlpEngine([{"lang_code": language, "model_name": "none"}])
        # Loaded here and not by Presidio, which would download a model or take a GPU.
        engine.nlp = {language: _spacy_model(spacy_model)}  # type: ignore[assignment]
    english = RecognizerRegistry(supported_languages=["en"])
    english.load_predefined_recognizers(languages=["en"])
    registry = RecognizerRegistry(supported_languages=[language])
    for recognizer in [*english.recognizers, OfflineEmailRecognizer()]:
        if type(recognizer).__name__ not in ("EmailRecognizer", "SpacyRecognizer"):
            recognizer.supported_language = language
            registry.add_recognizer(recognizer)
    registry.add_nlp_recognizer(engine)
    analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
    known = sorted(analyzer.get_supported_entities(language))
    for entity in entities:
        if entity not in known:
            near = get_close_matches(entity, known, 1) or known
            raise ConfigError(
                f"scrub.entities: the {'spacy' if spacy_model else 'no_op'} engine knows no "
                f"{entity!r}; did you mean {', '.join(near)}?"
            )
    return analyzer


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Imports inside do without these libraries, where they are not loaded yet.

    Presidio and spaCy load them where they are installed, for several seconds in each worker,
    though no recogniser of patterns uses them.
    """
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def _spacy_model(folder: str) -> Any:
    import spacy

    try:
        return spacy.load(Path(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"scrub.spacy_model: {folder} cannot be loaded ({error}); "
            "it must be the folder of an unpacked spaCy model, the one that holds config.cfg"
        ) from error
