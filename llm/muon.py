"""Muon (Jordan et al. 2024): momentum whose matrices are made nearly orthogonal before a step.

As torch.optim.Muon, number for number, and beyond it: stacks of matrices (3-D parameters, such as
experts), matrices that ranks hold in shards, small matrices of one shape in one batched product
(on a CPU twice as fast at 128 x 128, and slower from about 256 on), and cautious weight decay.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from llm.parallel import full
from llm.resharding import rows_of

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic that takes all singular values near 1 (Jordan et al. 2024)."""
STEPS = 5
EPS = 1e-7

BATCHED_BELOW = 256
"""On a CPU, matrices whose smaller side is less are multiplied together. Measured with AVX512."""


class Muon(torch.optim.Optimizer):
    """Groups take `lr`, `momentum`, `weight_decay` and `cautious_weight_decay`.

    A parameter is a matrix or a stack of matrices [..., R, C]. Decay is decoupled (Loshchilov and
    Hutter 2019): of everything, or, cautious, of weights that the update moves towards zero anyway
    (Chen et al. 2025, "Cautious Weight Decay").
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float = 0.95) -> None:
        defaults = {
            "lr": 0.02, "momentum": momentum, "weight_decay": 0.0, "cautious_weight_decay": 0.0
        }  # fmt: skip
        super().__init__(list(groups), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            directions = [self._direction(p, group["momentum"]) for p in parameters]
            for p, direction in zip(parameters, orthogonal(directions), strict=True):
                move(p, direction, group)

    def _direction(self, parameter: Tensor, momentum: float) -> Tensor:
        """The whole gradient after Nesterov's momentum."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - momentum)
        return full(gradient.lerp(buffer, momentum))


def move(parameter: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
    """One step against an orthogonal direction, of which a rank takes the rows it holds.

    Rates of tall matrices are raised so that their outputs move as far as those of square ones.
    """
    rows, columns = parameter.shape[-2:]
    rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        first, end = rows_of(len(parameter), mesh.get_local_rank(), mesh.size())
        parameter, direction = parameter.to_local(), direction[first:end]
    decay = group["lr"] * group["cautious_weight_decay"]
    if decay:
        aligned = direction * parameter > 0
        parameter.addcmul_(parameter, aligned.to(parameter.dtype), value=-decay)
    if group["weight_decay"]:
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
    parameter.add_(direction, alpha=-rate)


def orthogonal(matrices: list[Tensor]) -> list[Tensor]:
    """The nearly orthogonal matrix, in bfloat16, of each [..., R, C]; those of a shape together."""
    alike: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[matrix.shape[-2:]].append(i)
    found: list[Tensor] = [torch.empty(0)] * len(matrices)
    for shape, indices in alike.items():
        flat = [matrices[i].bfloat16().reshape(-1, *shape) for i in indices]
        if matrices[indices[0]].is_cuda or min(shape) < BATCHED_BELOW:
            made = newton_schulz(torch.cat(flat)).split([len(each) for each in flat])
        else:
            made = tuple(_one_by_one(stack) for stack in flat)
        for i, each in zip(indices, made, strict=True):
            found[i] = each.reshape(matrices[i].shape)
    return found


def _one_by_one(stack_NRC: Tensor) -> Tensor:
    made = [newton_schulz(matrix) for matrix in stack_NRC]
    return torch.stack(made) if len(made) > 1 else made[0][None]


def newton_schulz(x: Tensor) -> Tensor:
    """About U V^T of each matrix U S V^T in [N, R, C] or [R, C]: singular values of 0.7 to 1.2."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    product, plus = (torch.mm, torch.addmm) if x.ndim == 2 else (torch.bmm, torch.baddbmm)
    # Singular values are at most the norm.
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram = product(x, x.mT)
        polynomial = plus(gram, gram, gram, beta=b, alpha=c)
        x = plus(x, polynomial, x, beta=a)
    return x.mT if tall else x
