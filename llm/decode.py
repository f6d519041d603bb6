"""The next token of a single text on a CPU: a `llama` model without torch's operators.

torch spends some 100 calls of several microseconds on a token, more than a small model's weights
take to be read. `llm/decode_kernels.py` does the same in one call a layer, on the model's own
memory.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from llm import decode_kernels as kernels
from llm.decode_kernels import Floats, Layer, Matrix
from llm.decoder import Decoder, KVCache
from llm.errors import DataError
from llm.model import Block, FeedForward, Model
from llm.quantize import Int8Linear

SHARED_BYTES = 8 * 2**20
"""Weights of a layer in fp32 beyond which torch's threads win where there are several: with two, 12
MB take as long either way (measured)."""


def can_decode(model: Decoder) -> bool:
    """Whether `OneText` knows the model: `llama` without experts, on a CPU, in fp32 or int8."""
    return (
        isinstance(model, Model)
        and not model.config.n_experts
        and not torch.is_autocast_enabled("cpu")
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        and (torch.get_num_threads() == 1 or _layer_bytes(model) <= SHARED_BYTES)
    )


def _layer_bytes(model: Model) -> int:
    return sum(p.numel() * p.element_size() for p in model.layers[0].parameters())


class OneText:
    """One text, which grows by a token at a time: the model's weights, and its keys and values."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        """Takes over what a cache holds of its only sequence, and how long it may grow.

        The model is one that `can_decode` knows.
        """
        assert isinstance(model, Model)
        self.length = int(cache.lengths_B[0])
        self.keys_KSE = [_by_head(keys_BSKE) for keys_BSKE in cache.keys_BSKE]
        self.values_KSE = [_by_head(values_BSKE) for values_BSKE in cache.values_BSKE]
        self.layers = [_layer(cast(Block, block)) for block in model.layers]
        self.embed_VD = _array(model.embed_tokens.weight)
        self.norm_D = _array(model.norm.weight)
        self.head = _matrix(model.embed_tokens if model.lm_head is None else model.lm_head)
        self.cos_SE, self.sin_SE = _array(model.cos_SE), _array(model.sin_SE)
        self.eps = model.config.norm_eps

    def next_logits(self, token: int) -> Tensor:
        """Scores of every id as the one after `token`, which is added to the text: [V] in fp32."""
        place, x_D = self.length, self.embed_VD[token].copy()
        if place == self.keys_KSE[0].shape[1]:
            raise DataError(f"the cache has room for {place} tokens: make it larger")
        cos_E, sin_E = self.cos_SE[place], self.sin_SE[place]
        for layer, keys_KSE, values_KSE in zip(
            self.layers, self.keys_KSE, self.values_KSE, strict=True
        ):
            kernels.through_layer(x_D, layer, keys_KSE, values_KSE, place, cos_E, sin_E, self.eps)
        self.length += 1
        return torch.from_numpy(kernels.logits(x_D, self.norm_D, self.head, self.eps))


def _layer(block: Block) -> Layer:
    attention, feed_forward = block.self_attn, cast(FeedForward, block.mlp)
    return Layer(
        input_norm_D=_array(block.input_layernorm.weight),
        q=_matrix(attention.q_proj),
        k=_matrix(attention.k_proj),
        v=_matrix(attention.v_proj),
        q_norm_E=None if attention.q_norm is None else _array(attention.q_norm.weight),
        k_norm_E=None if attention.k_norm is None else _array(attention.k_norm.weight),
        o=_matrix(attention.o_proj),
        post_norm_D=_array(block.post_attention_layernorm.weight),
        gate=_matrix(feed_forward.gate_proj),
        up=_matrix(feed_forward.up_proj),
        down=_matrix(feed_forward.down_proj),
    )


def _matrix(module: nn.Module) -> Matrix:
    if isinstance(module, Int8Linear):
        return module.matrix
    weight_ND = _array(cast(Tensor, module.weight))
    return Matrix(weight_ND, np.ones(len(weight_ND), np.float32))


def _array(tensor: Tensor) -> Floats:
    """The same memory, where it is contiguous."""
    return tensor.detach().contiguous().numpy()


def _by_head(cached_BSKE: Tensor) -> Floats:
    return _array(cached_BSKE[0].transpose(0, 1))
