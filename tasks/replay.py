"""What other thresholds would keep and drop, decided anew over what is stored; nothing is written.

A stage that decides over measurements (select over signals, dedup over signatures and edges,
decontaminate over matches) is asked again with other settings, and its drops are held against those
of the corpus. Settings that decide what is measured cannot be replayed: only a run can tell.
"""

from __future__ import annotations

import difflib
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from llm.config import Config
from llm.errors import ConfigError, DataError
from tasks.benchmarks import HELDOUT, DecontaminateConfig
from tasks.dedup import find_duplicates
from tasks.duplicates import Workers
from tasks.inspecting import excerpts, shards_before, urls_of
from tasks.matches import MATCHES
from tasks.refs import Named
from tasks.select import SelectConfig, quality_cut, select_shard
from tasks.signals import SIGNALS
from tasks.signatures import DedupConfig
from tasks.store.corpus import Shard, live_rows, open_corpus, out_ids
from tasks.store.executors import InlineExecutor
from tasks.store.fingerprint import canonical, differences
from tasks.store.records import Manifest
from tasks.store.schema import DOCUMENTS, DROPS, EDGES
from tasks.store.store import Store


@dataclass(frozen=True)
class ReasonCount:
    """How many documents leave for a reason, as decided and as it would be."""

    reason: str
    before: int
    after: int


@dataclass(frozen=True)
class Flipped:
    """A document that would leave (its drop as it would be) or stay (its drop as it is).

    `live` says whether it is in the corpus now; `excerpt` is scrubbed, empty if it is taken down.
    """

    id: str
    url: str | None
    reason: str
    value: float | None
    threshold: float | None
    detail: str | None
    live: bool
    excerpt: str


@dataclass(frozen=True)
class Flips:
    """Documents whose verdict would change: how many, of them live now, bytes of text, the first by
    id."""

    documents: int
    live: int
    text_bytes: int
    samples: tuple[Flipped, ...]


@dataclass(frozen=True)
class Replay:
    """What a stage with other settings (`changed`: key, as it was, as asked) would do. What it
    would keep, later stages may still drop."""

    stage: str
    corpus: str
    changed: tuple[str, ...]
    rows_in: int
    kept_before: int
    kept_after: int
    reasons: tuple[ReasonCount, ...]
    newly_dropped: Flips
    newly_kept: Flips


Decide = Callable[[Store, Manifest, Config], pa.Table]


@dataclass(frozen=True)
class _Replayable:
    """A stage that decides over what is stored: its config, the settings that decide only, and its
    decision: DROPS of the live rows."""

    config: type[Config]
    settings: frozenset[str]
    decide: Decide


def replay(
    store: Store,
    corpus: Named,
    stage: str,
    overrides: Sequence[str],
    base: Config | None,
    n: int,
) -> Replay:
    """What `stage` would drop with other settings (`key=value`), with `n` documents of each kind.

    `base` are the settings to start from; None: those the corpus was made with. Raises ConfigError
    for a setting that is unknown, wrong, or decides what is measured.
    """
    manifest = _manifest_of(corpus, stage)
    asked = _STAGES[stage]
    made_with = _made_with(manifest, asked)
    config = _with(stage, base or made_with, overrides)
    changed = differences(canonical(made_with.model_dump()), canonical(config.model_dump()))
    _check_replayable(stage, asked, made_with, config)
    old = _stored_drops(store, manifest)
    new = asked.decide(store, manifest, config)
    left = _only_in(new, old), _only_in(old, new)
    counts = [_counts(table) for table in (old, new)]
    reasons = sorted(counts[0].keys() | counts[1].keys(), key=lambda r: (-counts[0].get(r, 0), r))
    dropped, kept = (_flips(store, corpus, manifest, table, n) for table in left)
    return Replay(
        stage=stage,
        corpus=corpus.name,
        changed=tuple(changed),
        rows_in=manifest.rows_in,
        kept_before=manifest.rows_in - old.num_rows,
        kept_after=manifest.rows_in - new.num_rows,
        reasons=tuple(ReasonCount(r, counts[0].get(r, 0), counts[1].get(r, 0)) for r in reasons),
        newly_dropped=dropped,
        newly_kept=kept,
    )


def _manifest_of(corpus: Named, stage: str) -> Manifest:
    if stage not in _STAGES:
        raise ConfigError(f"{stage} cannot be replayed; stages that can: {', '.join(_STAGES)}")
    for one in corpus.line:
        if one.stage == stage:
            return one
    raise DataError(f"{corpus.name} did not come through {stage}; name another --ref")


# settings


def _made_with(manifest: Manifest, asked: _Replayable) -> Config:
    """The settings that decided, as the manifest has them."""
    known = asked.config.model_fields.keys()
    stored = {k: v for k, v in manifest.payload["config"].items() if k in known}
    return asked.config.model_validate(stored)


def _with(stage: str, base: Config, overrides: Sequence[str]) -> Config:
    """`base` with `key=value` set, values as in TOML; null is nothing."""
    known = sorted(type(base).model_fields)
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = (part.strip() for part in override.partition("="))
        key = key.removeprefix(f"{stage}.")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value, such as {known[0]}=...")
        if key not in known:
            nearest = difflib.get_close_matches(key, known, 1, 0.5)
            hint = f"did you mean '{nearest[0]}'?" if nearest else f"known: {', '.join(known)}"
            raise ConfigError(f"{stage} has no setting '{key}'; {hint}")
        values[key] = _value(value)
    try:
        return type(base).model_validate({**base.model_dump(), **values})
    except ValidationError as error:
        told = [
            f"{'.'.join(map(str, one['loc']))}: {one['msg']} (found {one['input']!r})"
            for one in error.errors()
        ]
        raise ConfigError("; ".join(told)) from None


def _value(text: str) -> Any:
    if text in ("null", "none", "None"):
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _check_replayable(stage: str, asked: _Replayable, before: Config, after: Config) -> None:
    measured = [
        name
        for name in type(after).model_fields
        if name not in asked.settings and getattr(before, name) != getattr(after, name)
    ]
    if measured:
        raise ConfigError(
            f"{stage}.{', '.join(measured)} decides what is measured, which a replay does not do "
            f"again; it can replay {', '.join(sorted(asked.settings))}. `loam plan` tells what a "
            "run with it would cost"
        )


# decisions


def _select(store: Store, manifest: Manifest, config: Config) -> pa.Table:
    assert isinstance(config, SelectConfig)
    shards = shards_before(store, manifest)
    if config.quality_quantile is not None:
        config = config.model_copy(
            update={
                "quality_quantile": None,
                "min_quality": _cut(store, manifest, shards, config.quality_quantile),
            }
        )
    parts = [DROPS.empty()]
    for shard in shards:
        documents = live_rows(store, shard, columns=["id", "digest", "license"])
        signals = live_rows(store, shard, shard.extras.get(SIGNALS.kind), SIGNALS)
        parts.append(select_shard(documents, signals, config))
    return pa.concat_tables(parts)


def _cut(store: Store, manifest: Manifest, shards: Sequence[Shard], quantile: float) -> float:
    """The score to cut at: as pinned where the quantile is the pinned one, else found anew."""
    if manifest.payload["config"].get("quality_quantile") == quantile:
        return float(manifest.summary["quality_cut"])
    columns = ["id", "quality"]
    scores = [
        live_rows(store, shard, shard.extras.get(SIGNALS.kind), SIGNALS, columns)["quality"]
        for shard in shards
    ]
    if any(score.null_count for score in scores):
        raise ConfigError("quality_quantile is set but documents have no quality")
    return quality_cut(scores, quantile)


def _dedup(store: Store, manifest: Manifest, config: Config) -> pa.Table:
    """Similarities are taken from the stored edges; only where another document would survive are
    a few more texts compared."""
    assert isinstance(config, DedupConfig)
    edges = manifest.objects.get("edges", ())
    known = store.read_table(edges[0], EDGES) if edges else None
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_before(store, manifest)
        workers = Workers(store, shards, InlineExecutor(), Store.at(folder))
        return find_duplicates(workers, config, known).drops


def _decontaminate(store: Store, manifest: Manifest, config: Config) -> pa.Table:
    from tasks.decontaminate import decide

    assert isinstance(config, DecontaminateConfig)
    released = pa.array(manifest.payload["config"].get("released", []), pa.string())
    found = pa.concat_tables(
        [
            MATCHES.empty(),
            *(
                live_rows(store, shard, shard.extras.get(MATCHES.kind), MATCHES)
                for shard in shards_before(store, manifest)
            ),
        ]
    )
    resembles_released = pc.and_(
        pc.equal(found["kind"], HELDOUT), pc.is_in(found["item"], value_set=released)
    )
    return decide([found.filter(pc.invert(resembles_released))], config)[0]


_STAGES: Mapping[str, _Replayable] = {
    "select": _Replayable(SelectConfig, frozenset(SelectConfig.model_fields), _select),
    "dedup": _Replayable(DedupConfig, frozenset({"threshold", "priorities"}), _dedup),
    "decontaminate": _Replayable(
        DecontaminateConfig,
        frozenset({"min_ngrams", "max_common", "paragraph_overlap", "heldout_overlap"}),
        _decontaminate,
    ),
}


# what would change


def _stored_drops(store: Store, manifest: Manifest) -> pa.Table:
    """The live rows that the stage dropped."""
    parts = [DROPS.empty()]
    shards = shards_before(store, manifest)
    for shard, receipt in zip(shards, store.receipts(manifest), strict=True):
        if ref := receipt.output(DROPS.kind):
            rows = store.read_table(ref, DROPS)
            gone = pc.is_in(rows["id"], value_set=out_ids(store, shard))
            parts.append(rows.filter(pc.invert(gone)))
    return pa.concat_tables(parts)


def _only_in(some: pa.Table, others: pa.Table) -> pa.Table:
    held = pc.is_in(some["id"], value_set=others["id"].combine_chunks())
    return some.filter(pc.invert(held)).sort_by("id")


def _counts(drops: pa.Table) -> dict[str, int]:
    counted = drops.group_by("reason").aggregate([("id", "count")])
    return dict(zip(counted["reason"].to_pylist(), counted["id_count"].to_pylist(), strict=True))


def _flips(store: Store, corpus: Named, manifest: Manifest, drops: pa.Table, n: int) -> Flips:
    ids = drops["id"].to_pylist()
    live = set(_live_of(store, corpus.manifest, ids))
    text_bytes = sum(_text_bytes(store, shard, ids) for shard in shards_before(store, manifest))
    rows = drops.slice(0, n).to_pylist()
    return Flips(
        len(ids), len(live), text_bytes, tuple(_samples(store, corpus, manifest, rows, live))
    )


def _live_of(store: Store, manifest: Manifest, ids: Sequence[str]) -> Iterator[str]:
    """Those of the documents that are in the corpus."""
    wanted = pc.field("id").isin(list(ids))
    for shard in open_corpus(store, manifest).shards if ids else ():
        rows = store.read_table(shard.text, DOCUMENTS, ["id"], wanted)["id"]
        gone = pc.is_in(rows, value_set=out_ids(store, shard))
        yield from rows.filter(pc.invert(gone)).to_pylist()


def _text_bytes(store: Store, shard: Shard, ids: Sequence[str]) -> int:
    """UTF-8 bytes of the live ones of the documents in a shard."""
    live = [id_ for id_ in ids if id_ not in shard.dead]
    if not live:
        return 0
    rows = store.read_table(shard.text, DOCUMENTS, ["text"], pc.field("id").isin(live))
    return int(pc.sum(pc.binary_length(rows["text"])).as_py() or 0)


def _samples(
    store: Store,
    corpus: Named,
    manifest: Manifest,
    rows: Sequence[Mapping[str, Any]],
    live: set[str],
) -> Iterator[Flipped]:
    ids = [row["id"] for row in rows]
    if not ids:
        return
    urls = urls_of(store, manifest, ids)
    texts: dict[str, str] = {}
    # The text of a live document is there, scrubbed; that of another is scrubbed on view.
    for at, some in ((corpus.manifest, live & set(ids)), (manifest, set(ids) - live)):
        texts |= excerpts(store, at, corpus.line, sorted(some)) if some else {}
    for row in rows:
        told = {name: row[name] for name in ("id", "reason", "value", "threshold", "detail")}
        id_ = row["id"]
        yield Flipped(**told, url=urls.get(id_), live=id_ in live, excerpt=texts.get(id_, ""))
