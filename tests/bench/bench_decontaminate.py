"""Looking for 10,000 questions: matching a shard against datatrove's n-gram filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tasks.benchmarks import DecontaminateConfig
from tasks.decontaminate import decide
from tasks.kernels.words import words
from tasks.matches import build_table, match_shard
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds, peer
from tests.leaks import QUESTIONS, VARIANTS, Planted, plant, read_benchmark
from tests.shared_data import ROOT

CONFIG = DecontaminateConfig()


def run(quick: bool) -> Result:
    """Speeds over the same kind of text: real text in which one document in some has a leak."""
    benchmarks = [read_benchmark(ROOT / "eval" / f"{name}.jsonl.gz") for name in QUESTIONS]
    passages = {(b.name, item): text for b in benchmarks for item, text in b.passages}
    clean = inputs.english(6 if quick else 100) + inputs.web_text(1 if quick else 100)
    hosts = [text[:1500] for text in clean[:: len(clean) // 500]]
    planted = plant(benchmarks, hosts, 100 if quick else 400, CONFIG.min_short_words)
    texts = clean + [one.text for one in planted]
    documents = inputs.documents(texts)
    table = build_table(benchmarks, None, CONFIG)
    match_shard(documents.slice(0, 1), table, CONFIG)  # compiles
    seconds, found = cpu_seconds(lambda: match_shard(documents, table, CONFIG), 5)
    _, ledger = decide([found], CONFIG)
    place_of = dict(zip(documents["id"].to_pylist(), documents["url"].to_pylist(), strict=True))
    leaks = [(int(place_of[row["id"]].rpartition("/")[2]), row) for row in ledger.to_pylist()]

    sample = [*clean[:: len(clean) // 150], *[one.text for one in planted[:: len(planted) // 50]]]
    theirs = peer(
        "decontaminate",
        pa.table(
            {
                "part": ["item"] * len(passages) + ["document"] * len(sample),
                "text": [*passages.values(), *sample],
            }
        ),
    )
    speed = inputs.size_mb(texts) / seconds
    n_items = sum(len({item.split(".")[0] for item, _ in b.passages}) for b in benchmarks)
    recall = _recall(planted, len(clean), leaks)
    alarms = [(place, row) for place, row in leaks if place < len(clean)]
    unexplained = [row for place, row in alarms if not _shared(texts[place], row, passages)]
    return Result(
        ratio=speed / theirs["mb_s"],
        target=150,
        ok=min(recall.values()) >= 0.99 and not unexplained,
        figures={"ours_mb_s": speed, "peer_mb_s": theirs["mb_s"], "mb": inputs.size_mb(texts)},
        quality={
            "items": n_items,
            "planted": len(planted),
            "recall": recall["all"],
            "recall_least": min(recall.values()),
            "clean_documents": len(clean),
            "alarms": len({place for place, _ in alarms}),
            "alarms_unexplained": len(unexplained),
        },
    )


def _recall(
    planted: Sequence[Planted], first: int, leaks: Sequence[tuple[int, Mapping[str, Any]]]
) -> dict[str, float]:
    """The part of the planted passages that condemned their documents, in all and by variant."""
    known = {(place, row["benchmark"], row["item"]) for place, row in leaks}
    found = [(first + n, one.benchmark, one.item) in known for n, one in enumerate(planted)]
    by_variant = {
        variant: [hit for hit, one in zip(found, planted, strict=True) if one.variant == variant]
        for variant in VARIANTS
    }
    return {name: sum(hits) / len(hits) for name, hits in {**by_variant, "all": found}.items()}


def _shared(text: str, row: Mapping[str, Any], passages: Mapping[tuple[str, str], str]) -> bool:
    """Whether what was found stands in both, word for word."""
    passage = words(passages[row["benchmark"], row["item"]])
    width = min(CONFIG.ngram, len(passage))
    begins, ends = words(text)[row["start"] :][:width], words(text)[: row["end"]][-width:]
    runs = [passage[at : at + width] for at in range(len(passage) - width + 1)]
    return begins in runs and ends in runs
