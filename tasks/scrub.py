"""Scrub: personal data out of the text, typed placeholders in its place.

Presidio finds (pattern recognisers by default, spaCy's names by config; `tasks/pii.py`); Loam
decides what of it is personal, resolves overlaps and writes `<EMAIL_1>`, `<PHONE_2>`: numbered per
type by first appearance in the document, the same value always the same number, and never a hash,
which could be looked up. The result holds no finding any more: scrubbing it again changes nothing.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from llm.config import Config
from tasks.as_task import as_task
from tasks.pii import Finder, Finding
from tasks.store.corpus import Shard, commit_stage, kept_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.rows import text_bytes, text_digest
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, FINDINGS, REDACTIONS
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("scrub", 2, ("phonenumbers", "presidio-analyzer", "regex", "tldextract", "unicode"))


# What Presidio has no pattern for (its SpacyRecognizer).
_OF_A_MODEL = frozenset({"LOCATION", "NRP", "ORGANIZATION", "PERSON"})


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


def patterns_of(decisive: Mapping[str, Any]) -> ScrubConfig:
    """The settings that a manifest of scrubbed text was made with, less the model: a manifest knows
    its digest and not where it lies."""
    fields = {name: decisive[name] for name in ScrubConfig.model_fields if name in decisive}
    entities = [name for name in fields.pop("entities", ()) if name not in _OF_A_MODEL]
    if entities:
        fields["entities"] = tuple(entities)
    return ScrubConfig(**{**fields, "engine": "no_op", "spacy_model": None})


class Placeholder(NamedTuple):
    """What stands for a finding, offsets in characters of the scrubbed text."""

    name: str
    start: int
    end: int


class Scrubbed(NamedTuple):
    """A text without findings; each finding, by position in the original, and its placeholder."""

    text: str
    findings: list[Finding]
    placeholders: list[Placeholder]


# What a placeholder calls a type, where that is shorter than Presidio's own name.
_LABELS = {
    "EMAIL_ADDRESS": "EMAIL",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "MAC_ADDRESS": "MAC",
    "PHONE_NUMBER": "PHONE",
}

# A phone number of so many digits: libphonenumber allows four marks between two.
_PHONE_DIGITS = r"\d(?:[-xX ().\[\]/~\x80-\U0010ffff]{0,4}\d){%d}"

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
        self._phone = re.compile(_PHONE_DIGITS % (config.min_phone_digits - 1))
        self._finder = Finder(
            config.entities,
            config.threshold,
            config.language,
            config.spacy_model,
            config.min_phone_digits,
        )

    def find(self, text: str) -> list[Finding]:
        """Every personal finding in `text`, overlapping or not, in no particular order."""
        found = self._finder.find(text)
        return [one for one in found if self.is_personal(one.type, text[one.start : one.end])]

    def suspects(self, texts: pa.LargeStringArray) -> list[int]:
        """The rows that may hold a finding, ascending; the others hold none."""
        return self._finder.suspects(texts)

    def is_personal(self, entity: str, value: str) -> bool:
        """Whether a finding names or reaches somebody, as far as its value tells."""
        if value in self.config.allow:
            return False
        if entity == "PHONE_NUMBER":
            return self._phone.search(value) is not None
        if entity == "IP_ADDRESS" and self.config.public_ips_only:
            address = ip_interface(value).ip
            address = getattr(address, "ipv4_mapped", None) or address
            return not any(address in network for network in _RESERVED_IPS)
        return True


def scrub_shard(documents: pa.Table, config: ScrubConfig) -> tuple[pa.Table, pa.Table, pa.Table]:
    """DOCUMENTS with scrubbed texts, and their FINDINGS and REDACTIONS.

    Every row stays, with its other columns as they were; a text that changes has a new digest. All
    tables are sorted by id.
    """
    scrubber = _scrubber(config)
    documents = documents.sort_by("id").select(DOCUMENTS.arrow.names).combine_chunks()
    texts = pa.concat_arrays(documents["text"].chunks or [pa.array([], pa.large_string())])
    changed: dict[int, Scrubbed] = {}
    for row in scrubber.suspects(texts):
        scrubbed = scrub_text(texts[row].as_py(), scrubber)
        if scrubbed.findings:
            changed[row] = scrubbed
    counts, redactions = [], []
    for row, scrubbed in changed.items():
        id_ = documents["id"][row].as_py()
        by_type = Counter(finding.type for finding in scrubbed.findings)
        counts += [{"id": id_, "type": type_, "count": n} for type_, n in sorted(by_type.items())]
        redactions += [
            {"id": id_, "type": finding.type, "placeholder": name, "start": start, "end": end}
            for finding, (name, start, end) in zip(
                scrubbed.findings, scrubbed.placeholders, strict=True
            )
        ]
    documents = _with_texts(documents, {row: one.text for row, one in changed.items()})
    return documents, FINDINGS.table(counts), REDACTIONS.table(redactions)


def _with_texts(documents: pa.Table, texts: dict[int, str]) -> pa.Table:
    """`documents` with other texts in some rows (ascending); the rest is left as it lies."""
    if not texts:
        return documents
    mask = np.zeros(documents.num_rows, np.bool_)
    mask[list(texts)] = True
    for name, values in (("text", texts.values()), ("digest", map(text_digest, texts.values()))):
        place = documents.schema.get_field_index(name)
        field = documents.schema.field(place)
        column = pc.replace_with_mask(
            documents.column(place), pa.array(mask), pa.array(list(values), field.type)
        )
        documents = documents.set_column(place, field, column)
    return documents


def scrub_text(text: str, scrubber: Scrubber) -> Scrubbed:
    """`text` with placeholders, and what they stand for.

    A replacement changes what stands around it and an overlap leaves a rest, and either can make
    a new finding. So the outcome is searched again, until it holds none.
    """
    scrubbed, anchors = Scrubbed(text, [], []), [(0, 0)]
    while fresh := _resolve(_outside_placeholders(scrubbed.text, scrubber)):
        findings = scrubbed.findings + [_move(finding, anchors) for finding in fresh]
        findings.sort(key=lambda finding: finding.start)
        scrubbed, anchors = _replace(text, findings, scrubber)
    return scrubbed


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
    place = bisect_right(anchors, finding.start, key=lambda anchor: anchor[0])
    scrubbed, original = anchors[place - 1]
    shift = original - scrubbed
    return finding._replace(start=finding.start + shift, end=finding.end + shift)


def _replace(
    text: str, findings: list[Finding], scrubber: Scrubber
) -> tuple[Scrubbed, list[tuple[int, int]]]:
    """`text` with placeholders for `findings`, and (scrubbed, original) starts of what was kept.

    Numbers that the text itself uses in what looks like a placeholder are not given again.
    """
    taken = {hit.group() for hit in scrubber.placeholder.finditer(text)}
    numbers: Counter[str] = Counter()
    names: dict[tuple[str, str], str] = {}
    parts: list[str] = []
    anchors = [(0, 0)]
    placeholders = []
    for finding in findings:
        label = scrubber.labels[finding.type]
        key = (label, text[finding.start : finding.end].casefold())
        while key not in names:
            numbers[label] += 1
            name = f"<{label}_{numbers[label]}>"
            if name not in taken:
                names[key] = name
        length, position = anchors[-1]
        start = length + finding.start - position
        end = start + len(names[key])
        parts += [text[position : finding.start], names[key]]
        placeholders.append(Placeholder(names[key], start, end))
        anchors.append((end, finding.end))
    whole = "".join([*parts, text[anchors[-1][1] :]])
    return Scrubbed(whole, findings, placeholders), anchors


def scrub_request(corpus: Manifest, config: ScrubConfig) -> Request:
    """What decides the scrubbed text: the text, and what counts as personal data."""
    return Request(STAGE, config.decisive(), {"corpus": corpus})


def scrub_work(store: Store, shard: Shard, config: ScrubConfig) -> Outcome:
    documents = kept_rows(store, shard)
    scrubbed, findings, redactions = scrub_shard(documents, config)
    stats = {"text_bytes": float(text_bytes(scrubbed))}
    for row in findings.to_pylist():
        stats[f"pii.{row['type']}"] = stats.get(f"pii.{row['type']}", 0) + row["count"]
    tables = ((DOCUMENTS, scrubbed), (FINDINGS, findings), (REDACTIONS, redactions))
    return Outcome(tables, documents.num_rows, scrubbed.num_rows, stats)


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
