from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from llm.config_model import ModelConfig, RopeScaling
from llm.rotary import rotary_tables, rotate


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_a_rotated_product_depends_on_distance_alone(first: int, second: int, shift: int) -> None:
    """The property that Su et al. 2021 derive the rotation from (equation 11)."""
    config = ModelConfig(context_length=64, d_model=8, n_heads=1, rope_theta=100.0)
    cos, sin = rotary_tables(config)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def product(q_position: int, k_position: int) -> float:
        turned_q = rotate(q, cos[q_position], sin[q_position])
        return float((turned_q * rotate(k, cos[k_position], sin[k_position])).sum())

    assert product(first, second) == pytest.approx(product(first + shift, second + shift), abs=1e-4)


def by_definition(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradient_is_that_of_the_definition(compiled: bool) -> None:
    """YaRN's rotation makes longer too. Heads lie apart in memory, as does what comes back."""
    config = ModelConfig(
        context_length=32, d_model=16, n_heads=2, rope_scaling=RopeScaling(kind="yarn", factor=4)
    )
    cos, sin = (
        table[torch.tensor([[0, 5, 31], [7, 8, 9]]), None] for table in rotary_tables(config)
    )
    ours = torch.compile(rotate, backend="aot_eager", fullgraph=True) if compiled else rotate
    x_BHTE, dy_BHTE = torch.randn(2, 2, 2, 3, 8, generator=torch.Generator().manual_seed(0))
    x_BHTE.requires_grad_()
    found = []
    for turn in (ours, by_definition):
        y_BTHE = turn(x_BHTE.transpose(1, 2), cos, sin)
        found.append((y_BTHE, *torch.autograd.grad(y_BTHE, x_BHTE, dy_BHTE.transpose(1, 2))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "kind, theirs",
    [
        ("linear", {}),
        ("llama3", {"low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ("yarn", {}),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 4.0])
@pytest.mark.parametrize("theta, head_dim, original", [(1e4, 64, 256), (5e5, 32, 2048)])
def test_angles_for_a_longer_context_are_transformers(
    kind: Any, theirs: dict[str, float], factor: float, theta: float, head_dim: int, original: int
) -> None:
    length = round(original * factor)
    ours = ModelConfig(
        context_length=length,
        d_model=2 * head_dim,
        n_heads=2,
        rope_theta=theta,
        rope_scaling=RopeScaling(kind=kind, factor=factor),
    )
    rope = {"rope_type": kind, "rope_theta": theta, "factor": factor, **theirs}
    if kind != "linear":
        rope["original_max_position_embeddings"] = original
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=length,
        rope_parameters=rope,
    )
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    our_cos, our_sin = rotary_tables(ours)
    torch.testing.assert_close(our_cos, cos[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(our_sin, sin[0], atol=1e-4, rtol=1e-4)
