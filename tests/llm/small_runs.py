"""A run small enough to be trained within a second, from real files."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm import files
from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.config_tokenizer import TokenizerConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.metrics import TIMINGS, read_metrics
from llm.tokenizer import Tokenizer, train_tokenizer

MODEL = ModelConfig(context_length=16, n_layers=2, d_model=32, n_heads=2, qk_norm=True)

SENTENCE = "the rain falls on dark loam and seeds wake under it while worms turn leaves to soil"


def small_texts(count: int = 60) -> list[str]:
    """Sentences that go round the same words from different places."""
    words = SENTENCE.split()
    turns = [[words[(7 * i + j) % len(words)] for j in range(12)] for i in range(count)]
    return [" ".join(turn) + "." for turn in turns]


def small_spec(folder: Path, texts: list[str] | None = None, **train: Any) -> TrainSpec:
    """The spec of a run in `folder`, over `texts` of which every fifth is for validation."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = texts or small_texts()
    body = train_tokenizer(texts, TokenizerConfig(kind="characters", n_spare_tokens=0))
    (folder / "tokenizer.json").write_bytes(body)
    tokens = [ids.tolist() for ids in Tokenizer.from_bytes(body).encode_batch(texts)]
    ids = [hashlib.md5(f"{i}".encode()).hexdigest() for i in range(len(texts))]
    lengths, n_bytes = [len(t) for t in tokens], [len(text.encode()) for text in texts]
    shard = {
        "id": pa.array(ids),
        "digest": pa.array(ids),
        "length": pa.array(lengths, pa.int64()),
        "n_bytes": pa.array(n_bytes, pa.int64()),
        "tokens": pa.array(tokens, pa.large_list(pa.uint32())),
    }
    pq.write_table(pa.table(shard), folder / "shard.parquet")
    dataset = {
        "object": pa.array(["shard.parquet"] * len(texts)),
        "row": pa.array(range(len(texts)), pa.int64()),
        "id": pa.array(ids),
        "length": pa.array(lengths, pa.int64()),
        "n_bytes": pa.array(n_bytes, pa.int64()),
        "split": pa.array(["train" if i % 5 else "validation" for i in range(len(texts))]),
        "source": pa.array(["words"] * len(texts)),
    }
    pq.write_table(pa.table(dataset), folder / "dataset.parquet")
    settings = {
        "steps": 24,
        "batch_size": 4,
        "threads": 1,
        "dtype": "float32",
        "device": "cpu",
        "eval_every": 6,
        "eval_windows": 5,
        "checkpoint_every": 8,
        "log_every": 1,
        "sample_every": 12,
        "sample_prompts": ("the rain",),
        "sample_tokens": 8,
        "optim": OptimConfig(warmup_steps=4),
    }
    return TrainSpec(
        run_url=(folder / "run").as_uri(),
        dataset_url=(folder / "dataset.parquet").as_uri(),
        base_url=folder.as_uri(),
        tokenizer_url=(folder / "tokenizer.json").as_uri(),
        cache_dir=str(folder / "cache"),
        model=MODEL,
        train=TrainConfig(**(settings | train)),
    )


def told(spec: TrainSpec) -> dict[str, Any]:
    """All that a finished run says but its timings: weights, state, losses, samples, looks."""
    result = json.loads(files.read_bytes(f"{spec.run_url}/result.json"))
    last = f"{spec.run_url}/checkpoints/{result['steps']:08d}"
    state = json.loads(files.read_bytes(f"{last}/index.json"))["files"]
    rows = [
        {name: row[name] for name in row.keys() - TIMINGS} for row in read_metrics(spec.run_url)
    ]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    samples = sorted(files.list_urls(f"{spec.run_url}/samples"))
    return {
        "weights": result["weights"]["sha256"],
        "state": {name: entry["sha256"] for name, entry in state.items()},
        "rows": rows,
        "samples": [files.read_bytes(url) for url in samples],
        "looks": (result["validation"], result["best_validation"]),
        "tokens": (result["tokens"], result["skipped_steps"]),
    }


@contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Gives a process back as it was: training sets threads and determinism for all of it."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


class Killed(BaseException):
    """Stands for SIGKILL inside a process: nothing that handles errors handles it."""


def die_at_write(place: int, patch: pytest.MonkeyPatch) -> None:
    """From now on the write number `place` to storage, counted from 0, is never made."""
    made = itertools.count()
    for name in ("put", "create", "delete"):

        def write(*arguments: Any, real: Any = getattr(files, name)) -> Any:
            if next(made) >= place:
                raise Killed
            return real(*arguments)

        patch.setattr(files, name, write)
