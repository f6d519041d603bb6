"""Batches of windows: Loader.batch against nanoGPT's get_batch, and how full its windows are."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from llm.config_data import DataConfig
from llm.data import IGNORED, Prepared, prepare
from llm.loader import Loader
from tests.bench.harness import PeersMissing, Result, call, nanogpt

TARGET = 5.0
LEAST_FULL = 0.999
CONTEXT, BATCH = 256, 64
"""Those of nanoGPT's character model."""
VOCAB_SIZE = 50_257
MEDIAN_LENGTH, SPREAD = 400, 1.0
"""Of documents in tokens, log-normal, about as in web text."""


def run(quick: bool) -> Result:
    """Whole epochs on our side, packing included, in both ways to pack; as many batches on theirs.

    `ratio` is of the way that cuts as nanoGPT does (`stream`). Quality is that of `best_fit`: how
    many targets of its windows count, and whether each pair of a token and the next comes once.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = _prepared(folder, 3_000_000 if quick else 30_000_000)
        stream_s, n_batches, _ = _epoch(prepared, DataConfig())
        packed_s, _, full = _epoch(prepared, DataConfig(packing="best_fit"))
        whole = _every_token_once(prepared, DataConfig(packing="best_fit"))
        n_tokens = n_batches * BATCH * CONTEXT
        figures = {
            "ours_mtok_s": n_tokens / stream_s / 1e6,
            "ours_best_fit_mtok_s": n_tokens / packed_s / 1e6,
        }
        missing, theirs = None, None
        try:
            data = folder / "data" / "bench"
            data.mkdir(parents=True)
            prepared.tokens_S.astype(np.uint16).tofile(data / "train.bin")
            sizes = (CONTEXT, BATCH, n_batches)
            theirs = call("nanogpt_loader", nanogpt(), name, *map(str, sizes))["tokens_s"]
            figures["peer_mtok_s"] = theirs / 1e6
        except PeersMissing as error:
            missing = str(error)
    return Result(
        ratio=n_tokens / stream_s / theirs if theirs else None,
        target=TARGET,
        ok=full >= LEAST_FULL and whole,
        figures=figures,
        quality={"full": round(full, 6), "every_token_once": whole, "tokens": n_tokens},
        peers_missing=missing,
    )


def _prepared(folder: Path, n_tokens: int) -> Prepared:
    """Documents of made-up tokens, as a dataset is prepared."""
    made = np.random.default_rng(1337)
    n_documents = int(n_tokens / (MEDIAN_LENGTH * np.exp(SPREAD**2 / 2)))
    lengths = np.exp(made.normal(np.log(MEDIAN_LENGTH), SPREAD, n_documents)).astype(np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = made.integers(1, VOCAB_SIZE, offsets[-1]).astype(np.uint32)
    ids = pa.array([made.bytes(16).hex() for _ in lengths])
    shared = {"id": ids, "length": lengths, "n_bytes": lengths * 4}
    shard = shared | {"digest": ids, "tokens": pa.LargeListArray.from_arrays(offsets, tokens)}
    dataset = shared | {
        "object": ["shard.parquet"] * n_documents,
        "row": np.arange(n_documents),
        "split": ["train"] * n_documents,
        "source": ["bench"] * n_documents,
    }
    pq.write_table(pa.table(shard), folder / "shard.parquet", row_group_size=1000)
    pq.write_table(pa.table(dataset), folder / "dataset.parquet")
    return prepare(str(folder / "dataset.parquet"), "train", folder / "cache", str(folder))


def _epoch(prepared: Prepared, data: DataConfig) -> tuple[float, int, float]:
    """CPU seconds of an epoch, its batches, and the share of their targets that count.

    The second epoch is timed: the first has loaded the compiled kernels.
    """
    loader = Loader(prepared, CONTEXT, BATCH, seed=1337, data=data)
    n_batches = loader.n_windows() // BATCH
    for step in range(n_batches):
        loader.batch(step)
    start = time.process_time()
    for step in range(n_batches, 2 * n_batches):
        loader.batch(step)
    seconds = time.process_time() - start
    return seconds, n_batches, loader.tokens_per_epoch / (loader.n_windows() * CONTEXT)


def _every_token_once(prepared: Prepared, data: DataConfig) -> bool:
    """Whether an epoch's (input, target) pairs are those of the split and a last eot, as often."""
    loader = Loader(prepared, CONTEXT, 1, seed=1337, data=data)
    pairs = []
    for step in range(loader.n_windows()):
        batch = loader.batch(step)
        inputs, targets = batch.inputs_BT.numpy().ravel(), batch.targets_BT.numpy().ravel()
        counts = targets != IGNORED
        pairs.append((inputs[counts] << 32) | targets[counts])
    stream = np.append(prepared.tokens_S, prepared.eot_id).astype(np.int64)
    expected = (stream[:-1] << 32) | stream[1:]
    return np.array_equal(np.sort(np.concatenate(pairs)), np.sort(expected))
