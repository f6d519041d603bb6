"""Buckets of equal keys, and what they join."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ints = npt.NDArray[np.int64]


def buckets(keys: Ints, members: Ints) -> tuple[Ints, Ints]:
    """(bucket, member) of all members whose key is another's as well: buckets are numbered from 0
    and come one after the other."""
    order = np.argsort(keys)
    keys, members = keys[order], members[order]
    again = np.zeros(len(keys) + 1, np.bool_)  # whether a key is that of the entry before
    again[1:-1] = keys[1:] == keys[:-1]
    shared = again[:-1] | again[1:]
    return np.cumsum(~again[:-1][shared]) - 1, members[shared]


def star_pairs(bucket: Ints, member: Ints) -> tuple[Ints, Ints]:
    """Each bucket's least member with each of its others, once for each bucket that has both."""
    order = np.lexsort((member, bucket))
    bucket, member = bucket[order], member[order]
    starts = np.flatnonzero(np.diff(bucket, prepend=-1))
    least = np.repeat(member[starts], np.diff(starts, append=len(member)))
    others = least != member
    return least[others], member[others]


@njit(cache=True, nogil=True)
def components(n_members, one, two):
    """The least member of each member's component, under the edges one[e]-two[e]."""
    parent = np.arange(n_members)
    for edge in range(len(one)):
        low, high = _root(parent, one[edge]), _root(parent, two[edge])
        parent[max(low, high)] = min(low, high)
    for member in range(n_members):
        parent[member] = parent[parent[member]]  # a parent is less, and done already
    return parent


@njit(cache=True, nogil=True)
def _root(parent, member):
    while parent[member] != member:
        parent[member] = parent[parent[member]]
        member = parent[member]
    return member
