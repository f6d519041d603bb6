from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm.errors import DataError
from llm.sampling import SamplingConfig, probabilities, sample, scores

V = 12


def random_logits(seed: int) -> torch.Tensor:
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    penalty=st.sampled_from([1.0, 1.3, 0.8]),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, V + 2),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.9),
    text=st.lists(st.integers(0, V - 1), min_size=1, max_size=6),
)
def test_probabilities_are_those_of_transformers(
    seed: int,
    penalty: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    text: list[int],
) -> None:
    """All at once, in the order in which transformers' `generate` applies them."""
    logits, tokens = random_logits(seed), torch.tensor([text])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits[None].clone())
    expected = TemperatureLogitsWarper(temperature)(tokens, expected)
    if top_k:
        expected = TopKLogitsWarper(min(top_k, V))(tokens, expected)
    # At a cut-off that falls on a token's edge, the last bit of a sum decides: either is right.
    sums = expected.softmax(-1).sort(descending=True).values.cumsum(-1)
    assume((sums - top_p).abs().min() > 1e-5)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(tokens, expected)
    shares = expected.softmax(-1) / expected.softmax(-1).max()
    assume((shares - min_p).abs().min() > 1e-5)
    if min_p:
        expected = MinPLogitsWarper(min_p)(tokens, expected)

    config = SamplingConfig(
        repetition_penalty=penalty, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p
    )
    seen = torch.zeros(V, dtype=torch.bool).index_fill(0, tokens[0], True)
    found = probabilities(scores(logits, seen, config), config)
    torch.testing.assert_close(found, expected[0].softmax(-1))
    assert float(found.sum()) == pytest.approx(1)


def test_temperature_0_takes_the_likeliest_token_after_the_penalty() -> None:
    logits = torch.tensor([0.1, 2.0, 1.9, -1.0])
    generator = torch.Generator().manual_seed(0)
    assert sample(logits, generator, SamplingConfig(temperature=0)) == 1
    penalized = SamplingConfig(temperature=0, repetition_penalty=1.2)
    seen = torch.tensor([False, True, False, False])
    assert sample(logits, generator, penalized, seen) == 2


def test_samples_are_drawn_as_often_as_the_model_says() -> None:
    """Within five standard errors of a binomial count, for each token."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    generator = torch.Generator().manual_seed(0)
    draws = [sample(logits, generator, SamplingConfig(temperature=0.8)) for _ in range(4000)]
    shares = np.exp(logits.numpy() / 0.8) / np.exp(logits.numpy() / 0.8).sum()
    errors = np.sqrt(shares * (1 - shares) / 4000)
    observed = np.bincount(draws, minlength=5) / 4000
    assert (np.abs(observed - shares) <= 5 * errors + 1e-3).all()


@pytest.mark.parametrize(
    "logits, setting",
    [
        ([0.0, math.nan, 2.0], {"temperature": 0}),
        ([0.0, math.nan, 2.0], {}),
        ([0.0, 2.0], {"temperature": 1e-40}),
        ([0.0, 2.0], {"repetition_penalty": 1e-40}),
    ],
)
def test_scores_that_are_no_numbers_are_refused(
    logits: list[float], setting: dict[str, float]
) -> None:
    seen = torch.ones(len(logits), dtype=torch.bool)
    with pytest.raises(DataError, match=r"score of a next token is (nan|inf): .* damaged, or"):
        sample(torch.tensor(logits), torch.Generator(), SamplingConfig(**setting), seen)


@pytest.mark.parametrize("filters", [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_what_a_filter_removes_is_never_drawn(filters: dict[str, Any]) -> None:
    config = SamplingConfig(**filters)
    kept = probabilities(random_logits(0), config) > 0
    assert 1 < kept.sum() < V
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(random_logits(0), generator, config) for _ in range(500)}
    assert drawn <= set(kept.nonzero().flatten().tolist())


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"top_p": 0},
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"stop": [""]},
        {"top": 3},
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        SamplingConfig(**setting)
