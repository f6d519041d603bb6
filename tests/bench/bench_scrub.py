"""Scrubbing of ordinary text (English prose and web pages) against Presidio's pattern recognisers.

Loam's side is the whole of the stage's work on a table, with findings decided and placeholders
written; Presidio only finds, with the recognisers of the same entities. What it reads with all the
recognisers it loads is told beside it. Loam's memory of windows is emptied before each repeat.
"""

from __future__ import annotations

import gzip
import json
import time
from collections import Counter

import pyarrow as pa

from tasks import scrub
from tasks.scrub import Scrubber, ScrubConfig, scrub_shard
from tests.bench.harness import Result, cpu_seconds
from tests.bench.inputs import documents, english, multilingual, size_mb, web_text
from tests.presidio import presidio, presidio_findings
from tests.shared_data import shared_data

CONFIG = ScrubConfig()
TARGET = 150.0


def run(quick: bool) -> Result:
    """The ratio of speeds; `ok` where the findings are Presidio's, text by text.

    Each of its findings that Loam counts as personal is compared by type, place and score, over
    the texts that both read: ordinary ones, those of 75 languages and synthetic sentences. Recall
    by type is of them.
    """
    table = documents(english() + web_text(3 if quick else 8))
    ours, mb = min(_seconds(table) for _ in range(3)), table["text"].nbytes / 1e6
    ordinary = english(0.5 if quick else 2)[::2] + web_text(0.5 if quick else 2)[::2]
    peer, _ = cpu_seconds(lambda: [_presidio(text) for text in ordinary], repeats=2)
    peer_mb_s = size_mb(ordinary) / peer
    every = ordinary[::4]
    every_seconds, _ = cpu_seconds(lambda: [presidio().analyze(text, "en") for text in every], 2)
    sample = ordinary + multilingual(1 if quick else 5)[::3] + _sentences()
    scrubber = Scrubber(CONFIG)
    expected, found = Counter[str](), Counter[str]()
    differing = 0
    for text in sample:
        theirs = {f for f in _presidio(text) if scrubber.is_personal(f.type, text[f.start : f.end])}
        mine = set(scrubber.find(text))
        differing += theirs != mine
        expected.update(finding.type for finding in theirs)
        found.update(finding.type for finding in theirs & mine)
    quality = {
        "texts": len(sample),
        "texts_that_differ": differing,
        "findings": dict(sorted(expected.items())),
        "recall": {type_: found[type_] / n for type_, n in sorted(expected.items())},
    }
    ours_mb_s = mb / ours
    figures = {
        "ours_mb_s": ours_mb_s,
        "peer_mb_s": peer_mb_s,
        "peer_every_recogniser_mb_s": size_mb(every) / every_seconds,
        "ours_mb": mb,
    }
    return Result(ours_mb_s / peer_mb_s, TARGET, differing == 0, figures, quality)


def _seconds(table: pa.Table) -> float:
    """CPU seconds of the stage's work, set up and compiled, but with nothing remembered."""
    scrub._scrubber.cache_clear()
    scrub_shard(documents(["ann@example.com, +44 20 7946 0958, 8.8.8.8"]), CONFIG)
    began = time.process_time()
    scrub_shard(table, CONFIG)
    return time.process_time() - began


def _presidio(text: str) -> list:
    return presidio_findings(text, CONFIG.entities, CONFIG.threshold)


def _sentences() -> list[str]:
    path = shared_data("pii/presidio-research-synth_dataset_v2.json.gz")
    return [row["full_text"] for row in json.loads(gzip.decompress(path.read_bytes()))]
