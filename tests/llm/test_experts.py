from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from llm.config_model import ModelConfig
from llm.experts import MixtureOfExperts, _grouped_product
from tests.llm.small_models import small_model


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
def test_each_expert_multiplies_its_own_rows(counts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(counts), 6, generator=generator, requires_grad=True)
    weights = torch.randn(len(counts), 4, 6, generator=generator, requires_grad=True)
    found = []
    for product in (
        lambda: _grouped_product(x, weights, torch.tensor(counts).cumsum(0)),
        lambda: torch.cat([a @ w.t() for a, w in zip(x.split(counts), weights, strict=True)]),
    ):
        x.grad = weights.grad = None
        y = product()
        y.sin().sum().backward()
        found.append((y.detach(), x.grad, weights.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_product_is_a_well_behaved_operator_of_torch() -> None:
    x = torch.randn(7, 6, requires_grad=True)
    weights = torch.randn(3, 4, 6, requires_grad=True)
    torch.library.opcheck(torch.ops.loam.grouped_product, (x, weights, torch.tensor([2, 2, 7])))


def mixture(**changes: object) -> MixtureOfExperts:
    shape = {"d_model": 16, "n_heads": 2, "d_ff": 8, "qk_norm": True, "n_experts": 6}
    made = MixtureOfExperts(ModelConfig(**{**shape, **changes}))  # type: ignore[arg-type]
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(1))
    return made


@torch.no_grad()
@pytest.mark.parametrize("n_chosen", [1, 2, 6])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_token_gets_what_its_experts_make_of_it_alone(
    n_chosen: int, dtype: torch.dtype | None
) -> None:
    """No capacity: whatever else is in the batch, and however many want the same expert."""
    moe = mixture(n_experts_per_token=n_chosen)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        together, _ = moe(x)
        for row in range(2):
            for place in range(9):
                alone, _ = moe(x[row, place][None, None])
                torch.testing.assert_close(together[row, place], alone[0, 0])


@torch.no_grad()
def test_the_imbalance_is_transformers_load_balancing_loss() -> None:
    moe = mixture()
    x = torch.randn(3, 11, 16, generator=torch.Generator().manual_seed(2))
    _, imbalance = moe(x)
    logits = moe.gate(x.flatten(0, 1))
    torch.testing.assert_close(imbalance, load_balancing_loss_func((logits,), 6, 2))


def test_in_training_the_loss_has_the_imbalance_once_for_each_target() -> None:
    shape = {"qk_norm": True, "n_experts": 4, "d_ff": 24, "n_layers": 1}
    model = small_model(**shape, balance_coefficient=0.5)
    tokens = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    targets[0, :5] = -100
    with torch.no_grad():
        model.eval()
        bare = [model.loss(tokens, targets, "mean"), model.loss(tokens, targets, "sum")]
        each = model.loss(tokens, targets, "none")
        model.train()
        whole = [model.loss(tokens, targets, "mean"), model.loss(tokens, targets, "sum")]
        added = whole[0] - bare[0]
        assert 0.9 < added < 2.5  # Half of 2, were the routing even, and of 4 at the very worst.
        torch.testing.assert_close(whole[1] - bare[1], 19 * added, rtol=1e-3, atol=1e-3)
        assert torch.equal(model.loss(tokens, targets, "none"), each)


def test_balancing_evens_the_load() -> None:
    moe = mixture(n_experts_per_token=1)
    x = torch.randn(1, 256, 16, generator=torch.Generator().manual_seed(2)) + 0.5
    optimizer = torch.optim.SGD(moe.gate.parameters(), lr=0.5)
    before = float(moe(x)[1].detach())
    for _ in range(100):
        optimizer.zero_grad()
        moe(x)[1].backward()
        optimizer.step()
    after = float(moe(x)[1].detach())
    assert before > 1.2
    assert after < 1.05
