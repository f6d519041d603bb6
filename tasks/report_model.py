"""The report's account of a model: tokens, tokenizer, shape, curves, samples, figures, version."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llm import files
from tasks.register import Registered
from tasks.report_page import (
    Fact,
    Registration,
    Sample,
    Score,
    TokenCount,
    TrainingPoint,
    ValidationPoint,
)
from tasks.store.records import Manifest
from tasks.store.schema import DATASET
from tasks.store.store import Store

MODEL = "model"
# In the order in which they are shown, the model last.
_BASELINES = {
    "uniform": "every token equally likely",
    "unigram": "tokens as frequent as in training",
    "gzip": "gzip -9 of the split",
}
_SPLITS = ("train", "validation", "test")
SAMPLED_STEPS = 8
SPARE = "<|spare_"


def tokens_part(store: Store, dataset: Manifest, words: pa.Table) -> tuple[TokenCount, ...]:
    """Tokens by source and split; `words` (id, words) are those of the documents that have any.

    Where a document of a group was not counted, as a held-out one that has left the corpus since,
    the group has no number of words.
    """
    columns = ["id", "length", "n_bytes", "split", "source"]
    # Of an erased document the row is left, under no split any more.
    there = pc.field("split").isin(_SPLITS)
    rows = store.read_table(dataset.object("dataset"), DATASET, columns, there)
    joined = rows.join(words, "id").append_column("documents", pa.array([1] * rows.num_rows))
    grouped = joined.group_by(["source", "split"]).aggregate(
        [("documents", "sum"), ("length", "sum"), ("n_bytes", "sum"), ("words", "sum"),
         ("words", "count")]
    )  # fmt: skip
    counts = [
        TokenCount(
            source=row["source"],
            split=row["split"],
            documents=row["documents_sum"],
            tokens=row["length_sum"],
            words=int(row["words_sum"]) if row["words_count"] == row["documents_sum"] else None,
            n_bytes=row["n_bytes_sum"],
        )
        for row in grouped.to_pylist()
    ]
    return tuple(sorted(counts, key=lambda one: (one.source, _SPLITS.index(one.split))))


def tokenizer_part(store: Store, dataset: Manifest) -> tuple[tuple[Fact, ...], tuple[str, ...]]:
    """What the pinned tokenizer is, and those of its reserved tokens that have a meaning."""
    from llm.tokenizer import Tokenizer

    ref = dataset.object("tokenizer")
    body = store.read_bytes(ref)
    tokenizer = Tokenizer.from_bytes(body)
    facts = (
        Fact(name="kind", value=_kind(json.loads(body))),
        Fact(name="vocabulary", value=tokenizer.vocab_size),
        Fact(name="reserved tokens", value=len(tokenizer.special_ids)),
        Fact(name="sha256", value=ref.sha256[:12]),
        *_fertility(dataset.summary["fertility"]),
    )
    return facts, tuple(name for name in tokenizer.special_ids if not name.startswith(SPARE))


def _kind(file: Mapping[str, Any]) -> str:
    """What the tokenizer of a tokenizer.json is."""
    model = file["model"]
    if model["type"] == "BPE" and not model["merges"]:
        return "characters"
    byte_level = (file.get("decoder") or {}).get("type") == "ByteLevel"
    return f"byte-level {model['type']}" if byte_level else str(model["type"])


def _fertility(counts: Mapping[str, Any]) -> tuple[Fact, ...]:
    """How many tokens a word of the held-out set takes, and how many bytes a token holds; and the
    same of the tokenizer compared with."""
    facts = []
    compared = counts.get("compared")
    told = [("", counts["tokens"])]
    told += [(f", {compared['path'].rpartition('/')[2]}", compared["tokens"])] if compared else []
    for whose, tokens in told:
        if tokens and counts["words"]:
            per_word, per_token = tokens / counts["words"], counts["text_bytes"] / tokens
            facts += [
                Fact(name=f"held-out tokens per word{whose}", value=round(per_word, 3)),
                Fact(name=f"held-out bytes per token{whose}", value=round(per_token, 3)),
            ]
    return tuple(facts)


def model_part(trained: Manifest) -> dict[str, tuple[Fact, ...]]:
    """The model's shape, the recipe and the machine it was trained on; settings go by the names
    they have in a config."""
    result = trained.summary["result"]
    recipe = trained.payload["config"]["train"]
    flat = {name: value for name, value in recipe.items() if name != "optim"}
    size = {"parameters": result["n_parameters"], "tokens seen": result["tokens"]}
    return {
        "model": _facts({**size, **result["model"]}),
        "recipe": _facts({**flat, **recipe.get("optim", {})}),
        "machine": _facts(result["environment"]),
    }


def _facts(values: Mapping[str, Any]) -> tuple[Fact, ...]:
    return tuple(Fact(name=name, value=_said(value)) for name, value in values.items())


def _said(value: Any) -> str | int | float:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str | int | float) else json.dumps(value)


def curves_part(
    store: Store, trained: Manifest
) -> tuple[tuple[TrainingPoint, ...], tuple[ValidationPoint, ...]]:
    """What training logged, and the validation losses along the way."""
    from llm.metrics import read_metrics

    rows = read_metrics(_run_url(store, trained))
    training = tuple(
        TrainingPoint(
            step=row["step"],
            loss=row.get("loss"),
            learning_rate=row.get("lr_matrix"),
            grad_norm=row.get("grad_norm"),
            tokens_per_second=row.get("tokens_per_second"),
        )
        for row in rows
    )
    validation = tuple(
        ValidationPoint(step=row["step"], loss=row["validation_loss"])
        for row in rows
        if "validation_loss" in row
    )
    return training, validation


def samples_part(store: Store, trained: Manifest) -> tuple[Sample, ...]:
    """What the model wrote, at a few steps from the first to the last."""
    urls = files.list_urls(f"{_run_url(store, trained)}/samples")
    bodies = files.read_many(_spread(urls, SAMPLED_STEPS))
    drawn = [json.loads(body) for body in bodies if body]
    return tuple(
        Sample(step=at["step"], prompt=sample["prompt"], text=sample["text"])
        for at in drawn
        for sample in at["samples"]
    )


def _spread(items: Sequence[str], most: int) -> list[str]:
    """At most so many of the items, evenly apart, both ends among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _run_url(store: Store, trained: Manifest) -> str:
    return f"{store.root}/{trained.summary['run']}"


def evaluation_part(evaluated: Manifest, name: str) -> tuple[Score, ...]:
    """The model called `name` and the baselines, split by split."""
    splits: Mapping[str, Mapping[str, Any]] = evaluated.summary["splits"]
    return tuple(
        _score(split, who, splits[split][who], name)
        for split in sorted(splits, key=_SPLITS.index)
        for who in (*_BASELINES, MODEL)
        if who in splits[split]
    )


def _score(split: str, who: str, figures: Mapping[str, Any], name: str) -> Score:
    return Score(
        split=split,
        name=name if who == MODEL else who,
        bits_per_byte=figures["bits_per_byte"],
        # gzip knows no tokens.
        perplexity=None if who == "gzip" else figures["perplexity"],
        note=_BASELINES.get(who, f"{figures['n_tokens']:,} tokens, {figures['n_bytes']:,} bytes"),
        baseline=who != MODEL,
    )


def registration_part(registered: Registered) -> Registration:
    """The version, the names that point at it, and what the gate said of it."""
    verdict, _, why = registered.verdict.partition(": ")
    return Registration(
        model=registered.version.name,
        version=registered.version.version,
        aliases=registered.aliases,
        gate_passed=verdict == "promoted",
        gate=why,
    )
