"""The `speedrun` family: speed records' ways to a lower loss, which no other program can load.

Against `llama`: norms have no weights, and there is one on the embedding too; ReLU^2 in place of
SwiGLU (So et al. 2021); queries and keys are always normalized; each block sees the embedding again
(the shortcut), and every other one adds an embedding of the token to its values (Zhou et al. 2024);
logits are capped softly (Gemma 2, 2024). All of it follows modded-nanogpt (Jordan et al. 2024) and
nanochat. `llm/decoder.py` holds what it shares with the other families, and the legend of shapes.

On nanoGPT's character task with Muon (1.5 M tokens, 0.79 M parameters, mean of three seeds) it
comes to 1.571 nats, where `llama` with `qk_norm` comes to 1.550 with 0.80 M, and nanoGPT to 1.900.
Without value embeddings it takes a tenth less time for 0.002 more (one seed).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.config_model import ModelConfig
from llm.decoder import Decoder, Embedding, Linear, Positions, initialize
from llm.rms_norm import rms_norm
from llm.rotary import rotary_tables, rotate

LOGIT_CAP = 15.0
"""No logit is larger (nanochat)."""


class Block(nn.Module):
    """Attention, then feed-forward, each on the normalized stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.eps, self.dropout = config.norm_eps, config.dropout
        width, width_kv = config.d_model, config.n_kv_heads * config.head_dim
        self.stream_scale = nn.Parameter(torch.empty(1))
        self.shortcut_scale = nn.Parameter(torch.empty(1))
        self.value_scale = nn.Parameter(torch.empty(1)) if layer in config.value_layers else None
        self.q_proj = Linear(width, config.n_heads * config.head_dim)
        self.k_proj = Linear(width, width_kv)
        self.v_proj = Linear(width, width_kv)
        self.o_proj = Linear(config.n_heads * config.head_dim, width)
        self.up_proj = Linear(width, config.d_ff)
        self.down_proj = Linear(config.d_ff, width)

    def forward(
        self,
        x_BTD: Tensor,
        embedded_BTD: Tensor,
        values_BTC: Tensor | None,
        positions: Positions,
        rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        """`values` are what the tokens add to this block's values, C = K * E wide."""
        x_BTD = self.stream_scale * x_BTD + self.shortcut_scale * embedded_BTD
        y_BTD = self._attention(rms_norm(x_BTD, None, self.eps), values_BTC, positions, rotation)
        x_BTD = x_BTD + F.dropout(y_BTD, self.dropout, self.training)
        hidden_BTF = F.relu(self.up_proj(rms_norm(x_BTD, None, self.eps))).square()
        y_BTD = self.down_proj(hidden_BTF)
        return x_BTD + F.dropout(y_BTD, self.dropout, self.training)

    def _attention(
        self,
        x_BTD: Tensor,
        values_BTC: Tensor | None,
        positions: Positions,
        rotation: tuple[Tensor, Tensor],
    ) -> Tensor:
        q_BTHE = self.q_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        k_BTKE = self.k_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        v_BTC = self.v_proj(x_BTD)
        if values_BTC is not None and self.value_scale is not None:
            v_BTC = v_BTC + (self.value_scale * values_BTC).type_as(v_BTC)
        q_BTHE = rotate(rms_norm(q_BTHE, None, self.eps), *rotation)
        k_BTKE = rotate(rms_norm(k_BTKE, None, self.eps), *rotation)
        v_BTKE = v_BTC.unflatten(-1, (-1, self.head_dim))
        dropout = self.dropout if self.training else 0.0
        return self.o_proj(positions.attend(self.layer, q_BTHE, k_BTKE, v_BTKE, dropout))


class Speedrun(Decoder):
    """The `speedrun` family."""

    cos_SE: Tensor
    sin_SE: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__(config, (Block(config, layer) for layer in range(config.n_layers)))
        self.embed_values = nn.ModuleDict(
            {
                str(layer): Embedding(config.vocab_size, config.n_kv_heads * config.head_dim)
                for layer in config.value_layers
            }
        )
        cos_SE, sin_SE = rotary_tables(config)
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)
        initialize(self, seed, _spread(config))

    def stream(self, tokens_BT: Tensor, positions: Positions) -> tuple[Tensor, None]:
        embedded_BTD = self.embed_tokens(tokens_BT)
        # The stream is not rounded to the type of products.
        dtype = embedded_BTD.dtype
        embedded_BTD = rms_norm(embedded_BTD, None, self.config.norm_eps, dtype)
        embedded_BTD = F.dropout(embedded_BTD, self.config.dropout, self.training)
        rotation = self.cos_SE[positions.index_BT, None], self.sin_SE[positions.index_BT, None]
        x_BTD = embedded_BTD
        for layer, block in enumerate(self.layers):
            values_BTC = None
            if str(layer) in self.embed_values:
                values_BTC = self.embed_values[str(layer)](tokens_BT)
            x_BTD = self.through(block, x_BTD, embedded_BTD, values_BTC, positions, rotation)
        return rms_norm(x_BTD, None, self.config.norm_eps), None

    def logits(self, x: Tensor) -> Tensor:
        """Scores of every token id as the next one: [..., D] to [..., V], within `LOGIT_CAP`."""
        return LOGIT_CAP * torch.tanh(super().logits(x).float() / LOGIT_CAP)


def _spread(config: ModelConfig) -> Callable[[str, Tensor], float | None]:
    """How a new model is drawn.

    | tensor                       | init               | why                                   |
    |------------------------------|--------------------|---------------------------------------|
    | `embed_tokens`               | normal, std 1      | it is normalized at once              |
    | `embed_values`               | normal, std 1      | the size of what they are added to    |
    | `lm_head`                    | normal, std 0.001  | first guess is uniform (nanochat)     |
    | `q_proj`, `k_proj`, `v_proj` | normal, std D^-1/2 | keeps the size of its input           |
    | `up_proj`                    | normal, std D^-1/2 | likewise                              |
    | `o_proj`, `down_proj`        | zero               | a block starts as the identity        |
    | `stream_scale`               | one                | likewise                              |
    | `shortcut_scale`             | zero               | likewise                              |
    | `value_scale`                | one                | better than zero (below)              |

    Measured on nanoGPT's character task (500 steps of its batch, one seed): 1.816 nats with value
    scales that begin at one, 1.835 at zero.
    """

    def spread(name: str, parameter: Tensor) -> float | None:
        if name.endswith(("stream_scale", "value_scale")):
            return None
        if parameter.ndim == 1 or name.endswith(("o_proj.weight", "down_proj.weight")):
            return 0.0
        if name.startswith("embed_"):
            return 1.0
        return 0.001 if name == "lm_head.weight" else config.d_model**-0.5

    return spread
