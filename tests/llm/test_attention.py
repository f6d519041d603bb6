from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm import attention
from llm.attention import attend, attention_weights


def torchs_own(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=True)
    return y.transpose(1, 2)


def random_heads(n_rows: int, n_tokens: int, n_kv_heads: int, group: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (n_kv_heads * group, n_kv_heads, n_kv_heads)
    return [torch.randn(n_rows, n_tokens, n, 8, generator=generator) for n in heads]


def document_mask(n_rows: int, n_tokens: int) -> Tensor:
    starts = torch.rand(n_rows, n_tokens, generator=torch.Generator().manual_seed(1)) < 0.1
    documents = starts.cumsum(1)
    same = documents[:, :, None] == documents[:, None]
    return (same & torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril())[:, None]


@settings(max_examples=40, deadline=None)
@given(
    n_rows=st.integers(1, 5),
    n_tokens=st.integers(1, 150),
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    masked=st.booleans(),
    cache_bytes=st.sampled_from([1, 2**16, 2**19]),
)
def test_attention_and_its_gradients_in_blocks_are_torchs(
    n_rows: int, n_tokens: int, n_kv_heads: int, group: int, masked: bool, cache_bytes: int
) -> None:
    mask = document_mask(n_rows, n_tokens) if masked else None
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "CACHE_BYTES", cache_bytes)
        for attention_of in (attend, torchs_own):
            heads = [x.requires_grad_() for x in random_heads(n_rows, n_tokens, n_kv_heads, group)]
            y = attention_of(*heads, mask)
            y.sin().sum().backward()
            found.append([y.detach(), *(x.grad for x in heads)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_attention_is_a_well_behaved_operator_of_torch() -> None:
    heads = tuple(x.requires_grad_() for x in random_heads(2, 70, 2, 2))
    for mask in (None, document_mask(2, 70)):
        torch.library.opcheck(torch.ops.loam.attend, (*heads, mask))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_under_autocast_attention_is_of_its_type_and_its_gradients_are_close(
    masked: bool, dtype: torch.dtype
) -> None:
    mask = document_mask(2, 200) if masked else None
    heads, exact = ([x.requires_grad_() for x in random_heads(2, 200, 2, 2)] for _ in range(2))
    with torch.autocast("cpu", dtype):
        y = attend(*heads, mask)
    assert y.dtype == dtype
    expected = torchs_own(*exact, mask)
    torch.testing.assert_close(y.float(), expected, atol=0.03, rtol=0.03)
    y.float().sin().sum().backward()
    expected.sin().sum().backward()
    for ours, theirs in zip(heads, exact, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_queries_that_follow_a_cache_see_what_their_mask_says() -> None:
    q, k, v = random_heads(2, 12, 2, 2)
    mask = document_mask(2, 12)
    torch.testing.assert_close(
        attend(q[:, 9:], k, v, mask[:, :, 9:]), torchs_own(q, k, v, mask)[:, 9:]
    )


@pytest.mark.parametrize("masked", [False, True])
def test_the_weights_are_what_the_values_are_averaged_by(masked: bool) -> None:
    q, k, v = random_heads(2, 20, 2, 3)
    mask = document_mask(2, 20) if masked else None
    weights = attention_weights(q, k, mask)
    averaged = torch.einsum("bhts,bshe->bthe", weights, v.repeat_interleave(3, dim=2))
    torch.testing.assert_close(averaged, attend(q, k, v, mask))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, 20))
