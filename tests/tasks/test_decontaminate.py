"""Contamination: real benchmark items planted into real speeches, and a brute force."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import unicodedata
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llm.errors import ConfigError, DataError
from tasks.benchmarks import (
    Benchmark,
    BenchmarkConfig,
    DecontaminateConfig,
    load_benchmark,
    pin_benchmarks,
)
from tasks.decontaminate import LEDGER, decide
from tasks.kernels.words import words
from tasks.matches import MATCHES, build_table, match_shard
from tasks.store.rows import document_id, text_digest
from tasks.store.run import Run
from tasks.store.schema import DROPS
from tasks.store.store import Store
from tests.leaks import QUESTIONS, VARIANTS, plant, read_benchmark
from tests.shared_data import shared_data

CONFIG = DecontaminateConfig()


def documents(texts: dict[str, str]) -> pa.Table:
    return pa.table(
        {
            "id": pa.array(texts, pa.string()),
            "digest": [text_digest(text) for text in texts.values()],
            "text": pa.array(texts.values(), pa.large_string()),
        }
    )


def benchmark(*texts: str, name: str = "exam") -> Benchmark:
    return Benchmark(name, tuple((f"{n}.text", text) for n, text in enumerate(texts)), ())


def decontaminate(
    texts: dict[str, str],
    benchmarks: list[Benchmark],
    heldout: dict[str, str] | None = None,
    config: DecontaminateConfig = CONFIG,
) -> tuple[dict[str, dict], list[dict]]:
    """Drops by id, and the ledger's rows."""
    table = build_table(benchmarks, documents(heldout) if heldout else None, config)
    drops, ledger = decide([match_shard(documents(texts), table, config)], config)
    return {row["id"]: row for row in drops.to_pylist()}, ledger.to_pylist()


def real(name: str, *fields: str) -> Benchmark:
    return load_benchmark(shared_data(f"eval/{name}.jsonl.gz").read_bytes(), name, fields)


def speeches() -> list[str]:
    """Passages of 200 words out of the State of the Union addresses."""
    with gzip.open(shared_data("pretrain/sotu-before-1960.jsonl.gz")) as file:
        texts = [json.loads(line)["text"].split() for line in file]
    return [
        " ".join(text[at : at + 200]) for text in texts for at in range(0, len(text) - 200, 500)
    ]


def numbered(start: int, count: int) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


def test_verbatim_leaks_of_real_benchmarks_are_found_whatever_their_case_and_typography():
    benchmarks = [read_benchmark(shared_data(f"eval/{name}.jsonl.gz")) for name in QUESTIONS]
    planted = plant(benchmarks, speeches(), 200, CONFIG.min_short_words)
    texts = {document_id("planted", str(n)): one.text for n, one in enumerate(planted)}
    matches = match_shard(documents(texts), build_table(benchmarks, None, CONFIG), CONFIG)
    drops, ledger = decide([matches], CONFIG)
    found = {(row["id"], row["benchmark"], row["item"]) for row in ledger.to_pylist()}
    for variant in VARIANTS:
        its = [
            (id, one.benchmark, one.item)
            for id, one in zip(texts, planted, strict=True)
            if one.variant == variant
        ]
        assert len(its) >= 60
        missed = [one for one in its if one not in found]
        assert 1 - len(missed) / len(its) >= 0.99, (variant, missed)  # TARGETS.md
    assert set(drops["id"].to_pylist()) == set(texts)
    assert (drops.schema, ledger.schema) == (DROPS.arrow, LEDGER.arrow)
    assert matches.schema == MATCHES.arrow


def test_alarms_on_real_text_are_none_or_show_a_shared_passage_word_for_word():
    benchmarks = [
        real("gsm8k-test", "question", "answer"),
        real("HumanEval", "prompt"),
        real("mmlu-redux", "question"),
        real("truthfulqa-judge-dev", "prompt"),
    ]
    with gzip.open(shared_data("pretrain/moby-dick.jsonl.gz")) as file:
        novel = {row["id"]: row["doc"]["text"] for row in map(json.loads, file)}
    with gzip.open(shared_data("pretrain/sotu-before-1960.jsonl.gz")) as file:
        texts = {row["id"]: row["text"] for row in map(json.loads, file)}
    drops, ledger = decontaminate(novel | texts, benchmarks)
    # MMLU quotes Jackson on the removal of the Cherokee and the Declaration of Independence.
    assert set(drops) == {"1829_andrew_jackson_d", "1855_franklin_pierce_d"}
    passages = {(b.name, item): text for b in benchmarks for item, text in b.passages}
    for row in ledger:
        shared = words(texts[row["id"]])[row["start"] : row["end"]]
        passage = " ".join(words(passages[row["benchmark"], row["item"]]))
        assert " ".join(shared[:13]) in passage
        assert " ".join(shared[-13:]) in passage


def test_one_shared_ngram_condemns_and_one_word_less_does_not():
    exam = benchmark(numbered(0, 40))
    texts = {"thirteen": "so " + numbered(5, 13) + " then", "twelve": "so " + numbered(5, 12)}
    drops, ledger = decontaminate(texts, [exam])
    assert list(drops) == ["thirteen"]
    row = drops["thirteen"]
    assert (row["stage"], row["reason"]) == ("decontaminate", "contaminated")
    assert (row["value"], row["threshold"], row["detail"]) == (1.0, 1.0, "exam:0.text")
    assert [(r["matched"], r["overlap"], r["start"], r["end"]) for r in ledger] == [
        (1, round(1 / 28, 6), 1, 14)
    ]


def test_a_longer_passage_can_be_asked_for():
    exam = benchmark(numbered(0, 40), numbered(100, 14))
    config = DecontaminateConfig(min_ngrams=3)
    texts = {"two": numbered(5, 14), "three": numbered(5, 15), "all": numbered(100, 14)}
    drops, _ = decontaminate(texts, [exam], config=config)
    assert {id: (row["value"], row["threshold"]) for id, row in drops.items()} == {
        "three": (3.0, 3.0),
        "all": (2.0, 2.0),
    }


def test_short_passages_are_matched_whole_and_trivial_ones_not_at_all():
    exam = benchmark("What is the capital city of Upper Volta?", "The answer is no")
    texts = {
        "whole": "He asked: WHAT is the “capital” city of Upper-Volta... and left",
        "part": "what is the capital city of Upper Egypt",
        "inside": "somewhat is the capital city of upper volta",
        "trivial": "the answer is no",
    }
    table = build_table([exam], None, CONFIG)
    assert table.too_short == 1
    drops, ledger = decontaminate(texts, [exam])
    assert list(drops) == ["whole"]
    assert (ledger[0]["start"], ledger[0]["end"]) == (2, 10)


def test_ngrams_never_span_two_documents_or_two_fields():
    exam = benchmark(numbered(0, 26))
    halves = {"a": numbered(0, 12), "b": numbered(12, 12), "c": "", "d": numbered(24, 2)}
    assert decontaminate(halves, [exam]) == ({}, [])
    fields = Benchmark("exam", (("0.q", numbered(0, 13)), ("0.a", numbered(13, 13))), ())
    assert decontaminate({"a": numbered(3, 20)}, [fields]) == ({}, [])


def test_a_phrase_common_in_the_corpus_is_ignored():
    exam = benchmark(numbered(0, 60), numbered(100, 9))
    phrase = numbered(10, 15)
    ten = {f"{n}": f"{phrase} and {numbered(100, 9)} x{n}" for n in range(10)}
    assert set(decontaminate(ten, [exam])[0]) == set(ten)
    eleven = ten | {"ten": f"{phrase} and {numbered(100, 9)}"}
    assert decontaminate(eleven, [exam]) == ({}, [])
    more = eleven | {"leak": numbered(10, 16)}
    assert list(decontaminate(more, [exam])[0]) == ["leak"]


def test_a_passage_copied_whole_is_found_however_common_it_became():
    exam = benchmark(numbered(0, 60), numbered(200, 20))
    texts = {f"{n}": f"{numbered(0, 50)} x{n} {numbered(200, 20)}" for n in range(20)}
    drops, _ = decontaminate(texts, [exam])
    assert set(drops) == set(texts)
    assert {row["reason"] for row in drops.values()} == {"contaminated_passage"}
    assert {(row["value"], row["detail"]) for row in drops.values()} == {
        (round(38 / 48, 6), "exam:0.text")
    }


def test_a_document_that_shares_half_of_itself_with_one_held_out_document_goes():
    heldout = {"h1": numbered(0, 100), "h2": numbered(200, 100)}
    texts = {
        "half": numbered(0, 32) + " " + numbered(500, 20),  # 20 of 40 n-grams
        "less": numbered(0, 31) + " " + numbered(500, 21),  # 19 of 40
        "two": numbered(0, 22) + " " + numbered(200, 22) + " " + numbered(500, 5),
        "h1": numbered(0, 100),
        "h2": numbered(0, 100),  # held out by its id, whatever it says now
    }
    drops, ledger = decontaminate(texts, [], heldout)
    assert list(drops) == ["half"]
    row = drops["half"]
    assert (row["reason"], row["value"], row["threshold"]) == ("heldout_overlap", 0.5, 0.5)
    assert row["detail"] == "heldout:h1"
    assert (ledger[0]["matched"], ledger[0]["start"], ledger[0]["end"]) == (20, 0, 32)


def test_a_footer_of_every_held_out_page_neither_condemns_nor_excuses():
    footer = numbered(900, 60)
    heldout = {f"h{n}": f"{numbered(100 * n, 40)} {footer}" for n in range(11)}
    texts = {
        "other": f"{numbered(5000, 40)} {footer}",
        "copy": f"{numbered(0, 36)} y1 y2 y3 y4 {footer}",
    }
    drops, _ = decontaminate(texts, [], heldout)
    assert list(drops) == ["copy"]


def test_a_short_document_equal_to_a_held_out_one_goes():
    drops, _ = decontaminate(
        {"same": "A short, short story.", "longer": "it is a short short story"},
        [],
        {"h": "a short short story"},
    )
    assert list(drops) == ["same"]


def test_matches_of_a_document_that_contains_a_whole_benchmark_stay_bounded():
    exam = benchmark(*(numbered(100 * n, 90) for n in range(200)))
    table = build_table([exam], None, CONFIG)
    whole = documents({"a": " ".join(text for _, text in exam.passages)})
    matches = match_shard(whole, table, CONFIG)
    assert len(matches) == 64
    assert {len(ngrams) for ngrams in matches["ngrams"].to_pylist()} == {16 * 8}
    assert set(matches["matched"].to_pylist()) == {78}
    assert len(decide([matches], CONFIG)[0]) == 1


def test_the_passages_kept_of_a_document_are_those_it_holds_most_of():
    exam = benchmark(*(numbered(100 * n, 90) for n in range(100)))
    parts = [numbered(100 * n, 13 + n // 2) for n in range(100)]
    table = build_table([exam], documents({"h": parts[5], "i": parts[99], "j": parts[7]}), CONFIG)
    matches = match_shard(documents({"a": " ".join(parts)}), table, CONFIG).to_pylist()
    assert [row["item"] for row in matches[:-1]] == [f"{n}.text" for n in range(36, 100)]
    assert (matches[-1]["kind"], matches[-1]["item"]) == ("heldout", "i")


def test_a_leak_is_found_beside_an_instruction_that_comes_with_every_item():
    instruction, short = numbered(0, 20), "what was the name of the third river"
    exam = benchmark(*(f"{instruction} {numbered(100 * n, 30)}" for n in range(1, 301)), short)
    copied = {f"{n:02}": f"{instruction} {numbered(10**6 * n, 40)}" for n in range(1, 21)}
    leaks = {"short": f"{instruction} but {short}", "long": exam.passages[250][1]}
    table = build_table([exam], None, CONFIG)
    matches = match_shard(documents({**copied, **leaks}), table, CONFIG)
    assert Counter(matches["id"].to_pylist()) == dict.fromkeys((*copied, *leaks), 64)
    drops, ledger = decide([matches], CONFIG)
    assert drops["id"].to_pylist() == ["long", "short"]
    assert {(row["id"], row["item"]) for row in ledger.to_pylist()} == {
        ("long", "250.text"),
        ("short", "300.text"),
    }


def test_matches_do_not_depend_on_how_many_documents_are_looked_up_together(monkeypatch):
    rng = random.Random(5)
    texts = {f"{n}": numbered(rng.randrange(500), rng.randrange(60)) for n in range(50)}
    heldout = documents({f"h{n}": numbered(90 * n, 80) for n in range(5)})
    table = build_table([benchmark(numbered(0, 300), numbered(100, 9))], heldout, CONFIG)
    matches = match_shard(documents(texts), table, CONFIG)
    assert len(matches) > 20
    monkeypatch.setattr("tasks.matches._BATCH_BYTES", 700)
    assert match_shard(documents(texts), table, CONFIG).equals(matches)


def test_nothing_to_look_for_and_nothing_to_look_in_are_fine():
    table = build_table([], None, CONFIG)
    matches = match_shard(documents({"a": numbered(0, 50), "b": ""}), table, CONFIG)
    assert matches.equals(MATCHES.empty())
    drops, ledger = decide([], CONFIG)
    assert (drops, ledger) == (DROPS.empty(), LEDGER.empty())
    some = build_table([benchmark(numbered(0, 20))], documents({"h": numbered(0, 9)}), CONFIG)
    assert len(match_shard(documents({}), some, CONFIG)) == 0


def windows(units: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]


def brute_force(
    texts: dict[str, list[str]], passages: list[list[str]], config: DecontaminateConfig
) -> set[str]:
    """Ids of contaminated documents, by Python sets of word tuples."""
    wanted = []
    for passage in passages:
        n = min(config.ngram, len(passage))
        if n >= config.min_short_words:
            wanted.append((n, set(windows(passage, n))))
    grams = {(id, n): set(windows(text, n)) for id, text in texts.items() for n, _ in wanted}
    lengths = {n for n, _ in wanted}
    common = Counter(gram for (_, n), its in grams.items() if n in lengths for gram in its)
    condemned = set()
    for id in texts:
        for n, passage in wanted:
            found = grams[id, n] & passage
            uncommon = {gram for gram in found if common[gram] <= config.max_common}
            if len(uncommon) >= min(config.min_ngrams, len(passage)) or (
                n == config.ngram
                and len(passage) >= config.ngram
                and len(found) / len(passage) >= config.paragraph_overlap
            ):
                condemned.add(id)
    return condemned


sentences = st.lists(st.sampled_from("abc"), max_size=16)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("xyz", min_size=1, max_size=3), sentences, max_size=8),
    st.lists(sentences, max_size=5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 8),
)
def test_verdicts_equal_a_brute_force_over_word_sets(texts, passages, min_ngrams, max_common, cut):
    config = DecontaminateConfig(
        ngram=4, min_short_words=2, min_ngrams=min_ngrams, max_common=max_common
    )
    exam = benchmark(*(" ".join(passage) for passage in passages))
    table = pickle.loads(pickle.dumps(build_table([exam], None, config)))
    corpus = documents({id: " ".join(text) for id, text in texts.items()})
    drops, ledger = decide([match_shard(corpus, table, config)], config)
    assert set(drops["id"].to_pylist()) == brute_force(texts, passages, config)
    shards = [match_shard(corpus.slice(cut), table, config)]
    shards.append(match_shard(corpus.slice(0, cut), table, config))
    again = decide(shards, config)
    assert drops.equals(again[0])
    assert ledger.equals(again[1])


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text("xyz", min_size=1, max_size=2), sentences, max_size=8),
    st.dictionaries(st.text("xyz", min_size=1, max_size=2), sentences, max_size=4),
    st.integers(1, 3),
)
def test_held_out_overlap_equals_a_brute_force_over_word_sets(texts, heldout, max_common):
    config = DecontaminateConfig(ngram=4, max_common=max_common)

    def grams(units: list[str]) -> set[tuple[str, ...]]:
        return set(windows(units, min(4, len(units)))) if units else set()

    owners = Counter(gram for units in heldout.values() for gram in grams(units))
    common = {gram for gram, count in owners.items() if count > max_common}
    expected = {}
    for id in sorted(texts.keys() - heldout.keys()):
        own = grams(texts[id]) - common
        shares = [len(own & grams(units)) / len(own) for units in heldout.values() if own]
        if shares and max(shares) >= 0.5:
            expected[id] = round(max(shares), 6)
    drops, _ = decontaminate(
        {id: " ".join(text) for id, text in texts.items()},
        [],
        {id: " ".join(text) for id, text in heldout.items()},
        config,
    )
    assert {id: row["value"] for id, row in drops.items()} == expected


def test_rows_of_a_benchmark_that_do_not_parse_are_set_aside_with_their_reasons():
    lines = [
        b'\xef\xbb\xbf{"q": "first", "choices": ["one", "two"]}',
        b"not json",
        b'["a list"]',
        b"",
        b'{"q": 7}',
        b'{"q": "caf\xe9"}',
        b"[" * 100_000,
        b'{"q": "last"}',
        b'{"q": "half a pair: \\ud83c"}',
    ]
    for data in (b"\n".join(lines), gzip.compress(b"\r\n".join(lines))):
        exam = load_benchmark(data, "exam", ["q", "choices"])
        assert exam.passages == (
            ("0.q", "first"),
            ("0.choices.0", "one"),
            ("0.choices.1", "two"),
            ("7.q", "last"),
        )
        assert [row.line for row in exam.rejected] == [1, 2, 4, 5, 6, 8]
        assert exam.rejected[1].reason == "found list, expected an object"
        assert exam.rejected[2].reason == "found int in q, expected text or a list of text"
        assert "surrogates not allowed" in exam.rejected[5].reason


def test_a_decomposed_benchmark_is_found_in_a_composed_corpus():
    question = "Où est né le père de l’élève qui a gagné la médaille à Besançon en été"
    row = {"q": unicodedata.normalize("NFD", question)}
    exam = load_benchmark(json.dumps(row).encode(), "exam", ["q"])
    drops, _ = decontaminate({"a": f"Dites : « {question.upper()} ? »"}, [exam])
    assert list(drops) == ["a"]


def test_a_benchmark_that_cannot_be_used_says_why():
    with pytest.raises(DataError, match="no readable row"):
        load_benchmark(b"<html>404</html>", "exam", ["q"])
    with pytest.raises(ConfigError, match=r"no field \['quest'\]; its rows have \['q'\]"):
        load_benchmark(b'{"q": "a"}', "exam", ["quest"])
    with pytest.raises(DataError, match="damaged gzip"):
        load_benchmark(gzip.compress(b'{"q": "a"}' * 100)[:-12], "exam", ["q"])


def test_a_benchmark_that_cannot_be_used_is_not_pinned(tmp_path):
    run = Run(Store.at(f"file://{tmp_path / 'store'}"), "main", "run-1")
    file = tmp_path / "exam.jsonl"
    config = DecontaminateConfig(
        benchmarks=(BenchmarkConfig(name="exam", path=str(file), fields=("q",)),)
    )
    file.write_text("<html>404</html>")
    with pytest.raises(DataError, match="exam has no readable row"):
        pin_benchmarks(run, config)
    file.write_text('{"quest": "a"}')
    with pytest.raises(ConfigError, match="exam has no field"):
        pin_benchmarks(run, config)
    file.write_text('{"q": "a"}')
    (pin,) = pin_benchmarks(run, config)
    assert run.store.read_bytes(pin.object) == b'{"q": "a"}'


def test_two_benchmarks_of_one_name_are_refused():
    exam = BenchmarkConfig(name="exam", path="a.jsonl", fields=("q",))
    with pytest.raises(ValidationError, match="'exam' is taken"):
        DecontaminateConfig(benchmarks=(exam, exam))
