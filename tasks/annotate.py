"""Annotate: language and quality signals of every document, measured once and stored.

What is measured is in `tasks/signals.py`; which documents leave for it, in `tasks/select.py`.
"""

from __future__ import annotations

from functools import lru_cache

from tasks.as_task import as_task
from tasks.language import FastTextModel, LanguageModel
from tasks.signals import SIGNALS, AnnotateConfig, annotate_shard
from tasks.store.corpus import Shard, commit_stage, open_corpus
from tasks.store.pins import Pin, hold_file
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("annotate", 1, ("fasttext-numpy2", "unicode"))
_MODELS = {"language_model", "language_model_sha256", "quality_model", "quality_model_sha256"}


def pin_models(run: Run, config: AnnotateConfig) -> tuple[Pin | None, Pin | None]:
    """The language and the quality model, each pinned by content the first time it is seen."""
    language = quality = None
    if config.language_model:
        language = hold_file(
            run,
            "language-model",
            config.language_model,
            "model",
            config.language_model_sha256,
            FastTextModel,
        )
    if config.quality_model:
        quality = hold_file(
            run,
            "quality-model",
            config.quality_model,
            "model",
            config.quality_model_sha256,
            FastTextModel,
        )
    return language, quality


def annotate_request(
    corpus: Manifest, config: AnnotateConfig, language: Pin | None, quality: Pin | None
) -> Request:
    """What decides the signals: the text, the models by content, and what the label is called."""
    pins = {pin.name: pin.object.sha256 for pin in (language, quality) if pin is not None}
    return Request(STAGE, config.model_dump(exclude=_MODELS), {"corpus": corpus}, pins)


@lru_cache(maxsize=1)
def _language(store: Store, ref: ObjectRef) -> LanguageModel:
    return LanguageModel(store.read_bytes(ref))


@lru_cache(maxsize=1)
def _quality(store: Store, ref: ObjectRef) -> FastTextModel:
    return FastTextModel(store.read_bytes(ref))


def annotate_work(
    store: Store,
    shard: Shard,
    config: AnnotateConfig,
    language: ObjectRef | None,
    quality: ObjectRef | None,
) -> Outcome:
    documents = store.read_table(shard.text, DOCUMENTS)
    signals = annotate_shard(
        documents,
        config,
        _language(store, language) if language else None,
        _quality(store, quality) if quality else None,
    )
    return Outcome(((SIGNALS, signals),), documents.num_rows, signals.num_rows)


@as_task("annotate")
def annotate(run: Run, corpus: Manifest, config: AnnotateConfig) -> Manifest:
    """The signals of every document of the text, dropped or not."""
    language, quality = pin_models(run, config)
    request = annotate_request(corpus, config, language, quality)
    if done := reuse(run, request):
        return done
    shards = open_corpus(run.store, corpus).shards
    models = tuple(pin.object if pin else None for pin in (language, quality))
    actions = [Action(shard.inputs, (shard, config, *models)) for shard in shards]
    receipts = run_actions(run, request, annotate_work, actions)
    return commit_stage(run, request, receipts, shards, measured=SIGNALS)
