"""The split: who is held out, and that nothing but a pin decides it later."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks.split import SplitConfig, hold_out, label_shard, split_of
from tasks.store.rows import document_id

ids = st.text("0123456789abcdef", min_size=4, max_size=4)
configs = st.builds(
    SplitConfig,
    validation=st.sampled_from([0.0, 0.01, 0.1, 0.49]),
    test=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    seed=st.integers(0, 3),
)


def documents(sources: dict[str, str]) -> pa.Table:
    return pa.table({"id": pa.array(sources, pa.string()), "source": list(sources.values())})


def clusters(roots: dict[str, str]) -> pa.Table:
    return pa.table({"id": pa.array(roots, pa.string()), "root": list(roots.values())})


def test_parts_of_a_large_corpus_are_as_large_as_asked():
    roots = [document_id("web", str(number)) for number in range(40_000)]
    splits = split_of(roots, SplitConfig(validation=0.05, test=0.1))
    # Five standard deviations of a binomial of 40,000: 0.0055 at 5 %, 0.0075 at 10 %.
    assert splits.count("validation") / len(roots) == pytest.approx(0.05, abs=0.0055)
    assert splits.count("test") / len(roots) == pytest.approx(0.1, abs=0.0075)


def test_another_seed_draws_another_split():
    roots = [document_id("web", str(number)) for number in range(1000)]
    assert split_of(roots, SplitConfig(seed=0)) != split_of(roots, SplitConfig(seed=1))


@settings(deadline=None)
@given(st.lists(ids, min_size=1, max_size=30), configs, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order(roots, config, random):
    shuffled = random.sample(roots, len(roots))
    expected = dict(zip(roots, split_of(roots, config), strict=True))
    assert dict(zip(shuffled, split_of(shuffled, config), strict=True)) == expected


@settings(deadline=None)
@given(st.lists(ids, min_size=2, max_size=30, unique=True), configs)
def test_two_clusters_or_more_give_something_to_train_and_to_validate_on(roots, config):
    splits = split_of(roots, config)
    assert "train" in splits
    assert ("validation" in splits) == (config.validation > 0)


def test_a_corpus_of_one_cluster_is_not_refused():
    assert split_of(["a", "a"], SplitConfig(validation=0.0, test=0.0)) == ["train", "train"]
    assert split_of([], SplitConfig()) == []


@settings(deadline=None)
@given(st.dictionaries(ids, st.integers(0, 5), min_size=1, max_size=40), configs)
def test_near_duplicates_never_straddle_the_split(cluster_of, config):
    smallest: dict[int, str] = {}
    for id in sorted(cluster_of):
        smallest.setdefault(cluster_of[id], id)
    roots = clusters({id: smallest[cluster] for id, cluster in cluster_of.items()})
    live = documents(dict.fromkeys(cluster_of, "web"))
    pinned = {row["id"]: row["split"] for row in hold_out(live, roots, config).to_pylist()}
    labels = label_shard(live, pinned, config).to_pylist()
    splits: dict[int, set[str]] = {}
    for row in labels:
        splits.setdefault(cluster_of[row["id"]], set()).add(row["split"])
    assert all(len(found) == 1 for found in splits.values())


@settings(deadline=None)
@given(st.sets(ids, min_size=3, max_size=30), st.sets(ids, max_size=30), configs)
def test_documents_added_later_move_nobody_and_train(first, later, config):
    live = documents(dict.fromkeys(first, "web"))
    pinned = {
        row["id"]: row["split"]
        for row in hold_out(live, clusters({id: id for id in first}), config).to_pylist()
    }
    everyone = sorted(first | later)
    labels = label_shard(documents(dict.fromkeys(everyone, "web")), pinned, config)
    held_out = {row["id"]: row["split"] for row in labels.to_pylist() if row["split"] != "train"}
    assert held_out == pinned


def test_a_source_forces_its_split_but_never_trains_on_a_pinned_document():
    config = SplitConfig(sources={"exam": "test", "books": "train"})
    live = documents({"a": "exam", "b": "books", "c": "web", "d": "web"})
    pinned = {
        row["id"]: row["split"]
        for row in hold_out(live, clusters({"c": "c", "d": "c"}), config).to_pylist()
    }
    assert pinned["a"] == "test"
    assert "b" not in pinned
    labels = label_shard(
        documents({"x": "books", "y": "exam", "z": "web"}), {"x": "validation"}, config
    )
    assert labels["split"].to_pylist() == ["validation", "test", "train"]


def test_a_document_that_no_cluster_lists_is_split_by_its_own_id():
    config = SplitConfig(validation=0.2, test=0.2)
    live = documents({str(number): "web" for number in range(30)})
    listed = hold_out(live, clusters({str(number): str(number) for number in range(30)}), config)
    assert 0 < len(listed) < 30
    assert hold_out(live, clusters({"7": "7"}), config) == listed


def test_parts_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        SplitConfig(validation=0.5, test=0.5)
