"""Optimizers of a model and the schedule of their rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llm.config_optim import OptimConfig
from llm.decoder import Decoder

MUON_MOMENTUM = (0.85, 0.95)
"""Muon's momentum at the first step and after warm-up (modded-nanogpt, Jordan et al. 2024)."""
MUON_MOMENTUM_STEPS = 300
"""Steps over which it rises."""


def build_optimizers(model: Decoder, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """One or two optimizers that between them hold every parameter once, at peak rates.

    Matrices inside the blocks go to Muon, or to AdamW with weight decay; the embedding, the output
    layer and the norms always go to AdamW without. Groups are in the order of the model's
    parameters and remember their peak as `initial_lr`.
    """
    hidden = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [
        _group([model.embed_tokens.weight], config.embedding_learning_rate),
        _group(norms, config.learning_rate),
    ]
    if model.lm_head is not None:
        groups.append(_group([model.lm_head.weight], config.head_learning_rate))
    optimizers: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        muon = _group(hidden, config.muon_learning_rate, config.weight_decay)
        optimizers.append(torch.optim.Muon([muon]))
    else:
        groups.append(_group(hidden, config.learning_rate, config.weight_decay))
    betas = (config.beta1, config.beta2)
    optimizers.append(torch.optim.AdamW(groups, betas=betas, eps=config.eps, fused=True))
    return optimizers


def _group(
    parameters: Sequence[Tensor], peak: float, weight_decay: float = 0.0
) -> dict[str, object]:
    return {"params": parameters, "lr": peak, "initial_lr": peak, "weight_decay": weight_decay}


def learning_rate_scale(step: int, total_steps: int, config: OptimConfig) -> float:
    """Share of its peak that every rate has at a step, counted from 0.

    It rises to 1 at the last warm-up step, and comes to `min_lr_fraction` at `total_steps`, which
    is one past the last step. A run that is shorter than its warm-up only rises.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = config.warmup_steps
    if config.decay == "wsd":
        start = max(start, total_steps - math.ceil(config.decay_fraction * total_steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, total_steps - start)))
    fallen = (1 - math.cos(math.pi * progress)) / 2 if config.decay == "cosine" else progress
    return 1 - (1 - config.min_lr_fraction) * fallen


def muon_momentum(step: int) -> float:
    """Muon's momentum at a step, counted from 0."""
    first, last = MUON_MOMENTUM
    return first + (last - first) * min(1.0, step / MUON_MOMENTUM_STEPS)


def set_schedule(
    optimizers: list[torch.optim.Optimizer], step: int, total_steps: int, config: OptimConfig
) -> None:
    """Give every group the rate, and Muon the momentum, of a step that is about to be taken."""
    scale = learning_rate_scale(step, total_steps, config)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
            if isinstance(optimizer, torch.optim.Muon):
                group["momentum"] = muon_momentum(step)
