"""Buckets and components against dictionaries and relabelling."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tasks.kernels.banding import buckets, components, star_pairs

keys = st.lists(st.integers(-3, 3), max_size=30)


def arrays(*columns: list[int]) -> list[np.ndarray]:
    return [np.array(column, np.int64) for column in columns]


@given(keys)
def test_buckets_hold_what_shares_its_key(values):
    members = list(range(100, 100 + len(values)))
    bucket, member = buckets(*arrays(values, members))
    found: dict[int, set[int]] = {}
    for number, one in zip(bucket.tolist(), member.tolist(), strict=True):
        found.setdefault(number, set()).add(one)
    expected = [
        {one for one, its in zip(members, values, strict=True) if its == value}
        for value in sorted(set(values))
    ]
    assert list(found.values()) == [some for some in expected if len(some) > 1]
    assert list(found) == list(range(len(found)))


@given(keys)
def test_each_bucket_is_a_star_around_its_least_member(values):
    bucket, member = buckets(*arrays(values, list(range(len(values)))))
    least, others = star_pairs(bucket, member)
    found = sorted(zip(least.tolist(), others.tolist(), strict=True))
    assert found == sorted(
        (values.index(value), place)
        for place, value in enumerate(values)
        if values.index(value) < place
    )


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_components_have_the_least_member_as_their_root(edges):
    label = list(range(20))
    for _ in label:
        for a, b in edges:
            label[a] = label[b] = min(label[a], label[b])
    one, two = arrays([a for a, _ in edges], [b for _, b in edges])
    assert components(20, one, two).tolist() == label
