"""The corpus recipe: sources to a corpus, in the order in which it happens."""

from __future__ import annotations

from collections.abc import Mapping

from flows.config import PipelineConfig
from tasks.alarms import alarms
from tasks.annotate import annotate
from tasks.canaries import beside, canaries
from tasks.card import card
from tasks.census import census
from tasks.decontaminate import decontaminate
from tasks.dedup import dedup
from tasks.extract import extract
from tasks.ingest import ingest
from tasks.inspecting import line_of
from tasks.matches import matches
from tasks.planting import SOURCE, CanaryConfig, plant
from tasks.publish import publish
from tasks.scrub import scrub
from tasks.select import select
from tasks.signatures import signatures
from tasks.split import split
from tasks.store.records import Manifest
from tasks.store.run import Run
from tasks.takedown import takedown


def grow_corpus(run: Run, config: PipelineConfig) -> Manifest:
    """Text is written twice, decisions are drops, nothing is copied.

    Each stage takes the corpus as the stage before it left it, and adds to it: text, signals,
    drops or labels.
    """
    snapshots = {source.name: ingest(run, source) for source in config.sources}
    cleaned = clean(run, snapshots, config)
    labelled = split(run, cleaned, config.split)
    counted = census(run, labelled)
    told = alarms(run, labelled, config.alarms)
    if config.canaries is not None:
        try_canaries(run, labelled, config, config.canaries)
    card(run, labelled, counted, told)
    return publish(run, labelled, "corpus")


def clean(run: Run, snapshots: Mapping[str, Manifest], config: PipelineConfig) -> Manifest:
    """What the corpus and its canaries go through alike."""
    text = extract(run, snapshots, config.extract)
    annotated = annotate(run, text, config.annotate, config.quality)
    chosen = select(run, annotated, config.select)
    allowed = takedown(run, chosen)
    signed = signatures(run, allowed, config.dedup)
    unique = dedup(run, signed, config.dedup)
    private = scrub(run, unique, config.scrub)
    matched = matches(run, private, config.decontaminate, config.split)
    return decontaminate(run, matched, config.decontaminate)


def try_canaries(
    run: Run, labelled: Manifest, config: PipelineConfig, wanted: CanaryConfig
) -> Manifest:
    """Made-up defects in copies of documents, sent the same way beside the corpus."""
    aside = beside(run)
    stages = (config.select, config.dedup, config.scrub, config.decontaminate)
    planted = plant(aside, labelled, wanted, *stages)
    clean(aside, {SOURCE: planted}, config)
    return canaries(run, {one.stage: one for one in line_of(aside.visits)}, wanted)
