"""What every family promises, whatever its blocks are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llm.decoder import KVCache
from tests.llm.small_models import FAMILIES, SHAPES, small_model

ALL = {**SHAPES, **FAMILIES}

# Three documents and a padding of two, whose own number nothing else has.
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 9 + [2] * 1 + [3] * 2, [0] * 12 + [1] * 5])


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL.keys())
def test_no_token_sees_a_later_one(shape: dict[str, Any]) -> None:
    model = small_model(**shape).eval()
    tokens = random_tokens(2, 12)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 61
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


@pytest.mark.parametrize("shape", ALL.values(), ids=ALL.keys())
def test_a_text_read_in_pieces_through_a_cache_has_the_same_logits(
    shape: dict[str, Any],
) -> None:
    model = small_model(**shape).eval()
    tokens = random_tokens(3, 20)
    cache = KVCache(model.config, 3, 20, like=model.embed_tokens.weight)
    pieces = [model(tokens[:, a:b], cache) for a, b in [(0, 6), (6, 7), (7, 19), (19, 20)]]
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-4, rtol=1e-4)
    assert cache.lengths_B.tolist() == [20, 20, 20]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_packed_document_has_the_logits_it_has_alone(
    shape: dict[str, Any], dtype: torch.dtype | None
) -> None:
    model = small_model(**shape).eval()
    tokens = random_tokens(*DOCUMENTS.shape)
    # In bf16 the order of summation differs with the length: a unit in the last place or two.
    close = {"atol": 1e-4, "rtol": 1e-4} if dtype is None else {"atol": 0.1, "rtol": 0.05}
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        packed = model(tokens, documents_BT=DOCUMENTS)
        for row, numbers in enumerate(DOCUMENTS):
            for number in numbers.unique():
                alone = model(tokens[row, numbers == number][None])[0]
                torch.testing.assert_close(packed[row, numbers == number], alone, **close)


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_packed_document_teaches_what_it_teaches_alone(shape: dict[str, Any]) -> None:
    model = small_model(**shape).eval()
    tokens, targets = random_tokens(*DOCUMENTS.shape), random_tokens(*DOCUMENTS.shape, seed=1)
    model.loss(tokens, targets, "sum", documents_BT=DOCUMENTS).backward()
    packed = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    for row, numbers in enumerate(DOCUMENTS):
        for number in numbers.unique():
            mine = numbers == number
            model.loss(tokens[row, mine][None], targets[row, mine][None], "sum").backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            packed[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_activation_checkpointing_changes_no_gradient(shape: dict[str, Any]) -> None:
    model = small_model(**{**shape, "dropout": 0.2}).train()
    tokens, targets = random_tokens(2, 12), random_tokens(2, 12, seed=1)
    found = []
    for checkpointed in (False, True):
        model.checkpoint_activations = checkpointed
        model.zero_grad()
        torch.manual_seed(5)
        loss = model.loss(tokens, targets, "sum")
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=0, atol=0)


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_dropout_is_drawn_from_torchs_own_generator_and_in_training_alone(
    shape: dict[str, Any],
) -> None:
    model = small_model(**{**shape, "dropout": 0.5})
    tokens, targets = random_tokens(2, 12), random_tokens(2, 12, seed=1)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return model.loss(tokens, targets).item()

    assert loss(0) == loss(0) != loss(1)
    model.eval()
    assert loss(0) == loss(1)


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_attention_probabilities_are_those_that_the_logits_come_from(
    shape: dict[str, Any],
) -> None:
    model = small_model(**shape).eval()
    probabilities = model.attention_probabilities(random_tokens(2, 9))
    config = model.config
    assert probabilities.shape == (config.n_layers, 2, config.n_heads, 9, 9)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    assert (probabilities.triu(1) == 0).all()


@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_parameter_has_the_role_that_its_shape_allows(shape: dict[str, Any]) -> None:
    model = small_model(**shape)
    dimensions = {"vector": 1, "embedding": 2, "head": 2, "matrix": 2, "experts": 3}
    roles = model.roles()
    assert roles.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.ndim == dimensions[roles[name]], name
    assert roles["embed_tokens.weight"] == "embedding"
    assert ("head" in roles.values()) == (not model.config.tie_embeddings)
    assert "matrix" in roles.values()


@pytest.mark.slow
@pytest.mark.parametrize("shape", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_compiled_loss_is_the_loss(shape: dict[str, Any]) -> None:
    model = small_model(**shape)
    tokens, targets = random_tokens(2, 12), random_tokens(2, 12, seed=1)
    found = []
    for loss_of in (model.loss, torch.compile(model.loss, fullgraph=True)):
        model.zero_grad()
        loss = loss_of(tokens, targets, "sum")
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)
