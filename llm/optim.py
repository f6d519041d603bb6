"""Optimizers of a model and the schedule of their rates."""

from __future__ import annotations

import math

import torch

from llm.config_optim import OptimConfig
from llm.decoder import Decoder, Role
from llm.muon import Muon

HIDDEN = frozenset({"matrix", "experts"})
"""Roles of what lies inside the blocks and multiplies: what Muon and weight decay are for."""

MUON_MOMENTUM = (0.85, 0.95)
"""Muon's momentum at the first step and after warm-up (modded-nanogpt, Jordan et al. 2024)."""
MUON_MOMENTUM_STEPS = 300
"""Steps over which it rises."""


def build_optimizers(model: Decoder, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """One or two optimizers that between them hold every parameter once, at peak rates.

    There is a group for each role of `model.roles()` that occurs. Matrices and experts go to Muon,
    or to AdamW, with weight decay; everything else always goes to AdamW without. A group remembers
    its `role`, and its peak as `initial_lr`.
    """
    muon = config.optimizer == "muon"
    hidden = config.muon_learning_rate if muon else config.learning_rate
    rates: dict[Role, float] = {
        "embedding": config.embedding_learning_rate,
        "vector": config.learning_rate,
        "head": config.head_learning_rate,
        "matrix": hidden,
        "experts": hidden,
    }
    roles = model.roles()
    groups = [
        {
            "role": role,
            "params": [p for name, p in model.named_parameters() if roles[name] == role],
            "lr": rate,
            "initial_lr": rate,
        }
        | _decay(config, role in HIDDEN)
        for role, rate in rates.items()
        if role in roles.values()
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if muon:
        optimizers.append(Muon([group for group in groups if group["role"] in HIDDEN]))
        groups = [group for group in groups if group["role"] not in HIDDEN]
    betas = (config.beta1, config.beta2)
    optimizers.append(AdamW(groups, betas=betas, eps=config.eps, fused=True))
    return optimizers


def _decay(config: OptimConfig, decays: bool) -> dict[str, float]:
    decay = config.weight_decay if decays else 0.0
    cautious = config.weight_decay_kind == "cautious"
    return {
        "weight_decay": 0.0 if cautious else decay,
        "cautious_weight_decay": decay if cautious else 0.0,
    }


class AdamW(torch.optim.AdamW):
    """torch's, whose groups may have a `cautious_weight_decay` in place of `weight_decay`."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        before = [
            (parameter, parameter.clone(), group["lr"] * group["cautious_weight_decay"])
            for group in self.param_groups
            if group["cautious_weight_decay"]
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        super().step()
        for parameter, old, decay in before:
            towards_zero = (old - parameter) * old > 0
            parameter.addcmul_(old, towards_zero.to(old.dtype), value=-decay)


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
            if isinstance(optimizer, Muon):
                group["momentum"] = muon_momentum(step)
