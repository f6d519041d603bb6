"""Exact duplicates: digest and group, xxh3-128, against sha1 and a set of them: MB/s of text.

Loam's side is what its stages do: the text digest of each document, and then, in the deciding
step, the first document of each digest. The peer hashes each text with hashlib and keeps those
whose hash its set does not hold. The quality is that both keep the same documents.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tasks.duplicates import Documents, from_hex
from tasks.store.rows import text_digest
from tests.bench import inputs
from tests.bench.harness import Result, cpu_seconds

TARGET_MB_S = 600.0


def run(quick: bool) -> Result:
    texts = inputs.english(4 if quick else 11) + inputs.multilingual(2 if quick else 5)
    texts += texts[::3]
    size = inputs.size_mb(texts)
    kept(texts[:9])  # compiles
    seconds, ours = cpu_seconds(lambda: kept(texts), repeats=8)
    peer_seconds, theirs = cpu_seconds(lambda: kept_by_sha1(texts), repeats=8)
    return Result(
        ratio=peer_seconds / seconds,
        target=None,
        ok=ours == theirs and size / seconds >= TARGET_MB_S,
        figures={
            "ours_mb_s": size / seconds,
            "target_mb_s": TARGET_MB_S,
            "peer_mb_s": size / peer_seconds,
        },
        quality={"documents": len(texts), "kept": len(ours), "same_kept": ours == theirs},
    )


def kept(texts: list[str]) -> list[int]:
    """The places of the texts that no earlier one equals."""
    digests = from_hex(pa.chunked_array([[text_digest(text) for text in texts]], pa.string()))
    numbers = np.arange(len(texts))
    names: npt.NDArray[np.uint64] = np.stack([np.zeros_like(numbers), numbers], 1).astype(np.uint64)
    nothing = np.zeros_like(numbers)
    live = Documents(names, digests, nothing, nothing, nothing, numbers)
    return np.flatnonzero(live.first == numbers).tolist()


def kept_by_sha1(texts: list[str]) -> list[int]:
    """The same, by hand."""
    seen: set[bytes] = set()
    places = []
    for place, text in enumerate(texts):
        digest = hashlib.sha1(text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            places.append(place)
    return places
