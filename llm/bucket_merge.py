"""The external merge that makes bucket files out of token shards, in bounded memory.

Token shards that follow each other are read into memory and put as a run, their documents in the
order of the buckets; then each bucket is gathered from its place in every run, which follows from
lengths. So each token is read and written twice, and nothing lies on the local disk.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from llm import files
from llm.buckets import Part
from llm.dataset_file import Documents, Ints, Places, read_shard
from llm.errors import DataError
from llm.progress import tally

RUN_TOKENS = 1 << 27  # 512 MiB of a run in memory, and as much again while it is put.
_LARGEST = 2**32 - 1


def checksum_of(body: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(body)


def merge_into_buckets(
    url: str,
    documents: Documents,
    places: Places,
    parts: list[Part],
    eot_id: int,
    run_tokens: int = RUN_TOKENS,
) -> dict[str, Any]:
    """Writes the buckets of a split below `url`, and last their index, which it returns.

    Runs that are there are taken as they are. Raises FileNotFoundError when a run goes away before
    it is merged, DataError or StorageError when a shard cannot be used.
    """
    runs = _Runs.plan(url, documents, places, parts, run_tokens)
    with tally("tokens by bucket", "tokens", int(runs.lengths.sum())) as sorted_:
        for number, run_url in enumerate(runs.urls):
            if not files.exists(run_url):
                files.put(run_url, _run(number, documents, places, runs))
            sorted_.advance(int(runs.lengths[runs.run == number].sum()))
    hashes, checksums = 0, []
    with tally("bucket files", "tokens", int(runs.lengths.sum())) as written:
        for number, part in enumerate(parts):
            of_part = []
            for bucket in range(len(part)):
                chosen = part.bucket(bucket)
                body, of_bucket = _bucket(chosen, documents, eot_id, runs)
                if body:
                    files.put(f"{url}/{number}-{bucket}.bin", body)
                of_part.append(checksum_of(body) if body else "")
                hashes += of_bucket
                written.advance(int(runs.lengths[chosen].sum()))
            checksums.append(of_part)
    index = {"digest": documents.digest_with(hashes), "checksums": checksums}
    files.put(f"{url}/index.json", json.dumps(index).encode())
    for run_url in runs.urls:
        files.delete(run_url)
    return index


@dataclass(frozen=True)
class _Runs:
    """Which run each document is in, and where: known before one is written."""

    urls: list[str]
    shards: list[list[tuple[int, Ints]]]
    """By run: its shards, each with its documents in order of row."""
    lengths: Ints
    """(n_documents,): tokens of each document. Runs hold no eots."""
    run: Ints
    """(n_documents,)"""
    offset: Ints
    """(n_documents,): tokens before it in its run."""

    @classmethod
    def plan(
        cls, url: str, documents: Documents, places: Places, parts: list[Part], run_tokens: int
    ) -> _Runs:
        by_shard, lengths = places.by_shard(), np.diff(documents.starts) - 1
        of_shard = np.array([int(lengths[some].sum()) for some in by_shard])
        numbers = np.unique((np.cumsum(of_shard) - of_shard) // run_tokens, return_inverse=True)[1]
        run, offset = numbers[places.object_index], np.empty(len(lengths), np.int64)
        order = np.concatenate([part.documents for part in parts])
        order = order[np.argsort(run[order], kind="stable")]
        before = np.cumsum(lengths[order]) - lengths[order]
        n_runs = int(numbers[-1]) + 1
        firsts = np.searchsorted(run[order], np.arange(n_runs))
        offset[order] = before - before[firsts][run[order]]
        urls = [f"{url}/runs/{run_tokens}-{number}.bin" for number in range(n_runs)]
        shards: list[list[tuple[int, Ints]]] = [[] for _ in urls]
        for shard, number in enumerate(numbers.tolist()):
            shards[number].append((shard, by_shard[shard]))
        return cls(urls, shards, lengths, run, offset)


def _run(number: int, documents: Documents, places: Places, runs: _Runs) -> bytes:
    """The tokens of a run, in 4 bytes each."""
    shards = runs.shards[number]
    tokens_S = np.empty(sum(int(runs.lengths[some].sum()) for _, some in shards), "<u4")
    for shard, some in shards:
        for document, tokens in read_shard(documents, places, shard, some):
            if len(tokens) and tokens.max() > _LARGEST:
                raise DataError("a token is above 2^32 - 1; no tokenizer has such")
            first = runs.offset[document]
            tokens_S[first : first + len(tokens)] = tokens
    return tokens_S.tobytes()


def _bucket(chosen: Ints, documents: Documents, eot_id: int, runs: _Runs) -> tuple[bytes, int]:
    """The file of a bucket, and the sum of its documents' hashes."""
    ends = np.cumsum(runs.lengths[chosen] + 1)
    stream_S = np.full(int(ends[-1]) if len(ends) else 0, eot_id, "<u4")
    hashes = 0
    for place, tokens in _tokens_of(chosen, runs):
        stream_S[ends[place] - len(tokens) : ends[place]] = tokens
        hashes += documents.row_hash(int(chosen[place]), tokens)
    narrow = not len(stream_S) or stream_S.max() < 1 << 16
    return stream_S.astype("<u2" if narrow else "<u4").tobytes(), hashes


def _tokens_of(chosen: Ints, runs: _Runs) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """(place among the documents of a bucket, its tokens): one range of each run."""
    run = runs.run[chosen]
    of_each = [np.flatnonzero(run == number) for number in np.unique(run)]
    firsts = [4 * int(runs.offset[chosen[places[0]]]) for places in of_each]
    sizes = [4 * int(runs.lengths[chosen[places]].sum()) for places in of_each]
    urls = [runs.urls[run[places[0]]] for places in of_each]
    bodies = files.read_ranges(urls, firsts, sizes)
    for places, body in zip(of_each, bodies, strict=True):
        tokens_S, end = np.frombuffer(body, "<u4"), 0
        for place in places.tolist():
            start, end = end, end + int(runs.lengths[chosen[place]])
            yield place, tokens_S[start:end]
