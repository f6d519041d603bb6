from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from flows.config import read_config
from llm.errors import ConfigError, DataError
from tasks.refs import Named, find_named
from tasks.replay import Replay, replay
from tasks.store.rows import document_id
from tasks.store.store import Store
from tests.flows.small_pipeline import NAME, Place, prose
from tests.tasks.small_corpus import WHOLE, grow, served
from tests.tasks.store.test_format import Reader


def again(place: Place, stage: str, *settings: str, n: int = 100, base: Any = None) -> Replay:
    store = Store.at(place.root)
    return replay(store, find_named(store, f"corpus/{NAME}"), stage, settings, base, n)


def ids(found: Replay) -> tuple[set[str], set[str]]:
    flips = (found.newly_dropped, found.newly_kept)
    dropped, kept = ({one.id for one in some.samples} for some in flips)
    return dropped, kept


def rows_of(place: Place, stage: str, kind: str) -> list[dict[str, Any]]:
    """All rows of a kind that a stage of the newest run wrote, read by a program that shares no
    code with Loam."""
    reader = Reader(Path(place.root))
    value: dict[str, Any] = reader.ref("corpus", NAME)
    manifest = next(reader.manifest(pin) for pin in value["line"] if pin["stage"] == stage)
    outputs = [ref for r in reader.receipts(manifest) for ref in r["outputs"]]
    return [row for ref in outputs if ref["kind"] == kind for row in reader.table(ref)]


def test_the_settings_it_was_made_with_change_nothing(grown_once: Place) -> None:
    for stage in ("select", "dedup", "decontaminate"):
        found = again(grown_once, stage)
        assert ids(found) == (set(), set())
        assert all(one.before == one.after for one in found.reasons)


def test_a_higher_threshold_drops_whom_the_signals_say(grown_once: Place) -> None:
    found = again(grown_once, "select", "min_words=150")
    counts = {row["id"]: row["word_count"] for row in rows_of(grown_once, "annotate", "signals")}
    dropped, kept = ids(found)
    assert dropped == {id_ for id_, n in counts.items() if 50 <= n < 150}
    assert not kept
    assert all(
        (one.reason, one.value, one.threshold) == ("gopher_few_words", counts[one.id], 150)
        for one in found.newly_dropped.samples
    )
    texts = {row["id"]: row["text"] for row in rows_of(grown_once, "extract", "documents")}
    assert found.newly_dropped.text_bytes == sum(len(texts[id_].encode()) for id_ in dropped)
    assert (found.kept_before, found.kept_after) == (
        found.rows_in - len(rows_of(grown_once, "select", "drops")),
        sum(n >= 150 for n in counts.values()),
    )
    reader = Reader(Path(grown_once.root))
    alive = {row["id"] for row in reader.live(reader.manifest(reader.ref("corpus", NAME)))}
    assert found.newly_dropped.live == len(alive & dropped)
    assert {one.id for one in found.newly_dropped.samples if one.live} == alive & dropped


def test_a_lower_threshold_keeps_whom_it_had_dropped_and_shows_them(grown_once: Place) -> None:
    found = again(grown_once, "select", "min_words=0", "c4=false", "fineweb=false")
    _, kept = ids(found)
    assert kept == {row["id"] for row in rows_of(grown_once, "select", "drops")}
    assert "Bring the kettle." in {one.excerpt for one in found.newly_kept.samples}
    assert [one.before - one.after for one in found.reasons] == [len(kept)]


def test_it_tells_what_a_run_then_does(place: Place) -> None:
    settings = ("min_words=150",)
    found = again(place, "select", *settings)
    config = place.folder / "loam.toml"
    with served(place):
        config.write_text(config.read_text().replace("min_words = 50", "min_words = 150"))
        made = grow(place)["select"]
    assert made.drops == {one.reason: one.after for one in found.reasons if one.after}
    assert made.rows_out == found.kept_after


def test_nothing_is_written(place: Place) -> None:
    def listed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(place.root).rglob("*")}

    before = listed()
    again(place, "select", "min_words=150")
    again(place, "dedup", "threshold=0.99")
    again(place, "decontaminate", "min_ngrams=16")
    assert listed() == before


def test_a_higher_similarity_parts_those_below_it(grown_once: Place) -> None:
    drops = rows_of(grown_once, "dedup", "drops")
    near = {row["id"] for row in drops if row["reason"] == "near_duplicate"}
    assert near
    dropped, kept = ids(again(grown_once, "dedup", "threshold=0.999"))
    assert (dropped, kept) == (set(), near)


def test_a_source_of_higher_priority_lets_its_documents_stay(grown_once: Place) -> None:
    found = again(grown_once, "dedup", 'priorities=["notes"]')
    dropped, kept = ids(found)
    assert len(dropped) == len(kept) > 0
    assert all((one.url or "").startswith("http") for one in found.newly_dropped.samples)
    assert all(one.url is None for one in found.newly_kept.samples)


def test_a_looser_rule_keeps_who_has_a_part_of_a_benchmark_s_item(place: Place) -> None:
    part = " ".join(WHOLE.quiz[0].split()[:16])
    text = f"{prose(random.Random(3), 6)} {part} {prose(random.Random(4), 6)}"
    with served(place, WHOLE.edited({}, {"part": text})):
        grow(place, refresh=True)
    matched = {
        row["id"]: (row["matched"], row["n_ngrams"])
        for row in rows_of(place, "matches", "matches")
        if row["benchmark"] == "quiz"
    }
    assert matched[document_id("notes", "part")] == (4, len(WHOLE.quiz[0].split()) - 12)
    dropped = {row["id"] for row in rows_of(place, "decontaminate", "drops")}
    assert dropped == set(matched)
    found = again(place, "decontaminate", "min_ngrams=5")
    assert ids(found) == (set(), {document_id("notes", "part")})
    assert {(one.reason, one.before, one.after) for one in found.reasons} == {
        ("contaminated", 2, 1)
    }


def test_a_config_s_settings_can_be_the_ones_to_start_from(grown_once: Place) -> None:
    base = read_config(grown_once.folder / "loam.toml").select
    assert again(grown_once, "select", base=base).changed == ()
    other = base.model_copy(update={"min_words": 150})
    assert again(grown_once, "select", base=other).changed == ("min_words: 50 -> 150",)


@pytest.mark.parametrize(
    ("stage", "setting", "said"),
    [
        ("select", "min_word=3", "did you mean 'min_words'?"),
        ("select", "min_words=many", "min_words: Input should be a valid integer"),
        ("select", "min_words=-1", "greater than or equal to 0"),
        ("select", "min_words", "expected key=value"),
        ("dedup", "ngram=3", "it can replay priorities, threshold"),
        ("decontaminate", "ngram=8", "decides what is measured"),
        ("select", "min_quality=0.5", "documents have no quality"),
        ("select", "quality_quantile=0.5", "documents have no quality"),
        ("scrub", "threshold=1", "stages that can: select, dedup, decontaminate"),
    ],
)
def test_what_cannot_be_replayed_says_why(
    grown_once: Place, stage: str, setting: str, said: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        again(grown_once, stage, setting)
    assert said in str(raised.value)


def test_a_corpus_without_the_stage_says_so(grown_once: Place) -> None:
    store = Store.at(grown_once.root)
    corpus = find_named(store, f"corpus/{NAME}")
    before = Named("earlier", corpus.line[0], corpus.line[:1])
    with pytest.raises(DataError, match="did not come through select"):
        replay(store, before, "select", (), None, 1)


def test_null_turns_a_threshold_off_and_a_stage_s_name_may_stand_before_it(
    grown_once: Place,
) -> None:
    found = again(grown_once, "select", "select.min_words=null")
    assert found.changed == ("min_words: 50 -> null",)
    assert "gopher_few_words" not in {one.reason for one in found.reasons if one.after}
