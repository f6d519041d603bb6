"""Any history ends where a rebuild ends, and a change costs only what it touches."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from tasks.store.corpus import live_rows, open_corpus
from tasks.store.store import Store
from tests.flows.small_pipeline import (
    Place,
    check,
    manifests,
    prose,
    results,
    serving_site,
    whole_content,
)

WHOLE = whole_content()
ELSEWHERE = prose(random.Random(99), 12)


def contents(place: Place) -> dict[str, bytes]:
    root = Path(place.root)
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def live_ids(place: Place) -> dict[str, str]:
    """Source by id of the corpus's live documents."""
    store = Store.at(place.root)
    shards = open_corpus(store, manifests(place)["split"]).shards
    table = pa.concat_tables([live_rows(store, s, columns=["id", "source"]) for s in shards])
    return dict(zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True))


def new_receipts(place: Place, before: Place) -> Counter[str]:
    """Actions that ran at one place and not at the other, by stage."""

    def actions(of: Place) -> set[tuple[str, str]]:
        return {(path.parent.name, path.name) for path in Path(of.root).glob("actions/*/*.json")}

    return Counter(stage for stage, _ in actions(place) - actions(before))


def test_the_small_pipeline_meets_every_reason_to_drop_a_document(undisturbed: Place) -> None:
    drops = {stage: manifest.drops for stage, manifest in manifests(undisturbed).items()}
    assert drops["select"] == {"gopher_few_words": 3}
    assert drops["dedup"] == {"exact_duplicate": 3, "near_duplicate": 1}
    assert drops["decontaminate"] == {"contaminated": 1}
    assert manifests(undisturbed)["scrub"].summary["stats"]
    assert check(undisturbed).ok


def test_a_second_run_with_nothing_changed_changes_no_file_and_asks_no_server(
    undisturbed: Place,
) -> None:
    # The site's server is gone by now.
    before = contents(undisturbed)
    said = undisturbed.grow()
    assert contents(undisturbed) == before
    assert said.strip() == ""


def test_edits_additions_and_removals_with_other_shards_end_in_the_same_model(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = Place.at(tmp_path / "grown-in-steps")
    place.take_pins_of(undisturbed)
    early = WHOLE.first(15, 16).edited(
        pages={"/p03.html": ELSEWHERE, "/later-gone.html": prose(random.Random(7), 12)},
        notes={"n04": WHOLE.pages["/p09.html"], "later-gone": prose(random.Random(8), 12)},
    )
    with serving_site(early) as server:
        place.write(early, server, shard_rows=5, model=False)
        place.grow()
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server, shard_rows=5, sources=("notes", "site"))
        place.grow("--refresh")
    assert results(place) == results(undisturbed)
    assert check(place).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "differently",
    [
        {"workers": 2},
        {"shard_rows": 5},
        {"shard_rows": 1000},
        {"sources": ("notes", "site")},
    ],
    ids=str,
)
def test_a_setting_that_decides_no_result_changes_none(
    undisturbed: Place, tmp_path: Path, differently: dict[str, object]
) -> None:
    place = Place.at(tmp_path / "differently")
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server, **differently)  # type: ignore[arg-type]
        place.grow()
    assert results(place) == results(undisturbed)


@pytest.mark.slow
def test_documents_edited_and_edited_back_or_removed_and_added_leave_the_model_as_it_was(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = undisturbed.copied_to(tmp_path / "there-and-back")
    without = WHOLE.first(len(WHOLE.pages) - 2, len(WHOLE.notes) - 2)
    changed = without.edited(pages={"/p01.html": ELSEWHERE}, notes={"n01": ELSEWHERE[::-1]})
    with serving_site(changed) as server:
        place.write(changed, server)
        place.grow("--refresh")
    there = results(place)
    assert there.weights != results(undisturbed).weights
    assert set(there.digests.values()).isdisjoint(results(undisturbed).digests.values())
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server)
        place.grow("--refresh")
    assert results(place) == results(undisturbed)
    assert check(place).ok


def test_a_changed_threshold_measures_only_the_shards_whose_documents_it_drops(
    undisturbed: Place, tmp_path: Path
) -> None:
    place = undisturbed.copied_to(tmp_path / "stricter")
    words = {name: len(text.split()) for name, text in WHOLE.notes.items()}
    shortest, next_shortest = sorted(n for n in words.values() if n >= 50)[:2]
    assert shortest < next_shortest
    with serving_site(WHOLE) as server:
        place.write(WHOLE, server, min_words=next_shortest, model=False)
        place.grow()
        assert server.requests == []
    n_shards = len(list(Path(place.root).glob("actions/extract/*.json")))
    ran = new_receipts(place, undisturbed)
    assert ran["select"] == n_shards > 3
    assert {stage: n for stage, n in ran.items() if stage != "select"} == {
        "signatures": 1, "scrub": 1, "matches": 1, "split": 1, "census": 1,
    }  # fmt: skip
    assert manifests(place)["select"].drops == {"gopher_few_words": 4}
    assert len(live_ids(undisturbed)) - len(live_ids(place)) == 1


@pytest.mark.slow
def test_a_source_that_leaves_the_config_takes_its_documents_along(
    undisturbed: Place, tmp_path: Path
) -> None:
    assert set(live_ids(undisturbed).values()) == {"site", "notes"}
    smaller = undisturbed.copied_to(tmp_path / "smaller")
    smaller.write(WHOLE, None, sources=("notes",), model=False)
    smaller.grow()
    rebuilt = Place.at(tmp_path / "rebuilt")
    rebuilt.take_pins_of(undisturbed)
    rebuilt.write(WHOLE, None, sources=("notes",), model=False)
    rebuilt.grow()
    assert set(live_ids(smaller).values()) == {"notes"}
    assert live_ids(smaller) == live_ids(rebuilt)
    last = manifests(rebuilt)
    assert {stage: manifests(smaller)[stage].data_digest for stage in last} == {
        stage: manifest.data_digest for stage, manifest in last.items()
    }
