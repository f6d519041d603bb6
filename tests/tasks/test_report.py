"""The parts of a report say what the store holds, on small stores whose content is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from llm.errors import DataError
from tasks.decontaminate import LEDGER
from tasks.inspecting import lineage
from tasks.register import Registered
from tasks.registry import ModelVersion
from tasks.report import Told, assemble, write_report
from tasks.report_corpus import contamination_part, funnel_part, sources_part
from tasks.report_model import evaluation_part, registration_part, samples_part, tokens_part
from tasks.store.corpus import open_corpus
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.run import Run, Visit
from tasks.store.schema import DATASET
from tasks.store.store import Store
from tests.tasks.store import chain


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store.at(str(tmp_path / "store")), "main", "run-1", shard_rows=2, say=lambda _: None)


def manifest(**fields: object) -> Manifest:
    """A manifest of which only `fields` matter."""
    empty: dict[str, object] = {
        "stage": "any", "fingerprint": "f" * 64, "payload": {}, "inputs": {}, "rows_in": 0,
        "rows_out": 0, "drops": {}, "data_digest": "", "receipts": None,
    }  # fmt: skip
    return Manifest(**{**empty, **fields})  # type: ignore[arg-type]


def test_the_start_of_the_funnel_is_all_sources_together(run: Run) -> None:
    grown = chain.grow(run, {"web": {"a": "one text", "b": "x"}, "files": {"c": "another"}})
    rows = {row.stage: row for row in funnel_part(run.store, lineage(run.store, grown))}
    assert [row.share for stage, row in rows.items() if stage.startswith("import")] == [
        1 / 3,
        2 / 3,
    ]
    assert rows["extract"].share == 1
    assert (rows["select"].dropped, rows["select"].share) == (1, 2 / 3)


def test_sources_count_live_documents_and_bytes_and_name_their_licenses(run: Run) -> None:
    grown = chain.grow(run, {"web": {"a": "one text", "b": "x"}, "files": {"c": "anothér"}})
    web, files = sorted(sources_part(run.store, open_corpus(run.store, grown)), reverse=True,
                        key=lambda source: source.source)  # fmt: skip
    # The chain adds a character to every text that it keeps.
    assert (web.source, web.documents, web.n_bytes) == ("web", 1, len("one text!"))
    assert (files.source, files.documents, files.n_bytes) == ("files", 1, len(b"anoth\xc3\xa9r!"))
    assert web.licenses == ()


def test_contamination_tells_each_benchmark_and_what_matched_what(run: Run) -> None:
    store = run.store
    grown = chain.grow(run, {"web": {"a": "one text", "b": "another text"}})
    a, b = document_id("web", "a"), document_id("web", "b")
    ledger = [
        {"id": a, "benchmark": "quiz", "item": "0.question", "overlap": 1.0},
        {"id": a, "benchmark": "quiz", "item": "0.answer", "overlap": 0.5},
        {"id": b, "benchmark": "quiz", "item": "2.question", "overlap": 1.0},
        {"id": b, "benchmark": "heldout", "item": a, "overlap": 0.9},
    ]
    rows = [{**row, "reason": "contaminated", "matched": 3, "start": 0, "end": 9} for row in ledger]
    ref = store.put_table(LEDGER.table(rows), LEDGER)
    assert ref is not None
    matched = manifest(
        stage="matches",
        summary={
            "benchmarks": {"quiz": {"items": 5}, "heldout": {"items": 2}, "old": {"items": 3}}
        },
    )
    found_of = {"items_matched": 3, "items_leaked": 2, "documents_dropped": 2}
    held_of = {"items_matched": 1, "items_leaked": 1, "documents_dropped": 1}
    decided = replace(
        grown,
        stage="decontaminate",
        objects={"ledger": (ref,)},
        summary={"benchmarks": {"quiz": found_of, "heldout": held_of}},
    )
    benchmarks, found, n_found = contamination_part(store, matched, decided)
    assert [tuple(b.model_dump().values()) for b in benchmarks] == [
        ("old", 3, 0, 0, 0),
        ("quiz", 5, 3, 2, 2),
        ("held-out set", 2, 1, 1, 1),
    ]
    assert n_found == len(ledger)
    assert sorted((row.benchmark, row.item) for row in found) == [
        ("held-out set", a),
        *[("quiz", item) for item in ("0.answer", "0.question", "2.question")],
    ]


def test_tokens_add_up_and_a_group_with_an_uncounted_document_has_no_words(run: Run) -> None:
    rows = [
        {"id": "1", "length": 10, "n_bytes": 40, "split": "train", "source": "web"},
        {"id": "2", "length": 30, "n_bytes": 90, "split": "train", "source": "web"},
        {"id": "3", "length": 5, "n_bytes": 20, "split": "validation", "source": "web"},
    ]
    ref = run.store.put_table(DATASET.table(rows), DATASET)
    assert ref is not None
    words = pa.table({"id": ["1", "2"], "words": [8.0, 12.0]})
    train, validation = tokens_part(run.store, manifest(objects={"dataset": (ref,)}), words)
    assert (train.documents, train.tokens, train.n_bytes, train.words) == (2, 40, 130, 20)
    assert (validation.tokens, validation.words) == (5, None)


def test_samples_are_few_from_the_first_step_to_the_last(run: Run) -> None:
    folder = Path(run.store.root.removeprefix("file://")) / "runs/r/samples"
    folder.mkdir(parents=True)
    for step in range(10, 510, 10):
        drawn = {"step": step, "samples": [{"prompt": "The ", "text": f"at {step}"}]}
        (folder / f"{step:08d}.json").write_text(json.dumps(drawn))
    shown = samples_part(run.store, manifest(summary={"run": "runs/r"}))
    steps = [sample.step for sample in shown]
    assert (steps[0], steps[-1], len(steps)) == (10, 500, 8)
    assert steps == sorted(set(steps))
    assert shown[0].text == "at 10"


def test_each_split_shows_its_baselines_before_the_model() -> None:
    figures = {"bits_per_byte": 2.0, "perplexity": 9.0, "n_tokens": 1234, "n_bytes": 5678}
    splits = {
        split: dict.fromkeys(("model", "gzip", "uniform", "unigram"), figures)
        for split in ("test", "validation")
    }
    scores = evaluation_part(manifest(summary={"splits": splits}), "m version 1")
    assert [(score.split, score.name) for score in scores] == [
        (split, name)
        for split in ("validation", "test")
        for name in ("uniform", "unigram", "gzip", "m version 1")
    ]
    assert [score.perplexity for score in scores[:4]] == [9.0, 9.0, None, 9.0]
    assert scores[3].note == "1,234 tokens, 5,678 bytes"


@pytest.mark.parametrize("verdict", ["promoted: it is better", "held back: it is worse"])
def test_the_gate_is_told_as_it_was_decided(verdict: str) -> None:
    version = ModelVersion("m", 3, "", {}, {}, "", {}, "")
    told = registration_part(Registered(version, ("candidate",), verdict))
    assert told.gate_passed == verdict.startswith("promoted")
    assert verdict.endswith(told.gate)


def test_a_run_without_a_corpus_has_no_report(run: Run, tmp_path: Path) -> None:
    grown = chain.grow(run, {"web": {"a": "one text"}})
    told = Told(run.store, "main", (grown,), (), {})
    with pytest.raises(DataError, match="no corpus"):
        assemble(told)
    with pytest.raises(DataError, match="no corpus"):
        write_report(run.store, "main", [Visit("scrub", grown, 1.0, False)], {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
