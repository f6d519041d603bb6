from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.config_model import ModelConfig
from llm.config_optim import OptimConfig
from llm.model import Model
from llm.optim import AdamW, build_optimizers, learning_rate_scale, muon_momentum, set_schedule
from tests.llm.small_models import FAMILIES, small_model
from tests.llm.small_runs import torch_settings_kept


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_settings_kept():
        torch.set_num_threads(1)
        yield


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"decay": "linear"}, {0: 0.1, 9: 1.0, 10: 1.0, 55: 0.5, 99: 1 / 90, 100: 0.0}),
        ({"decay": "cosine"}, {0: 0.1, 10: 1.0, 40: 0.75, 55: 0.5, 70: 0.25, 100: 0.0}),
        ({"decay": "wsd"}, {0: 0.1, 10: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 95: 0.25, 100: 0.0}),
        (
            {"decay": "wsd", "decay_fraction": 0.5, "min_lr_fraction": 0.2},
            {50: 1.0, 75: 0.6, 100: 0.2},
        ),
        ({"decay": "linear", "min_lr_fraction": 0.1}, {55: 0.55, 100: 0.1, 140: 0.1}),
        ({"decay": "linear", "warmup_steps": 0}, {0: 1.0, 50: 0.5, 99: 0.01}),
        ({"decay": "cosine", "warmup_steps": 200}, {0: 0.005, 99: 0.5}),
    ],
)
def test_rates_follow_their_schedule(settings: dict[str, Any], expected: dict[int, float]) -> None:
    config = OptimConfig(**{"warmup_steps": 10, **settings})
    for step, scale in expected.items():
        assert learning_rate_scale(step, 100, config) == pytest.approx(scale), step


@given(
    total=st.integers(1, 300),
    warmup=st.integers(0, 300),
    decay=st.sampled_from(["linear", "cosine", "wsd"]),
    fraction=st.floats(0.01, 1.0),
    least=st.floats(0.0, 1.0),
)
def test_rates_rise_once_then_never_rise_again(
    total: int, warmup: int, decay: Any, fraction: float, least: float
) -> None:
    config = OptimConfig(
        warmup_steps=warmup, decay=decay, decay_fraction=fraction, min_lr_fraction=least
    )
    scales = [learning_rate_scale(step, total, config) for step in range(total + 1)]
    assert all(0 <= scale <= 1 for scale in scales)
    rising, falling = scales[:warmup], scales[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling and warmup < total:
        assert scales[-1] == pytest.approx(least)


def test_muon_gathers_momentum_over_its_first_300_steps() -> None:
    assert [muon_momentum(step) for step in (0, 150, 300, 5000)] == pytest.approx(
        [0.85, 0.90, 0.95, 0.95]
    )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_one_group_at_the_rate_of_its_kind(
    optimizer: Any, tied: bool
) -> None:
    config = OptimConfig(
        optimizer=optimizer,
        learning_rate=0.1,
        muon_learning_rate=0.2,
        embedding_learning_rate=0.3,
        head_learning_rate=0.4,
        weight_decay=0.5,
    )
    model = small_model(tie_embeddings=tied, qk_norm=True)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    found: list[tuple[str, float, float]] = [
        (name_of[parameter], group["lr"], group["weight_decay"])
        for built in build_optimizers(model, config)
        for group in built.param_groups
        for parameter in group["params"]
    ]
    assert sorted(name for name, _, _ in found) == sorted(name_of.values())
    for name, rate, decay in found:
        if name == "embed_tokens.weight":
            expected = (0.3, 0.0)
        elif name == "lm_head.weight":
            expected = (0.4, 0.0)
        elif "norm" in name:
            expected = (0.1, 0.0)
        else:
            expected = (0.2 if optimizer == "muon" else 0.1, 0.5)
        assert (rate, decay) == expected, name


def test_a_schedule_sets_every_rate_as_a_share_of_its_own_peak() -> None:
    config = OptimConfig(warmup_steps=0)
    muon, adamw = build_optimizers(small_model(), config)
    for step in (0, 30, 75):
        set_schedule([muon, adamw], step, 100, config)
        scale = learning_rate_scale(step, 100, config)
        rates = [group["lr"] for built in (muon, adamw) for group in built.param_groups]
        assert rates == pytest.approx([scale * peak for peak in (0.02, 3e-3, 3e-3, 1e-3)])
        assert muon.param_groups[0]["momentum"] == muon_momentum(step)


def train(optimizer: Any, tied: bool = False, steps: int = 80) -> tuple[list[float], Model]:
    """Losses of a tiny model that is shown the same counting sequence over and over."""
    shape = ModelConfig(
        vocab_size=61, context_length=24, n_layers=2, d_model=32, n_heads=4, tie_embeddings=tied
    )
    config = OptimConfig(optimizer=optimizer, warmup_steps=5, head_learning_rate=0.02)
    model = Model(shape)
    optimizers = build_optimizers(model, config)
    tokens = (torch.arange(25) * 7 % 61).expand(4, -1)
    losses = []
    for step in range(steps):
        set_schedule(optimizers, step, steps, config)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        for built in optimizers:
            built.step()
            built.zero_grad()
        losses.append(loss.item())
    return losses, model


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_training_learns_a_sequence_by_heart(optimizer: Any, tied: bool) -> None:
    losses, _ = train(optimizer, tied)
    assert losses[0] > 4
    assert losses[-1] < 1


def test_training_twice_gives_the_same_losses_and_weights() -> None:
    (first, model), (second, again) = train("muon"), train("muon")
    assert first == second
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_moved_by_the_roles_of_its_parameters(family: str, optimizer: Any) -> None:
    config = OptimConfig(
        optimizer=optimizer,
        learning_rate=0.1,
        muon_learning_rate=0.2,
        embedding_learning_rate=0.3,
        head_learning_rate=0.4,
        weight_decay=0.5,
        weight_decay_kind="cautious",
    )
    model = small_model(**FAMILIES[family])
    hidden = (0.2 if optimizer == "muon" else 0.1, 0.5)
    expected = {
        "embedding": (0.3, 0.0), "head": (0.4, 0.0), "vector": (0.1, 0.0),
        "matrix": hidden, "experts": hidden,
    }  # fmt: skip
    roles, found = model.roles(), {}
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    for built in build_optimizers(model, config):
        for group in built.param_groups:
            assert group["weight_decay"] == 0.0
            for parameter in group["params"]:
                assert parameter not in found
                found[parameter] = (group["lr"], group["cautious_weight_decay"])
                assert group["role"] == roles[name_of[parameter]]
    for name, parameter in model.named_parameters():
        assert found[parameter] == expected[roles[name]], name
    model.loss(torch.arange(8)[None], torch.arange(8)[None]).backward()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for built in build_optimizers(model, config):
        built.step()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name


def test_cautious_decay_of_adamw_is_of_weights_that_the_update_moves_towards_zero() -> None:
    def moved(decay: dict[str, float]) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(16, 16, generator=generator))
        before = weight.detach().clone()
        group = {"params": [weight], "lr": 0.1, "weight_decay": 0.0, "cautious_weight_decay": 0.0}
        optimizer = AdamW([group | decay], fused=True)
        weight.grad = torch.randn(16, 16, generator=generator)
        optimizer.step()
        return before, weight.detach()

    before, plain = moved({})
    _, cautious = moved({"cautious_weight_decay": 0.5})
    _, decoupled = moved({"weight_decay": 0.5})
    towards_zero = (before - plain) * before > 0
    assert 50 < towards_zero.sum() < 200
    torch.testing.assert_close(
        cautious, torch.where(towards_zero, plain - 0.1 * 0.5 * before, plain)
    )
    torch.testing.assert_close(decoupled, plain - 0.1 * 0.5 * before)
