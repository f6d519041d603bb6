"""A mixture of experts: each token goes to the few feed-forward layers that a router picks for it.

Qwen3-MoE's shape (Yang et al. 2025). No expert has a capacity and no token is dropped: the tokens
are sorted by expert, and each expert makes one product of those it got.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.decoder import Linear
from llm.parallel import mean_over_ranks


class Experts(nn.Module):
    """Feed-forward layers side by side: SwiGLU, each with matrices of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        n_experts, width, hidden = config.n_experts, config.d_model, config.d_ff
        self.gate_proj = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.up_proj = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.down_proj = nn.Parameter(torch.empty(n_experts, width, hidden))

    def forward(self, x_MD: Tensor, ends_N: Tensor) -> Tensor:
        """Of M rows in the order of experts, the first `ends_N[0]` go to expert 0, and so on."""
        gate_MF = _product(x_MD, self.gate_proj, ends_N)
        up_MF = _product(x_MD, self.up_proj, ends_N)
        return _product(F.silu(gate_MF) * up_MF, self.down_proj, ends_N)


def _product(x_MD: Tensor, weights_NFD: Tensor, ends_N: Tensor) -> Tensor:
    """Each expert's rows times its matrix: [M, D] to [M, F]."""
    device = x_MD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_MD, weights_NFD = x_MD.to(dtype), weights_NFD.to(dtype)
    return _grouped_product(x_MD, weights_NFD, ends_N)


# An operator of its own, as how many rows an expert gets is known only when it runs, and torch's
# `grouped_mm` compiles for bf16 alone.


def _rows(ends_N: Tensor) -> list[slice]:
    ends = ends_N.tolist()
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


@torch.library.custom_op("loam::grouped_product", mutates_args=())
def _grouped_product(x_MD: Tensor, weights_NFD: Tensor, ends_N: Tensor) -> Tensor:
    y_MF = x_MD.new_empty(len(x_MD), weights_NFD.shape[1])
    for rows, weights_FD in zip(_rows(ends_N), weights_NFD, strict=True):
        torch.mm(x_MD[rows], weights_FD.t(), out=y_MF[rows])
    return y_MF


@torch.library.custom_op("loam::grouped_product_backward", mutates_args=())
def _grouped_product_backward(
    dy_MF: Tensor, x_MD: Tensor, weights_NFD: Tensor, ends_N: Tensor
) -> tuple[Tensor, Tensor]:
    dx_MD, dweights_NFD = torch.empty_like(x_MD), torch.empty_like(weights_NFD)
    for n, rows in enumerate(_rows(ends_N)):
        torch.mm(dy_MF[rows], weights_NFD[n], out=dx_MD[rows])
        torch.mm(dy_MF[rows].t(), x_MD[rows], out=dweights_NFD[n])
    return dx_MD, dweights_NFD


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy_MF: Tensor) -> tuple[Tensor | None, ...]:
    return (*_grouped_product_backward(dy_MF, *ctx.saved_tensors), None)


_grouped_product.register_fake(lambda x, weights, ends: x.new_empty(len(x), weights.shape[1]))
_grouped_product_backward.register_fake(
    lambda dy, x, weights, ends: (torch.empty_like(x), torch.empty_like(weights))
)
_grouped_product.register_autograd(_backward, setup_context=_save)


class MixtureOfExperts(nn.Module):
    """In place of a block's feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_experts, self.n_chosen = config.n_experts, config.n_experts_per_token
        self.normalize = config.normalize_expert_weights
        self.gate = Linear(config.d_model, config.n_experts)
        self.experts = Experts(config)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the experts of each token make of it, and how unevenly they were chosen."""
        x_MD = x_BTD.flatten(0, 1)
        probabilities_MN = self.gate(x_MD).float().softmax(-1)
        chosen_Mk, experts_Mk = probabilities_MN.topk(self.n_chosen, dim=-1)
        counts_N = experts_Mk.new_zeros(self.n_experts, dtype=torch.int32).scatter_add(
            0, experts_Mk.flatten(), torch.ones_like(experts_Mk.flatten(), dtype=torch.int32)
        )
        if self.normalize:
            chosen_Mk = chosen_Mk / chosen_Mk.sum(-1, keepdim=True)
        order = experts_Mk.flatten().argsort(stable=True)
        ends_N = counts_N.cumsum(0, dtype=torch.int32)
        y_sorted = self.experts(x_MD[order // self.n_chosen], ends_N)
        # Back in the tokens' order by a gather, as a sum by index has no fixed order on a GPU.
        y_MkD = y_sorted[order.argsort()].unflatten(0, (-1, self.n_chosen))
        y_MD = (y_MkD * chosen_Mk[..., None].type_as(y_MkD)).sum(1)
        return y_MD.view_as(x_BTD), imbalance(probabilities_MN, counts_N)


def imbalance(probabilities_MN: Tensor, counts_N: Tensor) -> Tensor:
    """The load-balancing loss (Fedus et al. 2022, equation 4), least where all get the same.

    It is N times the sum over experts of their share of the tokens times their mean probability, so
    that even routing to k experts has k. In training the tokens are those of all ranks, since a
    product of means over each rank's own would depend on how many ranks there are.
    """
    shares_N = mean_over_ranks(counts_N / probabilities_MN.shape[0])
    return len(counts_N) * (shares_N * mean_over_ranks(probabilities_MN.mean(0))).sum()
