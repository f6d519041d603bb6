from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from llm.config_model import ModelConfig, n_parameters
from llm.decoder import KVCache
from llm.errors import ConfigError, DataError
from llm.model import Model, RMSNorm
from tests.llm.small_models import small_model


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


def test_configs_are_read_without_importing_torch() -> None:
    code = "import llm.config_model, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_shape_leaves_out_follows_from_what_it_gives() -> None:
    config = ModelConfig(d_model=512, n_heads=8)
    # 8/3 x 512 = 1365.3, and the next multiple of 64 is 1408.
    assert (config.n_kv_heads, config.head_dim, config.d_ff) == (8, 64, 1408)


@pytest.mark.parametrize(
    "wrong, number, repair",
    [
        ({"d_model": 130, "n_heads": 4}, "d_model is 130", {"d_model": 128}),
        ({"d_model": 100, "n_heads": 6}, "d_model is 100", {"d_model": 96}),
        ({"d_model": 132, "n_heads": 4}, "head_dim is 33", {"d_model": 136}),
        ({"d_model": 64, "n_heads": 8, "n_kv_heads": 3}, "n_kv_heads is 3", {"n_kv_heads": 2}),
        ({"d_model": 64, "n_heads": 4, "n_kv_heads": 9}, "n_kv_heads is 9", {"n_kv_heads": 4}),
    ],
)
def test_an_impossible_shape_names_its_number_and_one_that_works(
    wrong: dict[str, int], number: str, repair: dict[str, int]
) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelConfig(**wrong)
    message = str(caught.value)
    assert number in message
    assert all(str(value) in message for value in repair.values())
    ModelConfig(**{**wrong, **repair})


def test_a_model_is_not_built_before_its_vocabulary_is_known() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        Model(ModelConfig())
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        n_parameters(ModelConfig())


def test_the_norm_equals_torchs_own() -> None:
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0)) * 10
    norm = RMSNorm(16, eps=1e-2)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 16))
    torch.testing.assert_close(norm(x), F.rms_norm(x, (16,), norm.weight, 1e-2))


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    model = small_model(context_length=8)
    with pytest.raises(DataError, match="9 tokens, but context_length is 8"):
        model(random_tokens(1, 9))
    cache = KVCache(model.config, 1, 9, like=model.embed_tokens.weight)
    model(random_tokens(1, 8), cache)
    with pytest.raises(DataError, match="9 tokens, but context_length is 8"):
        model(random_tokens(1, 1), cache)


@torch.no_grad()
def test_loss_is_the_mean_surprise_over_targets_that_count() -> None:
    model = small_model()
    tokens, targets = random_tokens(2, 6), random_tokens(2, 6, seed=1)
    targets[0, 2:] = -100
    logits = model(tokens).numpy().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    surprises = [
        0.0 if target == -100 else -log_probabilities[row, place, target]
        for row in range(2)
        for place, target in enumerate(targets[row].tolist())
    ]
    counted = int((targets != -100).sum())
    assert float(model.loss(tokens, targets)) == pytest.approx(sum(surprises) / counted, rel=1e-5)
    assert float(model.loss(tokens, targets, "sum")) == pytest.approx(sum(surprises), rel=1e-5)
    np.testing.assert_allclose(
        model.loss(tokens, targets, "none").numpy(), surprises, rtol=1e-4, atol=1e-6
    )


def test_a_seed_decides_every_byte_of_a_new_model_and_nothing_else_does() -> None:
    config = ModelConfig(vocab_size=61, n_layers=2, d_model=32, n_heads=4, qk_norm=True)
    torch.manual_seed(1)
    first, drawn_after = Model(config, seed=7), torch.rand(1)
    torch.manual_seed(1)
    assert drawn_after == torch.rand(1), "building a model moved the global generator"
    again, other = Model(config, seed=7), Model(config, seed=8)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(first.embed_tokens.weight, other.embed_tokens.weight)


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_a_new_model_guesses_evenly(tied: bool) -> None:
    """Its first loss is that of the uniform distribution, ln V (Karpathy 2019, "verify loss")."""
    model = Model(
        ModelConfig(vocab_size=61, n_layers=2, d_model=128, n_heads=4, tie_embeddings=tied)
    )
    loss = float(model.loss(random_tokens(8, 32), random_tokens(8, 32, seed=1)))
    assert loss == pytest.approx(math.log(61), rel=0.05)


def test_gradients_reach_every_parameter() -> None:
    model = small_model(qk_norm=True, n_kv_heads=2)
    model.loss(random_tokens(2, 8), random_tokens(2, 8, seed=1)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_bf16_autocast_stays_close_to_fp32() -> None:
    model = small_model(qk_norm=True)
    tokens, targets = random_tokens(4, 16), random_tokens(4, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens, targets)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(model.loss(tokens, targets)), rel=0.02)
