"""Maps of what a model looks at: a grid of tokens by tokens for each layer and head."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt
import torch

from llm.decoder import Decoder
from llm.errors import DataError
from llm.tokenizer import Tokenizer

SIDE, GAP = 256, 8
"""Of a map in a picture, about, and between two of them; in pixels."""
FAINT, STRONG = (255, 255, 255), (20, 48, 120)


@dataclass(frozen=True)
class AttentionMaps:
    """What each token of a text looks at."""

    tokens: tuple[str, ...]
    """Their texts; the `<|endoftext|>` that a document begins with is the first."""
    weights_LHTT: npt.NDArray[np.float32]
    """By layer, head, token that looks, and token that is looked at; each row sums to one."""


def attention_maps(model: Decoder, tokenizer: Tokenizer, text: str) -> AttentionMaps:
    """The model's attention over a text that begins a document.

    Raises DataError for an empty text, or one of more tokens than the model's context, less one.
    """
    if not text:
        raise DataError("the text is empty: give one of a few words, for tokens to look at")
    ids = [tokenizer.eot_id, *tokenizer.encode_batch([text])[0].tolist()]
    weights_LBHTT = model.eval().attention_probabilities(torch.tensor([ids]))
    tokens = tuple(tokenizer.decode([i]) for i in ids)
    return AttentionMaps(tokens, weights_LBHTT[:, 0].float().cpu().numpy())


def as_html(maps: AttentionMaps, title: str) -> str:
    """One page that needs nothing else: all maps, and the one pointed at with its tokens."""
    n_layers, n_heads, n_tokens, _ = maps.weights_LHTT.shape
    weights_LHN = maps.weights_LHTT[:, :, *np.tril_indices(n_tokens)]
    levels = np.round(weights_LHN * np.float32(2**16 - 1)).astype("<u2")
    data = {
        "title": title,
        "tokens": maps.tokens,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "weights": base64.b64encode(levels.tobytes()).decode(),
    }
    page = resources.files("llm").joinpath("attention_maps.html").read_text(encoding="utf-8")
    # No "<" in the data: a text may hold whatever ends a script.
    return page.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1)


def as_png(maps: AttentionMaps) -> bytes:
    """A picture of all maps, a row for each layer: darker by the square root of the weight."""
    n_layers, n_heads, n_tokens, _ = maps.weights_LHTT.shape
    cell = max(1, SIDE // n_tokens)
    side = cell * n_tokens
    picture = np.full((n_layers * (side + GAP) - GAP, n_heads * (side + GAP) - GAP, 3), 200, "u1")
    faint, strong = np.array(FAINT), np.array(STRONG)
    for layer, head in np.ndindex(n_layers, n_heads):
        shade_TT1 = np.sqrt(maps.weights_LHTT[layer, head])[:, :, None]
        colors = np.round(faint + shade_TT1 * (strong - faint)).astype("u1")
        y, x = layer * (side + GAP), head * (side + GAP)
        picture[y : y + side, x : x + side] = colors.repeat(cell, 0).repeat(cell, 1)
    return _png(picture)


def _png(picture_HW3: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of 8-bit colors (W3C's specification, third edition), its rows unfiltered."""
    height, width, _ = picture_HW3.shape

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    rows = np.zeros((height, 1 + 3 * width), "u1")
    rows[:, 1:] = picture_HW3.reshape(height, 3 * width)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)
