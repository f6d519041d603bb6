"""Fingerprints: one form for equal values, an error for what has none."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config import Config
from tasks.store.fingerprint import canonical, canonical_json, differences, fingerprint

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "inf" not in repr(value))


class Shape(Config):
    """A config for the tests."""

    width: int = 2
    names: tuple[str, ...] = ("a", "b")
    ratio: float = 1.0


def backwards(value: Any) -> Any:
    """The same data with every mapping in another order."""
    if isinstance(value, dict):
        return {key: backwards(value[key]) for key in reversed(value)}
    return [backwards(item) for item in value] if isinstance(value, list) else value


@given(PLAIN)
def test_equal_values_have_one_form(value: Any) -> None:
    assert canonical_json(value) == canonical_json(backwards(value))


@given(PLAIN)
def test_the_form_survives_being_stored_as_json(value: Any) -> None:
    stored = json.loads(json.dumps(canonical(value), indent=2))
    assert canonical_json(stored) == canonical_json(value)


def test_the_form_is_sorted_and_has_no_spaces() -> None:
    value = {"b": [1.0, 0.5, None, True], "a": "Grüße \n"}
    assert canonical_json(value) == '{"a":"Grüße \\n","b":[1,0.5,null,true]}'.encode()
    assert fingerprint(value) == hashlib.sha256(canonical_json(value)).hexdigest()


def test_a_config_is_the_mapping_of_its_fields() -> None:
    assert canonical(Shape()) == {"width": 2, "names": ["a", "b"], "ratio": 1}


@pytest.mark.parametrize(
    "value", [{1, 2}, Path("x"), object(), b"x", float("nan"), float("inf"), {1: "x"}]
)
def test_what_has_no_stable_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint({"field": value})


def test_differences_name_the_fields() -> None:
    old = {"config": {"a": 1, "b": 2.0}, "version": 1, "gone": "x"}
    new = {"config": {"a": 1.0, "b": 3}, "version": 2, "pins": {"t": "0123456789" * 4}}
    assert differences(old, new) == [
        "config.b: 2 -> 3",
        "gone: x -> null",
        'pins: null -> {"t": "01234…',
        "version: 1 -> 2",
    ]
    assert differences(old, old) == []
