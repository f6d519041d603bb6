from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm.rms_norm import rms_norm


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    width=st.integers(1, 40),
    weighted=st.booleans(),
    size=st.sampled_from([1e-4, 1.0, 1e3]),
)
def test_the_norm_and_its_gradients_are_torchs(
    shape: list[int], width: int, weighted: bool, size: float
) -> None:
    found = []
    for norm in (
        lambda x, weight: rms_norm(x, weight, 1e-6),
        lambda x, weight: F.rms_norm(x, (width,), weight, 1e-6),
    ):
        x = (size * random_rows(*shape, width)).requires_grad_()
        weight = random_rows(width, seed=1).requires_grad_() if weighted else None
        y = norm(x, weight)
        y.sin().sum().backward()
        found.append([y.detach(), x.grad * size, *([] if weight is None else [weight.grad])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_a_row_of_zeros_stays_zero_and_passes_a_finite_gradient() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, None, 1e-6)
    y.sum().backward()
    assert not y.any()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_under_autocast_the_norm_gives_what_products_take_and_keeps_the_rows_own_type() -> None:
    x, weight = random_rows(3, 8).requires_grad_(), random_rows(8, seed=1).requires_grad_()
    exact = rms_norm(x, weight, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, kept = rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6, torch.float32)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    assert torch.equal(kept, exact)
    rounded.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_compiled_norm_has_the_same_gradients(weighted: bool, autocast: bool) -> None:
    """To fp32's digits under autocast too: it is traced there with its gradient."""
    found = []
    for norm in (rms_norm, torch.compile(rms_norm, backend="aot_eager", fullgraph=True)):
        x = random_rows(3, 8).requires_grad_()
        weight = random_rows(8, seed=1).requires_grad_() if weighted else None
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = norm(x, weight, 1e-6)
        (y.float() * random_rows(3, 8, seed=2)).sum().backward()
        found.append([x.grad, *([] if weight is None else [weight.grad])])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(eager, compiled)


def test_weights_in_bf16_have_their_gradients() -> None:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        x, weight = (
            rows.bfloat16().to(dtype).requires_grad_()
            for rows in (random_rows(3, 8), random_rows(8, seed=1))
        )
        found.append(
            torch.autograd.grad(rms_norm(x, weight, 1e-6).float().sin().sum(), (x, weight))
        )
    for rounded, exact in zip(*found, strict=True):
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, atol=0.02, rtol=0.02)
