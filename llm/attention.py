"""Attention of queries to keys, by the fastest way there is for what is given.

On a CPU the gradient of causal attention is made in blocks that stay in its caches: some queries of
a few sequences at a time, against the keys up to the last of them, so that the half of the scores
that no query may see is hardly made. The weights are made again for it, so that memory grows with
the length and not with its square (Dao et al. 2022). torch's own gradient is slow in bf16: in
milliseconds of one core (Intel Xeon with AMX) for 8,192 tokens with 6 heads of 64, torch 2.13,

    | forward and backward | bf16, 256 x 32 | bf16, 1,024 x 8 | fp32, 256 x 32 | fp32, 1,024 x 8 |
    |----------------------|----------------|-----------------|----------------|-----------------|
    | torch's SDPA         |             93 |             172 |            101 |             258 |
    | plain softmax        |             67 |             360 |            204 |             822 |
    | this                 |             67 |             147 |            104 |             269 |

On a Zen 5, without AMX, SDPA took 128 ms for the first column, and blocks in both directions 56. On
other devices, with dropout, and where queries follow a cache, torch's
`scaled_dot_product_attention` does all of the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_BYTES = 256
"""Queries at a time, times the bytes of a number: 128 in bf16, 64 in fp32 (measured)."""
CACHE_BYTES = 2**19
"""Scores at a time, for each thread: half of a core's second-level cache."""


def attend(
    q_BTHE: Tensor,
    k_BSKE: Tensor,
    v_BSKE: Tensor,
    mask_B1TS: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Mean of the values, weighted by how well their keys fit each query: [B, T, H, E].

    Query heads share key and value heads in groups of H / K. `mask` is true where a query may look;
    without one, T equals S and a query looks at its own position and those before it. With as many
    queries as keys, a mask lets none look ahead. `dropout` is the share of the weights that is left
    out.
    """
    device = q_BTHE.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BTHE, k_BSKE, v_BSKE = q_BTHE.to(dtype), k_BSKE.to(dtype), v_BSKE.to(dtype)
    if device == "cpu" and q_BTHE.shape[1] == k_BSKE.shape[1] and not dropout:
        return _attend_causally(q_BTHE, k_BSKE, v_BSKE, mask_B1TS)
    return _torchs(q_BTHE, k_BSKE, v_BSKE, mask_B1TS, dropout)


def _torchs(
    q_BTHE: Tensor,
    k_BSKE: Tensor,
    v_BSKE: Tensor,
    mask_B1TS: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` by torch's own kernels."""
    y_BHTE = F.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=mask_B1TS,
        dropout_p=dropout,
        is_causal=mask_B1TS is None,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return y_BHTE.transpose(1, 2)


def attention_weights(q_BTHE: Tensor, k_BSKE: Tensor, mask_B1TS: Tensor | None = None) -> Tensor:
    """What `attend` weighs the values by, [B, H, T, S] in fp32: each row sums to one."""
    n_queries, n_keys, n_heads = q_BTHE.shape[1], k_BSKE.shape[1], q_BTHE.shape[2]
    k_BSHE = k_BSKE.repeat_interleave(n_heads // k_BSKE.shape[2], dim=2)
    scores_BHTS = torch.einsum("bthe,bshe->bhts", q_BTHE.float(), k_BSHE.float())
    if mask_B1TS is None:
        mask_B1TS = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q_BTHE.device).tril()
    scores_BHTS = scores_BHTS * q_BTHE.shape[-1] ** -0.5
    return scores_BHTS.masked_fill(~mask_B1TS, -torch.inf).softmax(-1)


# In blocks: R of the sequences, t of the queries, and the keys up to the last of those. The G query
# heads that share a key head are rows of one product, as if they were more queries of it.


def _blocks(q_BTHE: Tensor) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
    """Sequences at a time, and the first and last query of each block."""
    n_sequences, n_tokens, n_heads, _ = q_BTHE.shape
    size = min(BLOCK_BYTES // q_BTHE.element_size(), n_tokens)
    spans = [(start, min(start + size, n_tokens)) for start in range(0, n_tokens, size)]
    bytes_each = n_heads * size * n_tokens * q_BTHE.element_size()
    n_rows = max(1, torch.get_num_threads() * CACHE_BYTES // bytes_each)
    for first in range(0, n_sequences, n_rows):
        yield slice(first, first + n_rows), spans


def _by_key_head(x_RTHE: Tensor, n_kv_heads: int) -> Tensor:
    """[R, T, H, E] to [R, K, G, T, E]."""
    return x_RTHE.unflatten(2, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4)


def _weights(
    q_RKtE: Tensor, k_RKSE: Tensor, mask_R1TT: Tensor | None, start: int, end: int
) -> Tensor:
    """[R, K, G * t, S] of the queries from `start` to `end`, which is S."""
    scores_RKtS = q_RKtE @ k_RKSE.transpose(-1, -2)
    scores_RKGtS = scores_RKtS.unflatten(2, (-1, end - start))
    if mask_R1TT is None:
        later_tt = scores_RKtS.new_full((end - start, end - start), -torch.inf).triu_(1)
        scores_RKGtS[..., start:] += later_tt
    else:
        scores_RKGtS.masked_fill_(~mask_R1TT[:, :, None, start:end, :end], -torch.inf)
    return scores_RKtS.softmax(-1)


@torch.library.custom_op("loam::attend", mutates_args=())
def _attend_causally(
    q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask_B1TT: Tensor | None
) -> Tensor:
    """`attend` of as many queries as keys."""
    return _torchs(q_BTHE, k_BTKE, v_BTKE, mask_B1TT).contiguous()


@torch.library.custom_op("loam::attend_backward", mutates_args=())
def _attend_causally_backward(
    dy_BTHE: Tensor, q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, mask_B1TT: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the queries, keys and values."""
    n_kv_heads, scale = k_BTKE.shape[2], q_BTHE.shape[-1] ** -0.5
    dq_BTHE, dk_BTKE, dv_BTKE = _like_all(q_BTHE, k_BTKE, v_BTKE)
    for rows, spans in _blocks(q_BTHE):
        q_RKGTE = _by_key_head(q_BTHE[rows] * scale, n_kv_heads).contiguous()
        dy_RKGTE = _by_key_head(dy_BTHE[rows], n_kv_heads).contiguous()
        dq_RKGTE = _by_key_head(dq_BTHE[rows], n_kv_heads)
        k_RKTE = k_BTKE[rows].transpose(1, 2).contiguous()
        v_RKTE = v_BTKE[rows].transpose(1, 2).contiguous()
        dk_RKTE, dv_RKTE = torch.zeros_like(k_RKTE), torch.zeros_like(v_RKTE)
        mask_R1TT = None if mask_B1TT is None else mask_B1TT[rows]
        for start, end in spans:
            q_RKtE = q_RKGTE[..., start:end, :].flatten(2, 3)
            dy_RKtE = dy_RKGTE[..., start:end, :].flatten(2, 3)
            weights_RKtS = _weights(q_RKtE, k_RKTE[:, :, :end], mask_R1TT, start, end)
            dweights_RKtS = dy_RKtE @ v_RKTE[:, :, :end].transpose(-1, -2)
            dscores_RKtS = torch._softmax_backward_data(
                dweights_RKtS, weights_RKtS, -1, weights_RKtS.dtype
            )
            dv_RKTE[:, :, :end] += weights_RKtS.transpose(-1, -2) @ dy_RKtE
            dk_RKTE[:, :, :end] += dscores_RKtS.transpose(-1, -2) @ q_RKtE
            dq_RKtE = (dscores_RKtS @ k_RKTE[:, :, :end]) * scale
            dq_RKGTE[..., start:end, :] = dq_RKtE.unflatten(2, (-1, end - start))
        dk_BTKE[rows], dv_BTKE[rows] = dk_RKTE.transpose(1, 2), dv_RKTE.transpose(1, 2)
    return dq_BTHE, dk_BTKE, dv_BTKE


def _like_all(*tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in tensors)
    return q, k, v


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy_BTHE: Tensor) -> tuple[Tensor | None, ...]:
    return (*_attend_causally_backward(dy_BTHE, *ctx.saved_tensors), None)


_attend_causally.register_fake(lambda q, k, v, mask: _like_all(q, k, v)[0])
_attend_causally_backward.register_fake(lambda dy, q, k, v, mask: _like_all(q, k, v))
_attend_causally.register_autograd(_backward, setup_context=_save)
