"""What leaked is told and shown: a small corpus, a quiz, and the evidence for each drop."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import DataError
from tasks.benchmarks import BenchmarkConfig, DecontaminateConfig
from tasks.decontaminate import decontaminate
from tasks.inspecting import lineage
from tasks.kernels.words import words
from tasks.leaks import BenchmarkCount, benchmark_counts, leak_samples, span_of_words
from tasks.matches import matches
from tasks.split import HELDOUT, SplitConfig
from tasks.store.pins import hold
from tasks.store.records import Manifest
from tasks.store.rows import document_id
from tasks.store.run import Run
from tasks.store.store import Store
from tasks.takedown import record
from tests.tasks.store import chain

NINE = "which of the nine planets has the largest moon"
LONG = " ".join(f"w{n}" for n in range(400))
QUIZ = [
    {"question": NINE},
    {"question": LONG},
    {"question": "nobody ever asked this question in any text at all"},
]
HELD = " ".join(f"h{n}" for n in range(30))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Store.at(str(tmp_path / "store")), "main", "run-1", shard_rows=2, say=lambda _: None)


@pytest.fixture
def line(run: Run, tmp_path: Path) -> list[Manifest]:
    """A corpus in which one text holds the short question, one much of the long one and one half of
    a held-out document; the chain upper-cases them and adds a character."""
    texts = {
        "short": f"He asked: “{NINE}?” and left",
        "long": f"{'before ' * 40}{' '.join(LONG.split()[200:390])}{' after' * 40}",
        "half": " ".join(HELD.split()[:20]) + " and then some more",
        "clean": "nothing of interest stands here",
    }
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("\n".join(map(json.dumps, QUIZ)))
    held = [{"id": "f" * 32, "digest": "d", "text": HELD, "source": "web", "split": "test"}]
    split = SplitConfig()
    ref = run.store.put_table(HELDOUT.table(held), HELDOUT)
    assert ref is not None
    hold(run, "heldout", split.model_dump(), lambda: ref)
    config = DecontaminateConfig(
        benchmarks=(BenchmarkConfig(name="quiz", path=str(quiz), fields=("question",)),)
    )
    corpus = chain.grow(run, {"web": texts})
    matched = matches.__wrapped__(run, corpus, config, split)  # type: ignore[attr-defined]
    decided = decontaminate.__wrapped__(run, matched, config)  # type: ignore[attr-defined]
    return lineage(run.store, decided)


def test_each_benchmark_says_what_of_how_much_was_found_and_what_it_cost(
    line: list[Manifest],
) -> None:
    assert line[-1].drops == {"contaminated": 2, "heldout_overlap": 1}
    assert benchmark_counts(line) == [
        BenchmarkCount("quiz", items=3, items_matched=2, items_leaked=2, documents_dropped=2),
        BenchmarkCount("heldout", items=1, items_matched=1, items_leaked=1, documents_dropped=1),
    ]
    assert benchmark_counts(line[:-1]) == []


def test_a_leak_is_shown_beside_the_item_it_is_of(run: Run, line: list[Manifest]) -> None:
    leaks = {leak.id: leak for leak in leak_samples(run.store, line, None, 9)}
    assert list(leaks) == sorted(document_id("web", name) for name in ("short", "long", "half"))
    short = leaks[document_id("web", "short")]
    assert (short.benchmark, short.item, short.passage) == ("quiz", "0.question", NINE)
    assert (short.before, short.after) == ("HE ASKED: “", "AND LEFT!")
    assert short.span == f"{NINE.upper()}?”"
    half = leaks[document_id("web", "half")]
    assert (half.benchmark, half.reason, half.passage) == ("heldout", "heldout_overlap", HELD)
    assert half.span == " ".join(HELD.split()[:20]).upper()


def test_of_a_long_passage_the_part_that_was_found_is_shown(run: Run, line: list[Manifest]) -> None:
    long = next(leak for leak in leak_samples(run.store, line, "quiz", 9) if leak.matched > 1)
    assert long.span.startswith("W200 W201 ")
    assert long.span.endswith(" W388 W389")
    assert " w200 w201 " in long.passage
    assert "w0 " not in long.passage


def test_the_sample_is_the_first_by_id_of_the_benchmark_asked_for(
    run: Run, line: list[Manifest]
) -> None:
    quiz = leak_samples(run.store, line, "quiz", 9)
    assert [leak.id for leak in quiz] == sorted(leak.id for leak in quiz)
    assert {leak.benchmark for leak in quiz} == {"quiz"}
    assert leak_samples(run.store, line, "quiz", 1) == quiz[:1]
    with pytest.raises(DataError, match="benchmarks with leaks: heldout, quiz"):
        leak_samples(run.store, line, "absent", 1)
    with pytest.raises(DataError, match="no document was dropped"):
        leak_samples(run.store, line[:-1], None, 1)


def test_nothing_is_shown_of_what_is_taken_down(run: Run, line: list[Manifest]) -> None:
    first, *others = leak_samples(run.store, line, None, 9)
    record(run.store, [first.id], "asked by the author", "me")
    assert leak_samples(run.store, line, None, 9) == others


@given(st.text("ab é’-\u00ad\u0301漢ﬁ\n", max_size=30), st.data())
def test_the_span_of_some_words_holds_just_those_words(text: str, data: st.DataObject) -> None:
    units = words(text)
    if units:
        start = data.draw(st.integers(0, len(units) - 1))
        end = data.draw(st.integers(start + 1, len(units)))
        first, last = span_of_words(text, start, end)
        assert words(text[first:last]) == units[start:end]
