"""Tokens a CPU-second of a training step of 10.7 M parameters: what both rows of it share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from llm.config_train import TrainConfig
from llm.sizing import training_flops_per_token
from llm.train import Step, update
from tests.bench.harness import PeersMissing, Result, call, nanogpt
from tests.bench.training import SHAPE, VOCAB_SIZE, least_seconds, made_up, started

Dtype = Literal["float32", "bfloat16"]
BATCH, QUICK_BATCH = 32, 8
"""8,192 tokens, and 2,048."""
PEERS = ("nanogpt", "litgpt", "transformers")
ALIKE = 0.1
"""Share by which the falls of the loss may differ, after as many steps."""
SIZE = 1024
"""Width of the matrices whose product is the peak."""


def run(dtype: Dtype, target: float, least_share: float, quick: bool) -> Result:
    """The faster of ours, eager and compiled, against the fastest peer, each as its own code is.

    All sides take turns, three times; the best turn of each counts. `--quick` takes one turn of
    smaller batches, of which Muon is a larger part, and does not compile. `ok` says whether ours
    reaches the least share of the peak of products, and whether the loss of the batch that all
    steps are given falls, eager and compiled alike.
    """
    turns, steps, batch_size = (1, 2, QUICK_BATCH) if quick else (3, 3, BATCH)
    n_tokens = batch_size * SHAPE.context_length
    ways = {"ours_eager": _stepper(dtype, batch_size, compiled=False)}
    if not quick:
        ways["ours_compiled"] = _stepper(dtype, batch_size, compiled=True)
    first = {name: step().loss for name, step in ways.items()}
    seconds: dict[str, list[float]] = {}
    missing: dict[str, str] = {}
    for _ in range(turns):
        for name, step in ways.items():
            seconds.setdefault(name, []).append(least_seconds(step, steps))
        for library in PEERS:
            try:
                seconds.setdefault(library, []).append(_peer(library, dtype, batch_size, steps))
            except PeersMissing as error:
                missing[library] = str(error)
    rates = {name: n_tokens / min(each) for name, each in seconds.items() if each}
    theirs = [rates[library] for library in PEERS if library in rates]
    rate = max(rates[name] for name in ways)
    share, peak = _peak_share(dtype, rate)
    fallen = {name: first[name] - step().loss for name, step in ways.items()}
    alike = max(fallen.values()) <= (1 + ALIKE) * min(fallen.values())
    return Result(
        ratio=rate / max(theirs) if theirs else None,
        target=target,
        ok=share >= least_share and min(fallen.values()) > 0 and alike,
        figures={f"{name}_tok_s": value for name, value in rates.items()} | {"peak_gflop_s": peak},
        quality={"peak_share": share, "least": least_share, "batch_tokens": n_tokens}
        | {f"{name}_loss_fell_by": fall for name, fall in fallen.items()},
        peers_missing="; ".join(sorted(set(missing.values()))) or None,
    )


def _stepper(dtype: Dtype, batch_size: int, compiled: bool) -> Callable[[], Step]:
    """`llm.train.update` with its defaults: Muon, AdamW, guard, clipping."""
    config = TrainConfig(
        device="cpu", threads=1, dtype=dtype, batch_size=batch_size, compile=compiled
    )
    run, environment = started(config)
    if compiled:
        run.wrapped = replace(run.wrapped, loss=torch.compile(run.wrapped.loss))
    batch = made_up(batch_size)
    return lambda: update(run, [batch], environment, config)


def _peer(library: str, dtype: Dtype, batch_size: int, steps: int) -> float:
    """CPU seconds of its step."""
    more = (nanogpt(),) if library == "nanogpt" else ()
    found = call(
        "training_step", library, dtype, str(batch_size), str(steps), str(VOCAB_SIZE), *more
    )
    return float(found["seconds"])


def _peak_share(dtype: Dtype, tokens_s: float) -> tuple[float, float]:
    """The share of the peak that this rate is, and the peak in GFLOP/s of CPU time.

    A token takes the operations that `llm.sizing` counts; the peak is the best of a few products.
    """
    a = torch.ones(SIZE, SIZE, dtype=getattr(torch, dtype))
    peak = 2 * SIZE**3 / least_seconds(lambda: torch.mm(a, a), 20, warm_up=3)
    return tokens_s * training_flops_per_token(SHAPE) / peak, peak / 1e9
