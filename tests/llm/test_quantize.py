from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.errors import ConfigError
from llm.experts import MixtureOfExperts
from llm.generate import generate
from llm.quantize import Int8Linear, int8_model
from llm.sampling import SamplingConfig
from tests.llm.small_models import FAMILIES, small_model

every_family = pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())


def ready(**shape: Any) -> torch.nn.Module:
    """A small model whose activations are of about unit size, as in a trained one."""
    model = small_model(**shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.5)
    return model


@pytest.mark.parametrize("shape", [(61, 33), (1, 1), (3, 64), (130, 96)])
def test_a_product_is_that_of_the_rounded_matrix(shape: tuple[int, int]) -> None:
    """And a rounded number is off by half a 127th of its row's largest at most."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-4, 4, shape[0])
    weight = torch.randn(*shape, generator=generator) * sizes[:, None]
    bias = torch.randn(shape[0], generator=generator) * sizes
    linear = Int8Linear(weight, bias)
    rounded = linear.weight_ND.float() * linear.scale_N[:, None]
    assert ((rounded - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.51).all()
    x = torch.randn(2, 5, shape[1], generator=generator)
    expected = x @ rounded.t() + bias
    for found in (linear(x), torch.stack([linear(row) for row in x.flatten(0, 1)]).view(2, 5, -1)):
        torch.testing.assert_close(found / sizes, expected / sizes, atol=2e-5, rtol=1e-5)


def test_a_row_of_zeros_stays_zero() -> None:
    linear = Int8Linear(torch.zeros(3, 4))
    assert torch.equal(linear(torch.ones(2, 4)), torch.zeros(2, 3))


@every_family
def test_predictions_in_8_bits_are_nearly_the_models_own(shape: dict[str, Any]) -> None:
    model = ready(**shape)
    tokens = torch.randint(0, 61, (8, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        own, other = (one(tokens).log_softmax(-1) for one in (model, int8_model(model)))
    divergence = (own.exp() * (own - other)).sum(-1).mean()
    assert 0 < divergence < 2e-3


@every_family
def test_every_matrix_but_the_embedding_and_the_gate_is_in_8_bits(shape: dict[str, Any]) -> None:
    model = ready(**shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = int8_model(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    gates = [m.gate.weight for m in quantized.modules() if isinstance(m, MixtureOfExperts)]
    wide = {id(p) for name, p in quantized.named_parameters() if name.startswith("embed")}
    wide |= set(map(id, gates))
    assert all(p.ndim == 1 or id(p) in wide for p in quantized.parameters())
    in_8_bits = sum(m.weight_ND.numel() for m in quantized.modules() if isinstance(m, Int8Linear))
    tied = model.embed_tokens.weight.numel() if model.config.tie_embeddings else 0
    matrices = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.ndim > 1 and not name.startswith("embed") and not name.endswith("mlp.gate.weight")
    )
    assert in_8_bits == matrices + tied


@every_family
def test_a_model_in_8_bits_writes_the_same_text_in_any_batch(shape: dict[str, Any]) -> None:
    model = int8_model(ready(**shape))
    prompts = [[5, 9, 2], [60], [3] * 11, [7, 8, 9, 10, 11, 12]]
    config = SamplingConfig(max_new_tokens=12, seed=4)
    together = generate(model, prompts, config)
    for prompt, completion in zip(prompts, together, strict=True):
        (alone,) = generate(model, [prompt], config)
        assert completion.tokens == alone.tokens


def test_a_device_without_such_products_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model is on meta"):
        int8_model(small_model().to("meta"))
