"""The corpus recipe: sources to a corpus, in the order in which it happens."""

from __future__ import annotations

from flows.config import PipelineConfig
from tasks.annotate import annotate
from tasks.decontaminate import decontaminate
from tasks.dedup import dedup, signatures
from tasks.extract import extract
from tasks.ingest import ingest
from tasks.matches import matches
from tasks.publish import publish
from tasks.scrub import scrub
from tasks.select import select
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
    text = extract(run, snapshots, config.extract)
    annotated = annotate(run, text, config.annotate, config.quality)
    chosen = select(run, annotated, config.select)
    allowed = takedown(run, chosen)
    signed = signatures(run, allowed, config.dedup)
    unique = dedup(run, signed, config.dedup)
    private = scrub(run, unique, config.scrub)
    matched = matches(run, private, config.decontaminate, config.split)
    clean = decontaminate(run, matched, config.decontaminate)
    labelled = split(run, clean, config.split)
    return publish(run, labelled, "corpus")
