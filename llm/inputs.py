"""What a run reads, opened once: tokenizer, prepared splits, loader; and each update's batches."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llm import files
from llm.bucket_files import open_buckets
from llm.config_model import ModelConfig
from llm.config_train import TrainConfig, TrainSpec
from llm.data import Prepared, prepare
from llm.errors import ConfigError
from llm.loader import Batch, Loader
from llm.parallel import World
from llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Inputs:
    """What a run reads: opened once, never changed by it."""

    tokenizer: Tokenizer
    tokenizer_sha256: str
    train: Prepared
    validation: Prepared
    loader: Loader
    model_config: ModelConfig


def open_inputs(spec: TrainSpec) -> Inputs:
    """Tokenizer, prepared splits and loader; the model's vocabulary size is settled here.

    Raises DataError or ConfigError when they cannot be used or do not fit together.
    """
    for name in ("tokenizer_url", "dataset_url"):
        if not files.exists(getattr(spec, name)):
            raise ConfigError(f"{name}: there is no {getattr(spec, name)}")
    body = files.read_bytes(spec.tokenizer_url)
    tokenizer = Tokenizer.from_bytes(body)
    model_config = spec.model
    if not model_config.vocab_size:
        model_config = model_config.model_copy(update={"vocab_size": tokenizer.vocab_size})
    if model_config.vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {model_config.vocab_size}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens: use 0 to take it from the tokenizer"
        )
    config, eot_id = spec.train, tokenizer.eot_id
    place = (Path(spec.cache_dir), spec.base_url)
    validation = prepare(spec.dataset_url, "validation", *place, eot_id=eot_id)
    if config.data.buckets_url:
        train = open_buckets(spec.dataset_url, "train", *place, eot_id=eot_id, data=config.data)
    else:
        train = prepare(spec.dataset_url, "train", *place, eot_id=eot_id)
    loader = Loader(train, model_config.context_length, config.batch_size, config.seed, config.data)
    sha256 = hashlib.sha256(body).hexdigest()
    return Inputs(tokenizer, sha256, train, validation, loader, model_config)


def micro_batches(
    inputs: Inputs, config: TrainConfig, step: int, world: World, size: int
) -> list[Batch]:
    """This rank's windows of the update after `step` updates, at most `size` at a time."""
    first = step * config.accumulation_steps
    found = []
    for i in range(config.accumulation_steps):
        found += split(inputs.loader.batch(first + i, world.rank, world.world_size), size)
    return found


def split(batch: Batch, size: int) -> list[Batch]:
    """The batch's windows in order, `size` in each part and what is left in the last."""
    parts = []
    for start in range(0, len(batch.inputs_BT), size):
        rows = slice(start, start + size)
        documents_BT = None if batch.documents_BT is None else batch.documents_BT[rows]
        parts.append(Batch(batch.inputs_BT[rows], batch.targets_BT[rows], documents_BT))
    return parts
