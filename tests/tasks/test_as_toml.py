"""What is written as TOML is what tomllib reads."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.as_toml import as_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
SCALARS = st.one_of(TEXT, INTEGERS, st.booleans(), st.floats(allow_nan=False))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(TEXT, VALUES, max_size=5))
def test_what_is_written_reads_back_the_same(data: dict[str, Any]) -> None:
    assert tomllib.loads(as_toml(data)) == data


def test_it_reads_as_a_config_is_written() -> None:
    data = {
        "sources": [{"kind": "pydoc", "name": "docs"}, {"kind": "import", "paths": ["a b"]}],
        "name": "quickstart",
        "train": {"steps": 3, "nothing": None, "optim": {"beta1": 0.9}},
    }
    assert as_toml(data) == (
        'name = "quickstart"\n\n[[sources]]\nkind = "pydoc"\nname = "docs"\n\n[[sources]]\n'
        'kind = "import"\npaths = ["a b"]\n\n[train]\nsteps = 3\n\n[train.optim]\nbeta1 = 0.9\n'
    )


def test_what_toml_cannot_say_is_an_error() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        as_toml({"list": [None]})
