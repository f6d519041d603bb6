"""Scrub: personal data out of the text, typed placeholders in its place.

Presidio finds (pattern recognisers by default, spaCy's names by config); Loam decides what of it is
personal, resolves overlaps and writes `<EMAIL_1>`, `<PHONE_2>`: numbered per type by first
appearance in the document, the same value always the same number, and never a hash, which could
be looked up. The result holds no finding any more: scrubbing it again changes nothing.

Presidio reads about 0.4 MB/s. Most of a text can hold no finding, because it lacks what every match
of a recogniser must have (an `@`, thirteen digits, two colons), and no recogniser matches across a
line break. So a gate per type picks the stretches that Presidio reads; the findings stay the same.
"""

from __future__ import annotations

import hashlib
import logging
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import version
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError
from tasks.as_task import as_task
from tasks.store.corpus import Shard, commit_stage, kept_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.rows import text_bytes, text_digest
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, FINDINGS
from tasks.store.stage import Stage
from tasks.store.store import Store

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

STAGE = Stage("scrub", 1, ("phonenumbers", "presidio-analyzer", "regex", "tldextract"))


class ScrubConfig(Config):
    """What counts as personal data and which engine looks for it."""

    entities: tuple[str, ...] = (
        "CREDIT_CARD",
        "CRYPTO",
        "EMAIL_ADDRESS",
        "IBAN_CODE",
        "IP_ADDRESS",
        "MAC_ADDRESS",
        "PHONE_NUMBER",
        "US_SSN",
    )
    """Presidio's names of what is scrubbed. By default what names or reaches one person and has a
    shape or checksum of its own. URL and DATE_TIME are left: they name pages and days, and a
    corpus without them is poorer. US_BANK_NUMBER, US_PASSPORT and their like are bare digit
    runs that Presidio scores at 0.05 without context words. PERSON needs `engine = "spacy"`."""

    threshold: float = Field(default=0.4, ge=0, le=1)
    """Least score of a finding that counts. Presidio's phone recogniser scores 0.4 at most."""

    engine: Literal["no_op", "spacy"] = "no_op"
    """`no_op` runs the pattern recognisers alone; `spacy` adds named entities and context words."""

    spacy_model: str | None = None
    """Folder of an unpacked spaCy model (the one with config.cfg). Nothing is ever downloaded."""

    language: str = "en"
    """Language of the spaCy model. The pattern recognisers read every language alike."""

    allow: tuple[str, ...] = ()
    """Exact strings that are never scrubbed, such as an organisation's public address."""

    min_phone_digits: int = Field(default=7, ge=1)
    """Least digits of a phone number. libphonenumber accepts 1642 and 16425 as German pager
    numbers, so that years would go; seven is the shortest subscriber number of the North American
    plan, the default region of Presidio's recogniser."""

    public_ips_only: bool = True
    """Whether reserved addresses (RFC 6890: loopback, private, documentation) stay: they name
    nobody. FineWeb (Penedo et al. 2024, section 3.6) anonymises public addresses only."""

    @model_validator(mode="after")
    def _model_goes_with_its_engine(self) -> Self:
        if (self.engine == "spacy") != (self.spacy_model is not None):
            raise ValueError(
                f"engine is {self.engine!r} and spacy_model is {self.spacy_model!r}: name the "
                'folder of a model with engine = "spacy", and none with "no_op"'
            )
        return self

    def decisive(self) -> dict[str, object]:
        """What decides the result, for a fingerprint: a model counts by its bytes, not its path."""
        fields = self.model_dump(exclude={"spacy_model"})
        if self.spacy_model is None:
            return fields
        pinned = {"spacy": version("spacy"), "spacy_model": model_digest(self.spacy_model)}
        return fields | pinned


class Finding(NamedTuple):
    """One piece of personal data: Presidio's type and score, offsets in characters of the text."""

    type: str
    start: int
    end: int
    score: float


# What a placeholder calls a type, where that is shorter than Presidio's own name.
_LABELS = {
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "MAC_ADDRESS": "MAC",
    "PHONE_NUMBER": "PHONE",
}

# What a stretch must hold before a recogniser can match in it; weaker than its pattern, never
# stronger. PHONE_NUMBER's takes a number of digits: libphonenumber allows four marks between two.
_GATES = {
    "CREDIT_CARD": r"\d(?:[- ]?\d){12}",
    "CRYPTO": r"[A-Za-z0-9]{26}",
    "EMAIL_ADDRESS": r"@",
    "IBAN_CODE": r"[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]{4}){2}",
    "IP_ADDRESS": r":[0-9A-Fa-f]{0,4}:|\d\.\d{1,3}\.\d",
    "MAC_ADDRESS": r"[:-][0-9A-Fa-f]{2}[:-]|\.[0-9A-Fa-f]{4}\.",
    "PHONE_NUMBER": r"\d(?:[-xX ().\[\]/~\x80-\U0010ffff]{0,4}\d){%d}",
    "US_SSN": r"\d(?:[- .]?\d){8}",
}

# No gated recogniser matches across a line break, or across the space between two words that stand
# 40 characters from the last digit: only phone numbers and IBANs hold spaces; the one knows no
# words but an "ext" before digits, the other has a digit in third place and 43 places at most.
_SAFE_CUT = re.compile(r"\n|(?<=[^0-9]{40}[a-z]{4}) (?=[a-z]{4})")

# Presidio's e-mail pattern is quadratic in the length of a run without spaces, and would time out
# by the wall clock. spaCy refuses a million characters, and its memory grows with the length.
_STRETCH_LIMIT = 10_000
_CHUNK_LIMIT = 100_000

# Where what is longer is cut, best first; with no space in reach, anywhere.
_CUTS = (re.compile(r"\n"), _SAFE_CUT, re.compile(r"\s"))

# Special-purpose addresses of RFC 6890, with multicast (RFC 5771, RFC 4291) and ::/112, in which
# notations such as the slice [::2] fall. Fixed here: Python's own table differs between releases.
_RESERVED_IPS = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3"),
            *("::/112", "2001:db8::/32", "fc00::/7", "fe80::/10", "ff00::/8"),
        ),
    )
)


class Scrubber:
    """Presidio set up once, with the rules of one config. Expensive to build, cheap to use."""

    def __init__(self, config: ScrubConfig) -> None:
        self.config = config
        self.labels = {entity: _LABELS.get(entity, entity) for entity in config.entities}
        names = "|".join(sorted(map(re.escape, self.labels.values())))
        self.placeholder = re.compile(rf"<({names})_([1-9][0-9]{{0,5}})>")
        self._analyzer = _analyzer(config)
        # Names and context words reach over lines, so that with spaCy everything is read.
        gated = set(_GATES) if config.engine == "no_op" else set()
        self._gates = {name: _gate(name, config) for name in config.entities if name in gated}
        self._ungated = [name for name in config.entities if name not in gated]

    def find(self, text: str) -> list[Finding]:
        """Every personal finding in `text`, overlapping or not, in no particular order."""
        found: list[Finding] = []
        for entity, gate in self._gates.items():
            for offset, stretch in _stretches(gate, text):
                found += self._analyze(stretch, [entity], offset)
        if self._ungated:
            for offset, piece in _pieces(text, 0, len(text), _CHUNK_LIMIT):
                found += self._analyze(piece, self._ungated, offset)
        return found

    def _analyze(self, text: str, entities: list[str], offset: int) -> list[Finding]:
        results = self._analyzer.analyze(
            text, self.config.language, entities, score_threshold=self.config.threshold
        )
        return [
            Finding(result.entity_type, result.start + offset, result.end + offset, result.score)
            for result in results
            if _is_personal(result.entity_type, text[result.start : result.end], self.config)
        ]


def scrub_shard(documents: pa.Table, config: ScrubConfig) -> tuple[pa.Table, pa.Table]:
    """DOCUMENTS with scrubbed texts and new digests, and the FINDINGS by document and type.

    Every row stays, with its other columns as they were; both tables are sorted by id.
    """
    scrubber = _scrubber(config)
    documents = documents.sort_by("id")
    texts, counts = [], []
    for id_, text in zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True):
        scrubbed, findings = scrub_text(text, scrubber)
        texts.append(scrubbed)
        by_type = Counter(finding.type for finding in findings)
        counts += [{"id": id_, "type": type_, "count": n} for type_, n in sorted(by_type.items())]
    columns = {name: documents[name] for name in DOCUMENTS.arrow.names}
    columns["text"] = pa.array(texts, DOCUMENTS.arrow.field("text").type)
    columns["digest"] = pa.array(map(text_digest, texts), DOCUMENTS.arrow.field("digest").type)
    return pa.table(columns, schema=DOCUMENTS.arrow), FINDINGS.table(counts)


def scrub_text(text: str, scrubber: Scrubber) -> tuple[str, list[Finding]]:
    """`text` with placeholders, and what they stand for, by position in the original text.

    A replacement changes what stands around it and an overlap leaves a rest, and either can make
    a new finding. So the outcome is searched again, until it holds none.
    """
    findings: list[Finding] = []
    scrubbed, anchors = text, [(0, 0)]
    while fresh := _resolve(_outside_placeholders(scrubbed, scrubber)):
        findings += [_move(finding, anchors) for finding in fresh]
        findings.sort(key=lambda finding: finding.start)
        scrubbed, anchors = _replace(text, findings, scrubber)
    return scrubbed, findings


def model_digest(folder: str) -> str:
    """sha256 over the names and bytes of a model's files: what pins a spaCy model."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        body = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{len(body)}\0".encode() + body)
    return digest.hexdigest()


@lru_cache(maxsize=4)
def _scrubber(config: ScrubConfig) -> Scrubber:
    return Scrubber(config)


def _analyzer(config: ScrubConfig) -> AnalyzerEngine:
    """Presidio with the recognisers of `config`, set up so that nothing asks the network."""
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

    language = config.language
    engine: NlpEngine
    if config.engine == "no_op":
        engine = NoOpNlpEngine([{"lang_code": language, "model_name": "none"}])
    else:
        engine = SpacyNlpEngine([{"lang_code": language, "model_name": "none"}])
        # Loaded here and not by Presidio, which would download a model or take a GPU.
        engine.nlp = {language: _spacy_model(config)}  # type: ignore[assignment]
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
    for entity in config.entities:
        if entity not in known:
            near = get_close_matches(entity, known, 1) or known
            raise ConfigError(
                f"scrub.entities: the {config.engine} engine knows no {entity!r}; "
                f"did you mean {', '.join(near)}?"
            )
    return analyzer


def _spacy_model(config: ScrubConfig) -> object:
    import spacy

    try:
        return spacy.load(Path(str(config.spacy_model)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"scrub.spacy_model: {config.spacy_model} cannot be loaded ({error}); "
            "it must be the folder of an unpacked spaCy model, the one that holds config.cfg"
        ) from error


def _gate(entity: str, config: ScrubConfig) -> re.Pattern[str]:
    pattern = _GATES[entity]
    return re.compile(pattern % (config.min_phone_digits - 1) if "%d" in pattern else pattern)


def _stretches(gate: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    """(offset, stretch) of each stretch of `text` between safe cuts in which `gate` matches."""
    position = 0
    while hit := gate.search(text, position):
        start = max(position, text.rfind("\n", position, hit.start()) + 1)
        for cut in _SAFE_CUT.finditer(text, start, hit.start()):
            start = cut.end()
        cut_after = _SAFE_CUT.search(text, hit.end())
        position = cut_after.start() if cut_after else len(text)
        yield from _pieces(text, start, position, _STRETCH_LIMIT)


def _pieces(text: str, start: int, end: int, limit: int) -> Iterator[tuple[int, str]]:
    """(offset, piece) of consecutive pieces of text[start:end], none longer than `limit`."""
    while end - start > limit:
        half, full = start + limit // 2, start + limit
        cuts = ([hit.end() for hit in cut.finditer(text, half, full)] for cut in _CUTS)
        stop = next((stops[-1] for stops in cuts if stops), full)
        yield start, text[start:stop]
        start = stop
    yield start, text[start:end]


def _is_personal(entity: str, value: str, config: ScrubConfig) -> bool:
    """Whether a finding names or reaches somebody, as far as its value tells."""
    if value in config.allow:
        return False
    if entity == "PHONE_NUMBER":
        return _gate(entity, config).search(value) is not None
    if entity == "IP_ADDRESS" and config.public_ips_only:
        address = ip_interface(value).ip
        address = getattr(address, "ipv4_mapped", None) or address
        return not any(address in network for network in _RESERVED_IPS)
    return True


def _outside_placeholders(text: str, scrubber: Scrubber) -> list[Finding]:
    """The findings in `text`, each cut down to what no placeholder covers already."""
    findings = scrubber.find(text)
    if not findings:
        return []
    placeholders = [hit.span() for hit in scrubber.placeholder.finditer(text)]
    outside = []
    for finding in findings:
        start = finding.start
        for left, right in [*placeholders, (len(text), len(text))]:
            part = text[start : min(left, finding.end)].strip()
            if any(map(str.isalnum, part)):
                at = text.index(part, start)
                outside.append(finding._replace(start=at, end=at + len(part)))
            start = max(start, right)
    return outside


def _resolve(findings: list[Finding]) -> list[Finding]:
    """Findings that do not overlap: the highest score wins, then the longest, then the first."""
    kept: list[Finding] = []
    for new in sorted(findings, key=lambda f: (-f.score, f.start - f.end, f.start, f.type)):
        place = bisect_right(kept, new.start, key=lambda old: old.start)
        clear_before = place == 0 or kept[place - 1].end <= new.start
        if clear_before and (place == len(kept) or new.end <= kept[place].start):
            kept.insert(place, new)
    return kept


def _move(finding: Finding, anchors: list[tuple[int, int]]) -> Finding:
    """A finding in a scrubbed text, at its place in the original one."""
    scrubbed, original = anchors[bisect_right(anchors, (finding.start, finding.start)) - 1]
    shift = original - scrubbed
    return finding._replace(start=finding.start + shift, end=finding.end + shift)


def _replace(
    text: str, findings: list[Finding], scrubber: Scrubber
) -> tuple[str, list[tuple[int, int]]]:
    """`text` with placeholders for `findings`, and (scrubbed, original) starts of what was kept.

    Numbers that the text itself uses in what looks like a placeholder are not given again.
    """
    taken = {hit.group() for hit in scrubber.placeholder.finditer(text)}
    numbers: Counter[str] = Counter()
    names: dict[tuple[str, str], str] = {}
    parts: list[str] = []
    anchors = []
    length = position = 0
    for finding in findings:
        label = scrubber.labels[finding.type]
        key = (label, text[finding.start : finding.end].casefold())
        while key not in names:
            numbers[label] += 1
            name = f"<{label}_{numbers[label]}>"
            if name not in taken:
                names[key] = name
        anchors.append((length, position))
        parts += [text[position : finding.start], names[key]]
        length += len(parts[-2]) + len(parts[-1])
        position = finding.end
    anchors.append((length, position))
    return "".join([*parts, text[position:]]), anchors


def scrub_request(corpus: Manifest, config: ScrubConfig) -> Request:
    """What decides the scrubbed text: the text, and what counts as personal data."""
    return Request(STAGE, config.decisive(), {"corpus": corpus})


def scrub_work(store: Store, shard: Shard, config: ScrubConfig) -> Outcome:
    documents = kept_rows(store, shard)
    scrubbed, findings = scrub_shard(documents, config)
    stats = {"text_bytes": float(text_bytes(scrubbed))}
    for row in findings.to_pylist():
        stats[f"pii.{row['type']}"] = stats.get(f"pii.{row['type']}", 0) + row["count"]
    return Outcome(
        ((DOCUMENTS, scrubbed), (FINDINGS, findings)), documents.num_rows, scrubbed.num_rows, stats
    )


@as_task("scrub")
def scrub(run: Run, corpus: Manifest, config: ScrubConfig) -> Manifest:
    """Replaces personal data by placeholders, in every document its shard's filters kept.

    Duplicates are scrubbed too: should a verdict flip, their text is there.
    """
    request = scrub_request(corpus, config)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, config)) for shard in shards]
    receipts = run_actions(run, request, scrub_work, actions)
    return commit_stage(run, request, receipts, shards)
