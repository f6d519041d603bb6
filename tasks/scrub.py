"""tmp"""

from __future__ import annotations

from tasks.as_task import as_task
from tasks.scrubbing import STAGE, ScrubConfig, scrub_shard
from tasks.store.corpus import Shard, commit_stage, kept_rows, open_corpus
from tasks.store.records import Manifest
from tasks.store.rows import text_bytes
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, FINDINGS
from tasks.store.store import Store


def scrub_request(corpus: Manifest, config: ScrubConfig) -> Request:
    """What decides the scrubbed text: the text, and what counts as personal data."""
    return Request(STAGE, config.model_dump(), {"corpus": corpus})


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
