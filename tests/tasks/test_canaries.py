"""What is planted is what it says, never joins the corpus, and shows which stage misses it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random
from typing import Any

import phonenumbers
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.cli_corpus import show
from flows.config import PipelineConfig, parse_config, read_config
from flows.corpus import grow_corpus
from flows.planning import make_plan
from flows.running import RunOptions, open_run
from llm.errors import ConfigError, DataError
from tasks.annotate import Classifiers, annotate_shard
from tasks.benchmarks import DecontaminateConfig
from tasks.canaries import Fate, canaries_request, canary_counts, count, recalls
from tasks.defects import PERSONAL, SPAM, edited, insert, shingles_of
from tasks.inspecting import lineage
from tasks.kernels.words import words
from tasks.matches import MATCHES
from tasks.planting import CANARIES, CanaryConfig, Plan, plant_documents
from tasks.scrub import Scrubber, ScrubConfig, scrub_text
from tasks.select import SelectConfig, rules, select_shard
from tasks.signatures import DedupConfig
from tasks.store.records import Manifest
from tasks.store.rows import text_digest
from tasks.store.schema import DATASET, DOCUMENTS, DROPS
from tests.flows.small_pipeline import NAME, Place, check, prose
from tests.tasks.small_corpus import by_stage, copy_of, served, store_of

PROSE = prose(Random(3), 20)
seeds = st.integers(0, 1 << 32).map(Random)


# the defects


@pytest.fixture(scope="module")
def scrubber() -> Scrubber:
    return Scrubber(ScrubConfig())


@pytest.mark.parametrize("entity", sorted(PERSONAL))
def test_presidio_takes_every_made_up_value_for_its_type(entity: str, scrubber: Scrubber) -> None:
    for seed in range(60):
        value = PERSONAL[entity](Random(seed))
        scrubbed = scrub_text(f"we heard: {value}, it is the one", scrubber)
        assert [finding.type for finding in scrubbed.findings] == [entity], value
        assert scrubbed.text == f"we heard: <{scrubber.labels[entity]}_1>, it is the one"


def test_made_up_values_are_nobodys() -> None:
    for seed in range(100):
        number = PERSONAL["PHONE_NUMBER"](Random(seed))
        assert "555" in number or "79460" in number.replace(" ", "")
        assert phonenumbers.is_valid_number(phonenumbers.parse(number, "US"))
        assert int(PERSONAL["US_SSN"](Random(seed))[:3]) >= 900
        assert int(PERSONAL["MAC_ADDRESS"](Random(seed))[:2], 16) & 3 == 2
        assert ip_address(PERSONAL["IP_ADDRESS"](Random(seed))).is_global
        assert ".example" in PERSONAL["EMAIL_ADDRESS"](Random(seed)).replace("@", ".")


@given(text=st.text(alphabet="ab \n", max_size=40), rng=seeds)
def test_what_is_inserted_stands_where_it_is_said_and_nothing_else_changes(
    text: str, rng: Random
) -> None:
    planted, spans = insert(text, ["12", "345", "6"], rng)
    assert [planted[a:b] for a, b in spans] == ["12", "345", "6"][: len(spans)]
    for start, end in reversed(spans):
        planted = planted[: start - 1] + planted[end:]
    assert planted == text


def plain_similarity(one: str, two: str, n: int) -> float:
    sets = []
    for text in (one, two):
        units = words(text)
        sets.append({tuple(units[at : at + n]) for at in range(len(units) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(rng=seeds, similarity=st.sampled_from([1.0, 0.95, 0.9, 0.85, 0.8, 0.5]))
def test_an_edited_copy_is_as_similar_as_is_said(rng: Random, similarity: float) -> None:
    text, true = edited(PROSE, similarity, shingles_of(5, False), rng)
    assert true == pytest.approx(plain_similarity(PROSE, text, 5))
    assert similarity <= true <= similarity + 0.05
    assert (text == PROSE) == (similarity == 1)


@pytest.mark.parametrize("family", sorted(SPAM))
def test_spam_is_dropped_for_a_reason_it_is_made_for_and_its_host_is_not(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [rule for rule in rules(SelectConfig()) if rule.reason in SPAM[family].reasons]
    assert {rule.reason for rule in wanted} == set(SPAM[family].reasons)
    host = prose(Random(3), 60)
    texts = [host, SPAM[family].make(host, Random(1))]
    rows = [{"id": str(n), "digest": text_digest(text), "text": text, "language": "en"}
            for n, text in enumerate(texts)]  # fmt: skip
    documents = DOCUMENTS.table(rows)
    monkeypatch.setattr("tasks.select.rules", lambda _: wanted)
    drops = select_shard(documents, annotate_shard(documents, Classifiers()), SelectConfig())
    assert drops["id"].to_pylist() == ["1"]


# what is planted


def hosts(n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{number:032x}", "text": prose(Random(number), 20), "url": f"http://a.test/{number}",
         "license": "MIT", "language": "en", "source": "a", "fetched_at": None, "meta": "{}",
         "digest": ""}
        for number in range(n)
    ]  # fmt: skip


def plan_of(**changes: Any) -> Plan:
    everything: dict[str, Any] = {
        "entities": tuple(sorted(PERSONAL)),
        "similarities": (1.0, 0.9, 0.5),
        "families": tuple(sorted(SPAM)),
        "passages": (("quiz:0.question", PROSE[:90]), ("quiz:1.question", PROSE[100:190])),
        "shingles": shingles_of(5, False),
    }
    return Plan(**everything | changes)


def test_each_host_becomes_one_canary_and_keeps_what_stages_decide_on() -> None:
    documents, truth = plant_documents(hosts(60), plan_of(), CanaryConfig(n=10))
    by_kind = {
        kind: {row["host"] for row in truth.to_pylist() if row["kind"] == kind}
        for kind in ("pii", "near_duplicate", "leak", "spam", "untouched")
    }
    assert {kind: len(found) for kind, found in by_kind.items()} == {
        "pii": 10, "near_duplicate": 10, "leak": 2, "spam": 10, "untouched": 10,
    }  # fmt: skip
    assert len(set.union(*by_kind.values())) == 42
    rows = documents.to_pylist()
    assert len(rows) == 42 + 10
    assert {(row["license"], row["language"], row["source"]) for row in rows} == {
        ("MIT", "en", "canaries")
    }
    assert {row["id"] for row in rows}.isdisjoint(host["id"] for host in hosts(60))
    assert all(row["digest"] == text_digest(row["text"]) for row in rows)


def test_the_truth_says_where_each_defect_is() -> None:
    documents, truth = plant_documents(hosts(20), plan_of(), CanaryConfig(n=4))
    texts = dict(zip(documents["id"].to_pylist(), documents["text"].to_pylist(), strict=True))
    originals = {host["id"]: host["text"] for host in hosts(20)}
    passages = {"quiz:0.question": PROSE[:90], "quiz:1.question": PROSE[100:190]}
    for row in truth.to_pylist():
        text = texts[row["id"]]
        inside = text[row["start"] : row["end"]] if row["start"] is not None else ""
        if row["kind"] == "leak":
            assert words(inside) == words(passages[row["item"]])
        elif row["kind"] == "near_duplicate":
            assert text == originals[row["host"]]
            assert row["similarity"] == pytest.approx(
                plain_similarity(text, texts[row["twin"]], 5), abs=1e-6
            )
            assert row["similarity"] >= float(row["detail"])
        elif row["kind"] == "untouched":
            assert text == originals[row["host"]]
        elif row["kind"] == "pii":
            assert inside
            assert inside not in originals[row["host"]]


def test_the_same_corpus_gives_the_same_canaries_and_another_seed_others() -> None:
    once, again, other = (
        plant_documents(hosts(20), plan_of(), CanaryConfig(n=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert once[0].equals(again[0])
    assert once[1].equals(again[1])
    assert not once[0].equals(other[0])


def test_a_kind_that_no_stage_could_catch_is_not_planted() -> None:
    lacking = plan_of(entities=(), passages=(), families=())
    assert set(lacking.missing()) == {"pii", "leak", "spam"}
    _, truth = plant_documents(hosts(12), lacking, CanaryConfig(n=4))
    assert set(truth["kind"].to_pylist()) == {"near_duplicate", "untouched"}


# what is caught


def rate_of(kind: str, fate: Fate, **row: Any) -> float | None:
    truth = CANARIES.table([{"id": "x", "kind": kind, "detail": "", "host": "h", **row}])
    (one,) = count(truth, fate)
    return one.rate


@pytest.mark.parametrize(
    ("after", "rate"),
    [("Ask <IBAN_1> now", 1.0), ("Ask DE89 3704 now", 0.0), ("Ask <PHONE_1> 3704 now", 0.0)],
)
def test_a_value_is_caught_only_when_no_part_of_it_is_left(after: str, rate: float) -> None:
    fate = Fate({}, {"x": "Ask DE89 3704 now"}, {"x": after}, frozenset())
    assert rate_of("pii", fate, start=4, end=13) == rate


def test_a_pair_is_caught_when_either_is_dropped_and_a_canary_counts_where_it_arrived() -> None:
    def fate(dropped: Mapping[str, str]) -> Fate:
        return Fate(dropped, {}, {}, frozenset())

    assert rate_of("near_duplicate", fate({"y": "dedup"}), twin="y") == 1.0
    assert rate_of("near_duplicate", fate({}), twin="y") == 0.0
    assert rate_of("near_duplicate", fate({"y": "select"}), twin="y") is None
    assert rate_of("leak", fate({"x": "decontaminate"})) == 1.0
    assert rate_of("leak", fate({"x": "dedup"})) is None
    assert rate_of("spam", fate({"x": "dedup"})) == 0.0


def test_what_is_done_to_the_untouched_is_a_false_alarm() -> None:
    rows = [{"id": id_, "kind": "untouched", "detail": "", "host": "h"} for id_ in "abcd"]
    counts = count(
        CANARIES.table(rows), Fate({"a": "dedup", "b": "select"}, {}, {"c": ""}, frozenset("c"))
    )
    assert {one.stage: one.caught for one in counts} == {
        "select": 1, "dedup": 1, "scrub": 1, "decontaminate": 0,
    }  # fmt: skip
    assert not any(one.wanted for one in counts)
    assert recalls(counts) == {}


# the whole way

TRIED = CanaryConfig(n=5, min_recall={"pii": 0.95, "near_duplicate": 1.0, "leak": 1.0, "spam": 1.0})


def config_of(place: Place, **changes: Any) -> PipelineConfig:
    changes = {"canaries": TRIED, "model": None, **changes}
    return read_config(place.folder / "loam.toml").model_copy(update=changes)


def grow(place: Place, **changes: Any) -> dict[str, Manifest]:
    """Grows the corpus with canaries and other changes to its config; the manifests by stage."""
    config = config_of(place, **changes)
    with (
        pytest.MonkeyPatch.context() as patch,
        open_run(config, RunOptions(), say=lambda _: None) as run,
    ):
        patch.chdir(place.folder)
        patch.setattr("tasks.as_task.in_prefect", lambda name, function: function)
        grow_corpus(run, config)
        return by_stage(run)


@pytest.fixture(scope="module")
def tried(grown_once: Place, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """The small corpus, published with canaries. To be looked at only."""
    place = copy_of(grown_once, tmp_path_factory.mktemp("canaries") / "place")
    grow(place)
    return place


@pytest.fixture
def fresh(tried: Place, tmp_path: Path) -> Place:
    return copy_of(tried, tmp_path / "copy")


def line(place: Place) -> list[Manifest]:
    store = store_of(place)
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    return [store.manifest(pin) for pin in ref.line]


def test_every_stage_catches_what_is_planted_for_it_and_leaves_the_untouched(tried: Place) -> None:
    counts = canary_counts(line(tried))
    assert {kind: one.rate for kind, one in recalls(counts).items()} == {
        "pii": 1.0, "near_duplicate": 1.0, "leak": 1.0, "spam": 1.0,
    }  # fmt: skip
    alarms = [one for one in counts if not one.wanted]
    assert {one.kind for one in alarms} >= {"untouched"}
    assert sum(one.caught for one in alarms) == 0


def test_canaries_change_nothing_of_the_corpus_and_none_is_in_it(
    grown_once: Place, tried: Place
) -> None:
    with_them = {manifest.stage: manifest for manifest in line(tried)}
    without = {manifest.stage: manifest for manifest in line(grown_once)}
    assert with_them.keys() - without.keys() == {"canaries"}
    for stage in ("extract", "dedup", "scrub", "split"):
        assert with_them[stage].ref == without[stage].ref
    store = store_of(tried)
    planted = store.manifest(with_them["canaries"].inputs["planted"])
    truth = store.read_table(planted.object(CANARIES.kind), CANARIES)
    ids = {*truth["id"].to_pylist(), *truth["twin"].to_pylist()}
    dataset = store.find_ref("dataset", NAME)
    assert dataset is not None
    rows = store.read_table(store.manifest(dataset.manifest).object("dataset"), DATASET)
    assert ids.isdisjoint(rows["id"].to_pylist())
    assert set(truth["host"].to_pylist()) <= set(rows["id"].to_pylist())
    assert check(tried).ok


def test_a_second_run_plants_nothing_and_a_plan_says_what_would(
    fresh: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fresh.folder)

    def files() -> set[str]:
        return {str(path) for path in Path(fresh.root).rglob("*") if path.is_file()}

    before = files()
    assert make_plan(config_of(fresh), RunOptions()).nothing_to_do
    grow(fresh)
    assert files() == before
    more = config_of(fresh, canaries=CanaryConfig(n=6))
    first, *rest = make_plan(more, RunOptions()).to_run
    assert (first.stage, first.action, first.why) == (
        "canaries", "run", ("plant: config.n: 5 -> 6",),
    )  # fmt: skip
    assert rest[-1].stage == "publish corpus"


def test_other_shards_give_the_same_canaries(tried: Place, tmp_path: Path) -> None:
    place = Place.at(tmp_path / "elsewhere")
    place.take_pins_of(tried)
    with served(place):
        found = grow(place, store=config_of(place).store.model_copy(update={"shard_rows": 5}))
    expected = {manifest.stage: manifest for manifest in line(tried)}["canaries"]
    assert found["canaries"].data_digest == expected.data_digest
    assert found["canaries"].payload == expected.payload


def test_who_caught_a_canary_counts_even_where_the_same_documents_are_left(tried: Place) -> None:
    store = store_of(tried)
    measured = next(one for one in line(tried) if one.stage == "canaries")
    through = {one.stage: one for one in lineage(store, store.manifest(measured.inputs["cleaned"]))}
    assert canaries_request(through).ref == measured.ref
    other = replace(through["select"], fingerprint="0" * 64)
    assert canaries_request({**through, "select": other}).ref != measured.ref


def _finds_nothing(documents: pa.Table, *_: Any) -> pa.Table:
    return MATCHES.empty()


def _drops_nothing(documents: pa.Table, *_: Any) -> pa.Table:
    return DROPS.empty()


@pytest.mark.parametrize(
    ("kind", "changes", "broken"),
    [
        # Presidio's phone numbers score 0.4.
        ("pii", {"scrub": ScrubConfig(threshold=0.9)}, {}),
        ("near_duplicate", {"dedup": DedupConfig(threshold=0.99)}, {}),
        ("leak", {}, {"tasks.matches.match_shard": _finds_nothing}),
        ("spam", {"select": SelectConfig(min_words=51)},
         {"tasks.select.select_shard": _drops_nothing}),
    ],
)  # fmt: skip
def test_a_stage_that_misses_its_canaries_stops_the_run_before_the_ref_moves(
    kind: str,
    changes: dict[str, Any],
    broken: dict[str, Callable[..., pa.Table]],
    fresh: Place,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "leak":
        before = read_config(fresh.folder / "loam.toml").decontaminate
        changes = {"decontaminate": DecontaminateConfig(benchmarks=before.benchmarks, ngram=12)}
    for name, function in broken.items():
        monkeypatch.setattr(name, function)
    published = store_of(fresh).find_ref("corpus", NAME)
    with pytest.raises(DataError, match=rf"of \d+ {kind} \(.*, and min_recall\.{kind} is"):
        grow(fresh, **changes)
    after = store_of(fresh).find_ref("corpus", NAME)
    assert published is not None
    assert after is not None
    assert after.value == published.value
    lenient = CanaryConfig(n=5)
    counts = canary_counts([grow(fresh, **changes, canaries=lenient)["canaries"]])
    caught = recalls(counts)[kind]  # type: ignore[index]
    assert caught.rate is not None
    assert caught.rate < 0.95


def test_a_gate_on_what_cannot_be_planted_stops_the_run_and_says_why(fresh: Place) -> None:
    none = DecontaminateConfig()
    with pytest.raises(DataError, match=r"no leak was planted \(no benchmark has a passage"):
        grow(fresh, decontaminate=none, canaries=CanaryConfig(n=2, min_recall={"leak": 0.5}))


def test_a_recall_of_what_nobody_plants_is_no_setting() -> None:
    body = {
        "sources": [{"kind": "pydoc", "name": "docs"}],
        "canaries": {"min_recall": {"untouched": 1}},
    }
    with pytest.raises(ConfigError, match=r"canaries\.min_recall\.untouched"):
        parse_config(body, "x.toml")


def test_show_tells_what_was_caught(tried: Place, capsys: pytest.CaptureFixture[str]) -> None:
    show(NAME, store=tried.root)
    table = capsys.readouterr().out.split("\ncanary ")[1]
    assert "false alarms" in table.splitlines()[0]
    assert "EMAIL_ADDRESS" in table
    show(NAME, store=tried.root, json=True)
    told = json.loads(capsys.readouterr().out)["canaries"]
    assert {one["kind"] for one in told} >= {"pii", "near_duplicate", "leak", "spam", "untouched"}
