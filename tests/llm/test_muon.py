from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.muon import BATCHED_BELOW, Muon, newton_schulz, orthogonal
from tests.llm.small_runs import torch_settings_kept

SHAPES = [(24, 24), (48, 16), (16, 48), (24, 24), (BATCHED_BELOW, BATCHED_BELOW + 8)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_settings_kept():
        torch.set_num_threads(1)
        yield


def group(parameters: list[Tensor], **settings: Any) -> dict[str, Any]:
    return {"params": parameters, "lr": 0.02, **settings}


def matrices(shapes: list[tuple[int, ...]], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def descend(optimizer: torch.optim.Optimizer, parameters: list[Tensor], steps: int = 5) -> None:
    """Steps along gradients that are the same for parameters of the same sizes."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_matrices_move_as_torchs_own_muon_moves_them() -> None:
    ours, theirs = matrices(SHAPES), matrices(SHAPES)
    descend(Muon([group(ours, weight_decay=0.1)]), ours)
    descend(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95), theirs)
    for one, other in zip(ours, theirs, strict=True):
        # A step is orthogonal, rounded to bfloat16: this is a few of its last digits.
        torch.testing.assert_close(one, other, atol=0.02 * 2**-7, rtol=0)


@pytest.mark.parametrize("shape", [(16, 24), (BATCHED_BELOW, BATCHED_BELOW)])
def test_a_stack_of_matrices_moves_as_each_of_them_alone(shape: tuple[int, int]) -> None:
    (stack,) = matrices([(3, *shape)])
    alone = [torch.nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    gradient = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    stack.grad = gradient
    Muon([group([stack])]).step()
    for parameter, its_gradient in zip(alone, gradient, strict=True):
        parameter.grad = its_gradient
        Muon([group([parameter])]).step()
    torch.testing.assert_close(stack, torch.stack(list(alone)), atol=0.02 * 2**-7, rtol=0)


def test_singular_values_come_near_one() -> None:
    for shape in ((40, 40), (64, 16), (16, 64)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        values = torch.linalg.svdvals(newton_schulz(matrix).float())
        assert values.min() > 0.3, shape
        assert values.max() < 1.3, shape


def test_what_is_made_orthogonal_together_is_what_is_made_alone() -> None:
    together = orthogonal([m.detach() for m in matrices(SHAPES)])
    for matrix, made in zip(matrices(SHAPES), together, strict=True):
        torch.testing.assert_close(made, newton_schulz(matrix.detach().bfloat16()), atol=0, rtol=0)


def test_cautious_decay_is_of_weights_that_the_update_moves_towards_zero() -> None:
    (plain,), (cautious,) = matrices([(16, 16)]), matrices([(16, 16)])
    before = plain.detach().clone()
    for parameter, settings in ((plain, {}), (cautious, {"cautious_weight_decay": 0.5})):
        parameter.grad = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
        Muon([group([parameter], **settings)]).step()
    towards_zero = (before - plain) * before > 0
    assert 50 < towards_zero.sum() < 200
    expected = torch.where(towards_zero, plain - 0.02 * 0.5 * before, plain)
    torch.testing.assert_close(cautious.detach(), expected.detach())
