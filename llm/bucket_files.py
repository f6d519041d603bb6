"""Bucket files: a split too large for the local disk, read from storage a bucket at a time.

    {buckets_url}/{split}-{hash}/<part>-<bucket>.bin    a bucket: its documents in order of id, each
                                                        after an eot, in 2 bytes a token or in 4
                                /index.json             the split's digest and checksums of the
                                                        buckets; written last: all is there

An external merge (`llm.bucket_merge`) writes them, once for all trainings on the same dataset. The
batches are, bit for bit, those of the copy that `llm.data.prepare` makes.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from llm import files
from llm.bucket_merge import RUN_TOKENS, checksum_of, merge_into_buckets
from llm.buckets import BUCKET_TOKENS, lay_out
from llm.config_data import DataConfig
from llm.data import Prepared, Tokens
from llm.dataset_file import Ints, documents_of, read_dataset
from llm.errors import ConfigError, DataError, StorageError
from llm.mixture import check_weights

_LAYOUT = 1  # Part of the folder's name; raise it when the layout changes.


def open_buckets(
    dataset_url: str,
    split: str,
    cache_dir: Path,
    base_url: str = "",
    *,
    eot_id: int = 0,
    data: DataConfig,
    bucket_tokens: int = BUCKET_TOKENS,
    run_tokens: int = RUN_TOKENS,
) -> Prepared:
    """A split whose buckets lie at `data.buckets_url`, written there first unless they are there.

    Of the split, this keeps 48 bytes a document in memory and `data.cache_gb` of buckets in
    `cache_dir`. While buckets are written, it holds `run_tokens` tokens in memory, or those of the
    largest token shard. A writer that was killed goes on with the first run that is missing;
    several may write at once.

    Raises DataError when the dataset is missing, has no document of the split or disagrees with its
    shards, ConfigError for weights that do not fit its sources, StorageError.
    """
    body = read_dataset(dataset_url)
    shape = [bool(data.weights), data.curriculum, bucket_tokens]
    settings = json.dumps([_LAYOUT, split, eot_id, base_url, *shape]).encode()
    name = f"{split}-{hashlib.sha256(settings + body).hexdigest()[:32]}"
    url = f"{data.buckets_url.rstrip('/')}/{name}"
    documents, places = documents_of(body, split, dataset_url, base_url)
    if data.weights:
        check_weights(data.weights, documents.sources)
    index = _read_index(url)
    if index is None:
        parts = lay_out(documents, data, bucket_tokens)
        try:
            index = merge_into_buckets(url, documents, places, parts, eot_id, run_tokens)
        except FileNotFoundError as error:
            # Another writer of the same buckets was faster, and has removed what is merged.
            index = _read_index(url)
            if index is None:
                raise StorageError(f"{error}: it went away while it was merged") from error
    kept = BucketFiles(
        url=url,
        starts=documents.starts,
        checksums=index["checksums"],
        cache=Path(cache_dir) / name if files.is_s3(url) else None,
        cache_bytes=int(data.cache_gb * 1e9),
    )
    return Prepared(
        **vars(documents), split=split, eot_id=eot_id, digest=index["digest"], kept=kept
    )


def _read_index(url: str) -> dict[str, Any] | None:
    try:
        return json.loads(files.read_bytes(f"{url}/index.json"))
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class BucketFiles:
    """The buckets of a split in storage. Those used last are kept on the local disk, if any are,
    for the other processes of the machine and for the next run."""

    url: str
    starts: Ints
    """Of the split (`Documents.starts`)."""
    checksums: list[list[str]]
    """By part and bucket; empty for an empty bucket, which has no file."""
    cache: Path | None
    cache_bytes: int

    def whole(self) -> Tokens:
        raise ConfigError(
            f"the tokens lie in buckets at {self.url}, and this needs them on the local disk in "
            "one piece: leave train.data.buckets_url empty"
        )

    def bucket(self, part: int, bucket: int, documents: Ints) -> tuple[Tokens, Ints]:
        lengths = self.starts[documents + 1] - self.starts[documents]
        body = self._body(f"{part}-{bucket}.bin", self.checksums[part][bucket])
        width = len(body) // int(lengths.sum())
        return np.frombuffer(body, f"<u{width}"), np.cumsum(lengths) - lengths

    def _body(self, name: str, checksum: str) -> bytes:
        if self.cache is None:
            return self._fetch(name, checksum)
        self.cache.mkdir(parents=True, exist_ok=True)
        # Ranks of a machine want the same bucket at the same time: one fetches it for all.
        with filelock.FileLock(self.cache / "lock"):
            path = self.cache / name
            if path.exists():
                body = path.read_bytes()
                if checksum_of(body) == checksum:
                    os.utime(path)
                    return body
            body = self._fetch(name, checksum)
            self._keep(path, body)
            return body

    def _fetch(self, name: str, checksum: str) -> bytes:
        try:
            body = files.read_bytes(f"{self.url}/{name}")
        except FileNotFoundError as error:
            raise DataError(f"{self.url}/{name} is gone; {self._remedy}") from error
        if checksum_of(body) != checksum:
            raise DataError(f"{self.url}/{name} is not what was written; {self._remedy}")
        return body

    @property
    def _remedy(self) -> str:
        return f"delete {self.url}/index.json, and the buckets are written again"

    def _keep(self, path: Path, body: bytes) -> None:
        """Writes the bucket to the cache, and removes the ones used longest ago for it."""
        if len(body) > self.cache_bytes:
            return
        kept = sorted(path.parent.glob("*.bin"), key=lambda other: other.stat().st_mtime_ns)
        room = self.cache_bytes - sum(other.stat().st_size for other in kept)
        for other in kept:
            if room >= len(body):
                break
            room += other.stat().st_size
            other.unlink()
        files.put(str(path), body)
