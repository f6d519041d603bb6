"""Attention of queries to keys, by the fastest way there is for what is given."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q_BTHE: Tensor,
    k_BSKE: Tensor,
    v_BSKE: Tensor,
    mask_B1TS: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Mean of the values, weighted by how well their keys fit each query: [B, T, H, E].

    Query heads share key and value heads in groups of H / K. `mask` is true where a query may look;
    without one, T equals S and a query looks at its own position and those before it. `dropout` is
    the share of the weights that is left out.
    """
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
