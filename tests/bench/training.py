"""What the training benchmarks share: the ~10 M parameter shape, its state, and CPU seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from llm.config_model import ModelConfig
from llm.config_train import TrainConfig
from llm.environment import Environment, begin
from llm.loader import Batch
from llm.run_state import Run, fresh

VOCAB_SIZE = 65
"""Characters of tinyshakespeare."""
SHAPE = ModelConfig(
    vocab_size=VOCAB_SIZE, context_length=256, n_layers=6, d_model=384, n_heads=6, qk_norm=True
)
"""nanoGPT's character model in the llama family: 10.7 M parameters."""


def started(config: TrainConfig) -> tuple[Run, Environment]:
    """A run of SHAPE before its first step, in this process."""
    environment = begin(config)
    return fresh(SHAPE, config, environment), environment


def made_up(batch_size: int, seed: int = 0) -> Batch:
    """Windows of random tokens: speed does not depend on which they are."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, SHAPE.context_length + 1)
    tokens = torch.randint(VOCAB_SIZE, shape, generator=generator)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def least_seconds(function: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
    """The least CPU seconds of a call, after some that do not count."""
    for _ in range(warm_up):
        function()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best
