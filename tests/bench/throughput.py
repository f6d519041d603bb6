"""Tokens a CPU-second of a training step of 10.7 M parameters: what both rows of it share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch

from llm.config_train import TrainConfig
from llm.sizing import training_flops_per_token
from llm.train import update
from tests.bench.harness import PeersMissing, call, nanogpt
from tests.bench.training import SHAPE, VOCAB_SIZE, least_seconds, made_up, started

Dtype = Literal["float32", "bfloat16"]
SIZE = 1024
"""Width of the matrices whose product is the peak."""


def ours(dtype: Dtype, batch_size: int, steps: int, compiled: bool = False) -> float:
    """Tokens a CPU-second of `llm.train.update` with its defaults: Muon, AdamW, guard, clipping."""
    config = TrainConfig(
        device="cpu", threads=1, dtype=dtype, batch_size=batch_size, compile=compiled
    )
    run, environment = started(config)
    if compiled:
        run.wrapped = replace(run.wrapped, loss=torch.compile(run.wrapped.loss))
    batch = made_up(batch_size)
    seconds = least_seconds(lambda: update(run, [batch], environment, config), steps)
    return batch_size * SHAPE.context_length / seconds


def peers(dtype: Dtype, batch_size: int, steps: int) -> tuple[Mapping[str, float], str | None]:
    """Tokens a CPU-second of each peer that there is, by name, and what to do for the others."""
    found, missing = {}, None
    sizes = (str(batch_size), str(steps), str(VOCAB_SIZE))
    for library in ("nanogpt", "transformers"):
        try:
            more = (nanogpt(),) if library == "nanogpt" else ()
            seconds = call("training_step", library, dtype, *sizes, *more)["seconds"]
            found[library] = batch_size * SHAPE.context_length / seconds
        except PeersMissing as error:
            missing = str(error)
    return found, missing


def peak_share(dtype: Dtype, tokens_s: float) -> tuple[float, float]:
    """The share of the peak that this rate is, and the peak in GFLOP/s of CPU time.

    A token takes the operations that `llm.sizing` counts; the peak is the best of a few products.
    """
    a = torch.ones(SIZE, SIZE, dtype=getattr(torch, dtype))
    peak = 2 * SIZE**3 / least_seconds(lambda: torch.mm(a, a), 20, warm_up=3)
    return tokens_s * training_flops_per_token(SHAPE) / peak, peak / 1e9
