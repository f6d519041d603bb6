"""Annotate: language, quality, topic and the heuristics of every document, measured once.

What the heuristics measure is in `tasks/signals.py`, what the classifiers are in
`tasks/language.py` and `tasks/quality.py`; which documents leave for it, in `tasks/select.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from llm.config import Config
from tasks.as_task import as_task
from tasks.language import FastTextModel, LanguageModel
from tasks.quality import GOOD, QualityConfig, learn_quality
from tasks.signals import SIGNALS, text_signals
from tasks.store.corpus import Shard, commit_stage, open_corpus
from tasks.store.pins import Pin, hold_file
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("annotate", 2, ("unicode",))

# Bounds what the models have in memory at a time: a probability for each text and label.
_BATCH_ROWS = 1024


class AnnotateConfig(Config):
    """Which models tell language, quality and topic. What the heuristics measure and which part of
    a text tells its language is fixed: it is the stage's version."""

    language_model: str | None = None
    """Path or URL of fastText's lid.176 (Joulin et al. 2016), .bin or .ftz; without one a
    document's language is what its page says. Pinned by content."""

    language_model_sha256: str | None = None
    """What the language model's sha256 must be, if it is to be checked."""

    quality_model: str | None = None
    """Path or URL of a supervised fastText classifier of good against ordinary text, after Brown
    et al. 2020, appendix A, and DCLM (Li et al. 2024). Pinned by content. The section `quality`
    trains one instead."""

    quality_model_sha256: str | None = None
    """What the quality model's sha256 must be, if it is to be checked."""

    quality_label: str = GOOD
    """The label for good text of `quality_model`, without `__label__`; its probability is the
    signal. DCLM's name for it."""

    topic_model: str | None = None
    """Path or URL of any supervised fastText classifier; its most probable label is the topic.
    Pinned by content."""

    topic_model_sha256: str | None = None
    """What the topic model's sha256 must be, if it is to be checked."""


@dataclass(frozen=True)
class Classifiers:
    """The models at hand; of `quality`, the probability of `quality_label` is measured."""

    language: LanguageModel | None = None
    quality: FastTextModel | None = None
    topic: FastTextModel | None = None
    quality_label: str = GOOD


def annotate_shard(documents: pa.Table, models: Classifiers) -> pa.Table:
    """The signals of each document: one row of SIGNALS per row of DOCUMENTS, in the same order."""
    wanted = documents.select(["id", "digest", "text", "language"])
    parts = [_annotated(batch, models) for batch in wanted.to_batches(max_chunksize=_BATCH_ROWS)]
    return pa.concat_tables([SIGNALS.empty(), *parts]).combine_chunks()


def _annotated(batch: pa.RecordBatch, models: Classifiers) -> pa.Table:
    texts = batch.column("text")
    nothing = pa.nulls(len(texts))
    columns = {"id": batch.column("id"), "digest": batch.column("digest")}
    columns |= _languages(texts, batch.column("language"), models.language)
    columns |= {"quality": nothing, "topic": nothing, "topic_score": nothing}
    if models.quality is not None:
        columns["quality"] = pa.array(models.quality.probability(texts, models.quality_label))
    if models.topic is not None:
        topics, certain = models.topic.top(texts)
        columns |= {"topic": pa.array(topics), "topic_score": pa.array(certain)}
    columns |= text_signals(texts)
    return pa.table(
        {field.name: columns[field.name].cast(field.type) for field in SIGNALS.arrow},
        schema=SIGNALS.arrow,
    )


def _languages(
    texts: pa.Array, pages: pa.Array, model: LanguageModel | None
) -> dict[str, pa.Array]:
    """Language, its score and where it is from: the model, else the page."""
    if model is None:
        languages, origin = pages, "page"
        scores = pa.nulls(len(texts))
    else:
        codes, found = model.predict(texts)
        languages, origin = pa.array(codes, pa.string()), "model"
        scores = pa.array(found, pa.float64())
    known = pc.fill_null(pc.not_equal(languages, ""), False)
    return {
        "language": pc.if_else(known, languages, None),
        "language_score": pc.if_else(known, scores, None),
        "language_from": pc.if_else(known, origin, "none"),
    }


@dataclass(frozen=True)
class Pins:
    """The models of a pipeline, pinned: `quality` was brought from outside or learnt."""

    language: Pin | None
    quality: Pin | None
    topic: Pin | None

    def sha256(self) -> dict[str, str]:
        """The content of each by its pin's name: it decides the signals."""
        held = (self.language, self.quality, self.topic)
        return {pin.name: pin.object.sha256 for pin in held if pin is not None}


def pin_models(
    run: Run, corpus: Manifest, config: AnnotateConfig, quality: QualityConfig | None
) -> Pins:
    """Each model pinned the first time: by content, or once it is learnt from the corpus."""
    return Pins(
        _hold_model(run, "language-model", config.language_model, config.language_model_sha256),
        learn_quality(run, corpus, quality)
        if quality
        else _hold_model(run, "quality-model", config.quality_model, config.quality_model_sha256),
        _hold_model(run, "topic-model", config.topic_model, config.topic_model_sha256),
    )


def _hold_model(run: Run, name: str, url: str | None, sha256: str | None) -> Pin | None:
    return hold_file(run, name, url, "model", sha256, FastTextModel) if url else None


def annotate_request(corpus: Manifest, quality_label: str, pins: Pins) -> Request:
    """What decides the signals: the text, the models by content, and what the label is called."""
    return Request(STAGE, {"quality_label": quality_label}, {"corpus": corpus}, pins.sha256())


@lru_cache(maxsize=1)
def _language(store: Store, ref: ObjectRef) -> LanguageModel:
    return LanguageModel(store.read_bytes(ref))


@lru_cache(maxsize=2)
def _classifier(store: Store, ref: ObjectRef) -> FastTextModel:
    return FastTextModel(store.read_bytes(ref))


def annotate_work(store: Store, shard: Shard, pins: Pins, quality_label: str) -> Outcome:
    documents = store.read_table(shard.text, DOCUMENTS)
    models = Classifiers(
        _language(store, pins.language.object) if pins.language else None,
        _classifier(store, pins.quality.object) if pins.quality else None,
        _classifier(store, pins.topic.object) if pins.topic else None,
        quality_label,
    )
    signals = annotate_shard(documents, models)
    return Outcome(((SIGNALS, signals),), documents.num_rows, signals.num_rows)


@as_task("annotate")
def annotate(
    run: Run, corpus: Manifest, config: AnnotateConfig, quality: QualityConfig | None = None
) -> Manifest:
    """The signals of every document of the text, dropped or not.

    With `quality`, a classifier is learnt from the text first, once, and pinned.
    """
    pins = pin_models(run, corpus, config, quality)
    label = GOOD if quality else config.quality_label
    request = annotate_request(corpus, label, pins)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    actions = [Action(shard.inputs, (shard, pins, label)) for shard in shards]
    receipts = run_actions(run, request, annotate_work, actions)
    summary = {"classifier": pins.quality.facts} if quality and pins.quality else {}
    return commit_stage(run, request, receipts, shards, measured=SIGNALS, summary=summary)
