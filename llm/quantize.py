"""A model whose matrices are held in 8 bits, for writing text on a CPU.

Each row of a matrix is scaled so that its largest number becomes 127, and rounded (absmax, Dettmers
et al. 2022): nothing is calibrated. Activations stay in fp32, so that outliers among them cost no
precision. At batch 1 a token takes as long as its weights take to be read, which are a quarter as
many bytes; several tokens at a time take a little longer than in fp32.

The embedding stays as it is, as a token reads one row of it; a tied output layer becomes 8 bits
beside it. So do the experts, but not the gate that chooses them, whose choices are all or nothing.
On a model of 0.8 M parameters trained on tinyshakespeare the loss changes by 0.0001 nats, and the
likeliest token is another one at 0.6 % of positions.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.decode_kernels import Matrix, product
from llm.decoder import Decoder
from llm.errors import ConfigError
from llm.experts import Experts, MixtureOfExperts

FEW = 4
"""Rows up to which a product with each takes less time than making the matrix fp32 (measured)."""


class Int8Linear(nn.Module):
    """A matrix in 8 bits, and a scale for each of its rows."""

    weight_ND: Tensor
    scale_N: Tensor
    bias_N: Tensor | None

    def __init__(self, weight_ND: Tensor, bias_N: Tensor | None = None) -> None:
        super().__init__()
        weight_ND = weight_ND.detach().float()
        scale_N = (weight_ND.abs().amax(1) / 127).clamp_min(1e-30)
        self.register_buffer("weight_ND", (weight_ND / scale_N[:, None]).round().to(torch.int8))
        self.register_buffer("scale_N", scale_N)
        self.register_buffer("bias_N", None if bias_N is None else bias_N.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., N], in the type of `x`."""
        x_MD = x.detach().reshape(-1, x.shape[-1])
        if len(x_MD) <= FEW:
            rows = [product(self.matrix, x_D) for x_D in x_MD.float().numpy()]
            y_MN = torch.from_numpy(np.stack(rows))
        else:
            y_MN = F.linear(x_MD, self.weight_ND.type_as(x)) * self.scale_N
        if self.bias_N is not None:
            y_MN = y_MN + self.bias_N
        return y_MN.type_as(x).view(*x.shape[:-1], -1)

    @property
    def matrix(self) -> Matrix:
        """The same memory, for `llm.decode_kernels`."""
        return Matrix(self.weight_ND.numpy(), self.scale_N.numpy())


class Int8Experts(nn.Module):
    """Experts whose matrices are in 8 bits."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            nn.ModuleList(map(Int8Linear, stack))
            for stack in (experts.gate_proj, experts.up_proj, experts.down_proj)
        )

    def forward(self, x_MD: Tensor, ends_N: Tensor) -> Tensor:
        """Of M rows in the order of experts, the first `ends_N[0]` go to expert 0, and so on."""
        y_MD, start = torch.empty_like(x_MD), 0
        for n, end in enumerate(ends_N.tolist()):
            if end > start:
                rows_D = x_MD[start:end]
                hidden_F = F.silu(self.gate_proj[n](rows_D)) * self.up_proj[n](rows_D)
                y_MD[start:end] = self.down_proj[n](hidden_F)
            start = end
        return y_MD


def int8_model(model: Decoder) -> Decoder:
    """A copy of a model with its matrices in 8 bits; it can write and be evaluated, not trained.

    Raises ConfigError where the model is not on a CPU.
    """
    device = model.embed_tokens.weight.device
    if device.type != "cpu":
        raise ConfigError(f"int8 weights are for a CPU, but the model is on {device}: leave it out")
    model = copy.deepcopy(model)
    kept = {id(m.gate) for m in model.modules() if isinstance(m, MixtureOfExperts)}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and id(module) not in kept:
            model.set_submodule(name, Int8Linear(module.weight, module.bias))
        elif isinstance(module, Experts):
            model.set_submodule(name, Int8Experts(module))
    if model.config.tie_embeddings:
        model.lm_head = Int8Linear(model.embed_tokens.weight)  # type: ignore[assignment]
    return model
