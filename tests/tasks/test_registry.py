"""The model registry: immutable versions, movable aliases, and a gate that can be raced for."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm.errors import DataError
from tasks import registry
from tasks.register import RegisterConfig, model_name
from tasks.registry import ModelVersion
from tasks.store.records import ManifestRef, ObjectRef
from tasks.store.store import Store


def a_model(weights: str, bits: float = 1.0, heldout: str = "h") -> ModelVersion:
    ref = ObjectRef("model-file", weights * 64, "safetensors", 0, 1)
    metrics: dict[str, Any] = {"validation": {"model": {"bits_per_byte": bits}}}
    return ModelVersion(
        "m", 0, ref.sha256, {"model.safetensors": ref}, {"train": ManifestRef("train", weights)},
        heldout, metrics, "2025-01-01T00:00:00Z",
    )  # fmt: skip


def test_versions_count_from_one_and_stay(store_root: str) -> None:
    store = Store.at(store_root)
    first = registry.register(store, a_model("a"))
    second = registry.register(store, a_model("b"))
    assert [first.version, second.version] == [1, 2]
    assert registry.versions(store, "m") == [first, second]
    assert registry.register(store, a_model("a")) == first, "the same model is the same version"
    assert registry.names(store) == ["m"]


def test_racing_registrations_give_each_model_one_number(store_root: str) -> None:
    store = Store.at(store_root)
    models = [a_model(name) for name in "abcdabcd"]
    with ThreadPoolExecutor(len(models)) as pool:
        found = list(pool.map(lambda model: registry.register(store, model), models))
    assert sorted({version.version for version in found}) == [1, 2, 3, 4]
    assert found[:4] == found[4:]
    assert len(registry.versions(store, "m")) == 4
    assert {event["event"] for event in registry.events(store, "m")} == {"registered"}


def test_racing_moves_of_different_aliases_lose_none(store_root: str) -> None:
    store = Store.at(store_root)
    names = [f"alias-{n}" for n in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: registry.move_aliases(store, "m", {name: 1}, "test"), names))
    assert registry.aliases(store, "m") == dict.fromkeys(names, 1)


def test_a_version_is_found_by_number_or_alias_and_else_told(store_root: str) -> None:
    store = Store.at(store_root)
    version = registry.register(store, a_model("a"))
    registry.move_aliases(store, "m", {"candidate": 1}, "newest")
    assert registry.find_version(store, "m", "1") == version
    assert registry.find_version(store, "m", "candidate") == version
    with pytest.raises(DataError, match="has no version 'champion'; there is candidate, 1"):
        registry.find_version(store, "m", "champion")


def test_the_gate_promotes_only_what_is_no_worse_on_the_same_held_out_set(store_root: str) -> None:
    store = Store.at(store_root)
    models = [a_model("a", 1.0), a_model("b", 1.2), a_model("c", 0.9), a_model("d", 0.1, "other")]
    verdicts = []
    for model in models:
        version = registry.register(store, model)
        verdicts.append(registry.promote_if(store, version, 0.05).split(":")[0])
        assert registry.last_verdict(store, version) is not None
    assert verdicts == ["promoted", "held back", "promoted", "held back"]
    assert registry.aliases(store, "m") == {"champion": 3, "previous": 1}
    registry.promote(store, registry.find_version(store, "m", "4"), "by hand")
    assert registry.aliases(store, "m") == {"champion": 4, "previous": 3}


def test_the_model_of_a_sample_never_takes_the_name_of_the_real_one() -> None:
    named, unnamed = RegisterConfig(name="mine"), RegisterConfig()
    assert model_name(named, "docs", None) == "mine"
    assert model_name(unnamed, "docs", None) == "docs"
    assert model_name(named, "docs-sample9", 9) == "mine-sample9"
    assert model_name(unnamed, "docs-sample9", 9) == "docs-sample9"
