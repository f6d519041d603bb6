"""The arithmetic of one token of a `llama` model, compiled by numba over flat arrays in fp32.

At batch 1 a token takes as long as its weights take to be read, if nothing else takes time: here no
operator is dispatched and next to nothing allocated. Sums may be added up in any order, which is
what lets the compiler use vectors. Letters in names are those of `llm/decoder.py`. Kernels that
call one another stay in one file: numba's cache on disk looks at no other for changes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_compiled = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


class Matrix(NamedTuple):
    """Rows in fp32 or int8, and what each is to be multiplied by: ones, for fp32."""

    rows_ND: Floats | NDArray[np.int8]
    scale_N: Floats


class Layer(NamedTuple):
    """Weights of one block; `q_norm_E` and `k_norm_E` are None where it has none."""

    input_norm_D: Floats
    q: Matrix
    k: Matrix
    v: Matrix
    q_norm_E: Floats | None
    k_norm_E: Floats | None
    o: Matrix
    post_norm_D: Floats
    gate: Matrix
    up: Matrix
    down: Matrix


@_compiled
def product(matrix: Matrix, x_D: Floats) -> Floats:
    """Matrix times vector, [N]."""
    rows_ND, scale_N = matrix
    y_N = np.empty(len(rows_ND), np.float32)
    for n in range(len(rows_ND)):
        row_D, total = rows_ND[n], np.float32(0)
        for d in range(len(x_D)):
            total += np.float32(row_D[d]) * x_D[d]
        y_N[n] = total * scale_N[n]
    return y_N


@_compiled
def rms_norm(x_D: Floats, weight_D: Floats, eps: float) -> Floats:
    """As `llm.model.RMSNorm`."""
    squares = np.float32(0)
    for d in range(len(x_D)):
        squares += x_D[d] * x_D[d]
    scale = np.float32(1 / math.sqrt(squares / np.float32(len(x_D)) + np.float32(eps)))
    return x_D * scale * weight_D


@_compiled
def heads(y_N: Floats, cos_E: Floats, sin_E: Floats, norm_E: Floats | None, eps: float) -> Floats:
    """Queries or keys by head, normalized where there is a norm, and turned: [N / E, E]."""
    half = len(cos_E) // 2
    y_HE = y_N.reshape(-1, len(cos_E))
    for h in range(len(y_HE)):
        if norm_E is not None:
            y_HE[h] = rms_norm(y_HE[h], norm_E, eps)
        for e in range(half):
            first, second = y_HE[h, e], y_HE[h, e + half]
            y_HE[h, e] = first * cos_E[e] - second * sin_E[e]
            y_HE[h, e + half] = second * cos_E[e + half] + first * sin_E[e + half]
    return y_HE


@_compiled
def attend(q_HE: Floats, keys_KSE: Floats, values_KSE: Floats, end: int) -> Floats:
    """Mean of the first `end` values, weighted by how well their keys fit each query: [H * E]."""
    n_heads, width = q_HE.shape
    group = n_heads // len(keys_KSE)
    y_HE = np.zeros((n_heads, width), np.float32)
    weights_S = np.empty(end, np.float32)
    sharpness = np.float32(1 / math.sqrt(width))
    for h in range(n_heads):
        q_E, y_E = q_HE[h] * sharpness, y_HE[h]
        keys_SE, values_SE = keys_KSE[h // group], values_KSE[h // group]
        for s in range(end):
            score = np.float32(0)
            for e in range(width):
                score += q_E[e] * keys_SE[s, e]
            weights_S[s] = score
        highest, total = weights_S.max(), np.float32(0)
        for s in range(end):
            weight = math.exp(weights_S[s] - highest)
            total += weight
            for e in range(width):
                y_E[e] += weight * values_SE[s, e]
        y_E /= total
    return y_HE.reshape(-1)


@_compiled
def through_layer(
    x_D: Floats,
    layer: Layer,
    keys_KSE: Floats,
    values_KSE: Floats,
    place: int,
    cos_E: Floats,
    sin_E: Floats,
    eps: float,
) -> None:
    """Add to the stream what a block makes of it; the token's key and value go to `place`."""
    normed_D = rms_norm(x_D, layer.input_norm_D, eps)
    q_HE = heads(product(layer.q, normed_D), cos_E, sin_E, layer.q_norm_E, eps)
    keys_KSE[:, place] = heads(product(layer.k, normed_D), cos_E, sin_E, layer.k_norm_E, eps)
    values_KSE[:, place] = product(layer.v, normed_D).reshape(-1, len(cos_E))
    x_D += product(layer.o, attend(q_HE, keys_KSE, values_KSE, place + 1))
    normed_D = rms_norm(x_D, layer.post_norm_D, eps)
    hidden_F, up_F = product(layer.gate, normed_D), product(layer.up, normed_D)
    for f in range(len(hidden_F)):
        hidden_F[f] *= up_F[f] / (np.float32(1) + math.exp(-hidden_F[f]))
    x_D += product(layer.down, hidden_F)


@_compiled
def logits(x_D: Floats, norm_D: Floats, head: Matrix, eps: float) -> Floats:
    """Scores of every token id as the next one, [V]."""
    return product(head, rms_norm(x_D, norm_D, eps))
