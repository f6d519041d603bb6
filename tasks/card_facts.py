"""What a dataset card says of a corpus: figures out of manifests, the census and small objects.

Texts are not read. Nothing here depends on when or where it runs, so that a card of the same
manifests is the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm.config import Config
from tasks.alarms import line_by_stage, read_alarms
from tasks.benchmarks import HELDOUT
from tasks.canaries import CanaryCount, canary_counts, recalls
from tasks.census import Census, Count, read_census
from tasks.inspecting import SNAPSHOT_STAGES, quarantined
from tasks.leaks import benchmark_counts
from tasks.report_corpus import HELDOUT_SET, pii_part
from tasks.report_page import PiiCount
from tasks.select import SelectConfig, rules
from tasks.store.corpus import open_corpus
from tasks.store.fingerprint import fingerprint
from tasks.store.records import Manifest
from tasks.store.schema import CLUSTERS
from tasks.store.store import Store

# There can be millions of domains; of everything else a card tells all.
DOMAINS = 10
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)

# A rule of thumb for English and a byte-level BPE; what a tokenizer really gives is the report's.
BYTES_PER_TOKEN = 4

PAPERS = {
    "gopher": "Gopher, Rae et al. 2021",
    "c4": "C4, Raffel et al. 2020",
    "fineweb": "FineWeb, Penedo et al. 2024",
    "quality": "DCLM, Li et al. 2024",
    "dedup": "Broder 1997; Lee et al. 2022; FineWeb, Penedo et al. 2024",
    "decontaminate": "Brown et al. 2020; PaLM, Chowdhery et al. 2022; Tulu 3, Lambert et al. 2024",
    "scrub": "Microsoft Presidio",
}
"""Where rules come from: those of `select` by the first word of their reason, others by stage."""

_SETTINGS = ("dedup", "scrub", "decontaminate")


class Share(Config):
    """Live documents with a value in common, None being unknown; `share` is of all documents."""

    value: str | None
    documents: int
    share: float
    text_bytes: int


class SourceFacts(Config):
    """A source: where it was read, what of it is in the corpus, and what could not be read."""

    name: str
    kind: str
    origins: tuple[str, ...]
    documents: int
    text_bytes: int
    licenses: tuple[Share, ...]
    fetched: tuple[str, str] | None
    set_aside: dict[str, int]
    complete: bool | None
    incomplete_because: tuple[str, ...] = ()


class FilterFacts(Config):
    """A rule by which documents left: `rule` says when, `scope` to which texts it applies."""

    reason: str
    rule: str
    scope: str
    paper: str
    documents: int


class StageFacts(Config):
    """What a stage did to the live documents, and the settings that decided it."""

    stage: str
    version: int
    fingerprint: str
    rows_in: int
    rows_out: int
    drops: dict[str, int]
    settings: dict[str, Any]
    paper: str = ""


class DuplicateFacts(Config):
    """Clusters of two documents or more; of each, one document stays."""

    clusters: int
    largest: int
    removed: int


class BenchmarkFacts(Config):
    """What of a benchmark stood in the documents, and how many left for it."""

    name: str
    items: int
    items_matched: int
    items_leaked: int
    documents_dropped: int


class CanaryFacts(Config):
    """What the stage that is to catch a kind of canary caught of those that reached it; for
    `untouched` copies, which must be left alone, those are false alarms. `least` is the detail of
    the kind, such as a type of personal data, of which the smallest part was caught."""

    kind: str
    stage: str
    planted: int
    reached: int
    caught: int
    least: str = ""
    least_reached: int = 0
    least_caught: int = 0


class Check(Config):
    """A question about the corpus, answered from its data, with the figures behind the answer."""

    question: str
    answer: Literal["yes", "no", "unknown"]
    figures: str


class Reproduction(Config):
    """What makes the same corpus again: the settings of every stage by digest, what was pinned,
    and the versions of what decides the output."""

    config_digest: str
    pins: dict[str, str]
    versions: dict[str, str]
    snapshots: dict[str, str]


class Facts(Config):
    """Everything a card says but for its answers. `alarms` are sentences; `compared_with` is how
    many earlier corpora they come of."""

    name: str
    fingerprint: str
    data_digest: str
    documents: int
    text_bytes: int
    words: int
    estimated_tokens: int
    splits: tuple[Share, ...]
    sources: tuple[SourceFacts, ...]
    licenses: tuple[Share, ...]
    languages: tuple[Share, ...]
    domains: tuple[Share, ...]
    topics: tuple[Share, ...]
    formats: tuple[Share, ...]
    provenance: tuple[Share, ...]
    words_per_document: dict[str, int]
    filters: tuple[FilterFacts, ...]
    stages: tuple[StageFacts, ...]
    duplicates: DuplicateFacts
    personal_data: tuple[PiiCount, ...]
    personal_data_engine: dict[str, Any]
    benchmarks: tuple[BenchmarkFacts, ...]
    taken_down: int
    canaries: tuple[CanaryFacts, ...]
    alarms: tuple[str, ...]
    compared_with: int
    reproduction: Reproduction

    def stage(self, name: str) -> StageFacts:
        return next(one for one in self.stages if one.stage == name)

    def recall(self, kind: str) -> CanaryFacts | None:
        """What was caught of a kind of canary; None where none reached its stage."""
        found = (one for one in self.canaries if one.kind == kind and one.reached)
        return next(found, None)

    def pinned(self, name: str) -> bool:
        """Whether something was pinned, by the beginning of its name."""
        return any(pin.startswith(name) for pin in self.reproduction.pins)


def gather(store: Store, name: str, line: Sequence[Manifest], labelled: Manifest) -> Facts:
    """The facts of a labelled corpus; `line` led to it, with its census and its alarms."""
    by_stage = line_by_stage(line)
    counted, told = read_census(store, by_stage["census"]), by_stage["alarms"]
    own = [one for stage, one in by_stage.items() if stage not in SNAPSHOT_STAGES]
    snapshots = [one for one in line if one.stage in SNAPSHOT_STAGES]
    return Facts(
        name=name,
        fingerprint=labelled.fingerprint,
        data_digest=labelled.data_digest,
        documents=counted.documents,
        text_bytes=counted.n_bytes,
        words=counted.words,
        estimated_tokens=counted.n_bytes // BYTES_PER_TOKEN,
        splits=shares(counted, "split"),
        sources=tuple(_sources(store, snapshots, counted)),
        licenses=shares(counted, "license"),
        languages=shares(counted, "language"),
        domains=shares(counted, "domain")[:DOMAINS],
        topics=shares(counted, "topic"),
        formats=shares(counted, "format"),
        provenance=shares(counted, "provenance"),
        words_per_document=_percentiles(counted.by("length")),
        filters=tuple(_filters(by_stage["select"])),
        stages=tuple(_stage(one) for one in own if one.stage == "extract" or _of_corpus(one)),
        duplicates=_duplicates(store, by_stage["dedup"]),
        personal_data=pii_part(store, open_corpus(store, labelled)),
        personal_data_engine=_engine(by_stage["scrub"]),
        benchmarks=tuple(_benchmarks(own)),
        taken_down=sum(by_stage["takedown"].drops.values()),
        canaries=tuple(_canaries(own)),
        alarms=tuple(map(str, read_alarms(told))),
        compared_with=told.summary["compared_with"],
        reproduction=_reproduction(own, snapshots, labelled),
    )


def _of_corpus(manifest: Manifest) -> bool:
    return "corpus" in manifest.inputs


def shares(counted: Census, dimension: str, source: str | None = None) -> tuple[Share, ...]:
    """The values of a dimension, the most frequent first, as parts of all documents counted."""
    found = counted.by(dimension, source)
    total = max(1, sum(one.documents for one in found))
    return tuple(
        Share(
            value=one.value,
            documents=one.documents,
            share=round(one.documents / total, 6),
            text_bytes=one.n_bytes,
        )
        for one in found
    )


def _sources(store: Store, snapshots: Sequence[Manifest], counted: Census) -> Iterable[SourceFacts]:
    unread = quarantined(store, snapshots, 0)
    sizes = {one.value: one for one in counted.by("source")}
    for snapshot in snapshots:
        name, config = snapshot.summary["source"], snapshot.payload["config"]
        size = sizes.get(name, Count(name, 0, 0, 0))
        yield SourceFacts(
            name=name,
            kind=config["kind"],
            origins=_origins(config),
            documents=size.documents,
            text_bytes=size.n_bytes,
            licenses=shares(counted, "license", name),
            fetched=counted.fetched.get(name),
            set_aside={one.reason: one.count for one in unread if one.source == name},
            complete=snapshot.summary.get("complete"),
            incomplete_because=tuple(snapshot.summary.get("incomplete_because", ())),
        )


def _origins(config: Mapping[str, Any]) -> tuple[str, ...]:
    if config["kind"] == "pydoc":
        return (f"the documentation of Python {config['python']}",)
    return tuple(config.get("seeds") or config["paths"])


def _percentiles(lengths: Sequence[Count]) -> dict[str, int]:
    """Words of a document: the least, the most, and percentiles (the nearest rank)."""
    if not lengths:
        return {}
    pairs = sorted((int(one.value or 0), one.documents) for one in lengths)
    values, counts = (np.array(column) for column in zip(*pairs, strict=True))
    ranks = np.ceil(np.array(PERCENTILES) / 100 * counts.sum())
    at = values[np.searchsorted(np.cumsum(counts), ranks)].tolist()
    named = {f"p{p}": value for p, value in zip(PERCENTILES, at, strict=True)}
    return {"min": int(values[0]), **named, "max": int(values[-1])}


def _filters(selected: Manifest) -> Iterable[FilterFacts]:
    """The rules of `select` in the order in which they judge, and what each removed."""
    config = SelectConfig.model_validate(selected.payload["config"])
    if (cut := selected.summary.get("quality_cut")) is not None:
        config = config.model_copy(update={"quality_quantile": None, "min_quality": cut})
    for rule in rules(config):
        limit = rule.threshold
        shown = ", ".join(limit) if isinstance(limit, tuple) else f"{limit:g}"
        yield FilterFacts(
            reason=rule.reason,
            rule=f"{rule.signal} {rule.op} {shown}",
            scope=rule.scope,
            paper=PAPERS.get(rule.reason.split("_")[0], ""),
            documents=selected.drops.get(rule.reason, 0),
        )


def _stage(one: Manifest) -> StageFacts:
    return StageFacts(
        stage=one.stage,
        version=one.payload["version"],
        fingerprint=one.fingerprint,
        rows_in=one.rows_in,
        rows_out=one.rows_out,
        drops=one.drops,
        settings=one.payload["config"],
        paper=PAPERS.get(one.stage, "") if one.stage in _SETTINGS else "",
    )


def _duplicates(store: Store, decided: Manifest) -> DuplicateFacts:
    parts = [
        store.read_table(ref, CLUSTERS, ["root"]) for ref in decided.objects.get(CLUSTERS.kind, ())
    ]
    roots = pa.concat_tables([CLUSTERS.empty().select(["root"]), *parts])
    sizes = pc.value_counts(roots["root"]).field("counts")
    several = sizes.filter(pc.greater(sizes, 1))
    return DuplicateFacts(
        clusters=len(several),
        largest=pc.max(several).as_py() or 0,
        removed=sum(decided.drops.values()),
    )


def _engine(scrubbed: Manifest) -> dict[str, Any]:
    """Which engine looked for what."""
    config = scrubbed.payload["config"]
    return {name: config[name] for name in ("engine", "entities", "threshold")}


def _benchmarks(line: Sequence[Manifest]) -> Iterable[BenchmarkFacts]:
    for count in benchmark_counts(line):
        yield BenchmarkFacts(
            name=HELDOUT_SET if count.name == HELDOUT else count.name,
            items=count.items,
            items_matched=count.items_matched,
            items_leaked=count.items_leaked,
            documents_dropped=count.documents_dropped,
        )


def _canaries(line: Sequence[Manifest]) -> Iterable[CanaryFacts]:
    counts = canary_counts(line)
    for kind, caught in recalls(counts).items():
        details = [one for one in counts if one.kind == kind and one.detail and one.reached]
        yield _canary(
            kind, caught, min(details, key=lambda one: one.caught / one.reached, default=None)
        )
    yield from (_canary("untouched", one) for one in counts if one.kind == "untouched")


def _canary(kind: str, one: CanaryCount, least: CanaryCount | None = None) -> CanaryFacts:
    return CanaryFacts(
        kind=kind,
        stage=one.stage,
        planted=one.planted,
        reached=one.reached,
        caught=one.caught,
        least=least.detail if least else "",
        least_reached=least.reached if least else 0,
        least_caught=least.caught if least else 0,
    )


def _reproduction(
    own: Sequence[Manifest], snapshots: Sequence[Manifest], labelled: Manifest
) -> Reproduction:
    stages = [one for one in own if one.stage == "extract" or _of_corpus(one)]
    settings = {one.stage: {k: one.payload[k] for k in ("version", "config")} for one in stages}
    versions = {k: str(v) for k, v in labelled.provenance.items() if k in ("loam", "python")}
    for one in stages:
        versions |= one.payload["libraries"]
    pins = {name: sha256 for one in stages for name, sha256 in one.payload["pins"].items()}
    return Reproduction(
        config_digest=fingerprint(settings),
        pins=dict(sorted(pins.items())),
        versions=dict(sorted(versions.items())),
        snapshots={one.summary["source"]: one.data_digest for one in snapshots},
    )
