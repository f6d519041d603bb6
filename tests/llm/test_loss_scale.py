from __future__ import annotations

import torch

from llm.loss_scale import FIRST, GROW_AFTER, LossScale


def test_where_it_is_not_needed_the_factor_is_one_whatever_happens() -> None:
    scale = LossScale(needed=False)
    assert not scale.overflowed(finite=False)
    assert scale.factor == 1.0


def test_it_halves_at_an_overflow_and_doubles_after_long_without_one() -> None:
    scale = LossScale(needed=True)
    assert scale.overflowed(finite=False)
    assert scale.overflowed(finite=False)
    assert scale.factor == FIRST / 4
    for _ in range(GROW_AFTER):
        assert not scale.overflowed(finite=True)
    assert scale.factor == FIRST / 2


def test_at_a_factor_of_one_what_is_not_finite_is_no_overflow() -> None:
    scale = LossScale(needed=True)
    while scale.factor > 1:
        assert scale.overflowed(finite=False)
    assert not scale.overflowed(finite=False)  # The guards have to see to it.


def test_a_scale_that_is_restored_doubles_when_it_would_have() -> None:
    first, second = LossScale(needed=True), LossScale(needed=True)
    first.overflowed(finite=False)
    for _ in range(GROW_AFTER - 1):
        first.overflowed(finite=True)
    second.restore(first.state())
    assert second.factor == FIRST / 2
    second.overflowed(finite=True)
    assert second.factor == FIRST


def test_gradients_are_divided_by_the_factor_exactly() -> None:
    scale = LossScale(needed=True)
    weight = torch.nn.Parameter(torch.zeros(5))
    weight.grad = torch.tensor([1.0, -3.0, 1e-6, 0.1, 7.0]) * FIRST
    scale.unscale([weight, torch.nn.Parameter(torch.zeros(2))])
    assert torch.equal(weight.grad, torch.tensor([1.0, -3.0, 1e-6, 0.1, 7.0]))
