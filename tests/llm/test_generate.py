from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from llm.errors import DataError
from llm.generate import filtered, generate, sample
from llm.model import Model
from tests.llm.small_models import SHAPES, small_model

PROMPTS = [[5, 9, 2], [60], [3] * 11, [7, 8, 9, 10, 11, 12], [1, 2]]


def naive(
    model: Model, prompt: list[int], length: int, seed: int = 0, temperature: float = 0.0
) -> list[int]:
    """The definition: read the whole window again for each token, one prompt at a time."""
    generator = torch.Generator().manual_seed(seed)
    text = list(prompt)
    for _ in range(length):
        window = torch.tensor([text[-model.config.context_length :]])
        with torch.no_grad():
            logits = model(window)[0, -1]
        text.append(sample(logits, generator, temperature, top_k=0, top_p=1.0))
    return text[len(prompt) :]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_cached_batch_equals_the_naive_loop_token_for_token(
    shape: dict[str, Any], temperature: float
) -> None:
    """The context is 24 tokens: every row outgrows it, each at another step."""
    model = small_model(**shape)
    made = generate(model, PROMPTS, max_new_tokens=30, temperature=temperature, seed=3)
    for prompt, row in zip(PROMPTS, made, strict=True):
        assert row == naive(model, prompt, 30, seed=3, temperature=temperature)


def test_prompts_longer_than_the_context_are_read_from_their_last_window() -> None:
    model = small_model()
    prompts = [list(range(40)), [4, 5], list(range(24)), list(range(25))]
    made = generate(model, prompts, max_new_tokens=4, temperature=0)
    assert made == [naive(model, prompt, 4) for prompt in prompts]


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_what_a_prompt_gets_does_not_depend_on_its_batch(data: st.DataObject) -> None:
    model = small_model(qk_norm=True, n_kv_heads=2)
    prompt = st.lists(st.integers(0, 60), min_size=1, max_size=30)
    prompts = data.draw(st.lists(prompt, min_size=1, max_size=4))
    seeds = [data.draw(st.integers(0, 2**32)) for _ in prompts]
    options: dict[str, Any] = {"max_new_tokens": 8, "stop_tokens": [0, 1, 2, 3], "top_k": 20}
    together = generate(model, prompts, seed=seeds, **options)
    alone = [
        generate(model, [prompt], seed=seed, **options)[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    assert together == alone


def test_a_seed_repeats_a_sample_and_another_seed_does_not() -> None:
    model = small_model()
    first, again, other = generate(model, [[1, 2, 3]] * 3, max_new_tokens=20, seed=[5, 5, 6])
    assert first == again
    assert first != other
    assert [first] == generate(model, [[1, 2, 3]], max_new_tokens=20, seed=5)


def test_generation_leaves_torchs_global_generator_alone() -> None:
    model = small_model()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    generate(model, PROMPTS, max_new_tokens=3)
    assert torch.equal(torch.rand(1), expected)


def test_a_row_ends_before_its_stop_token_while_others_go_on() -> None:
    model = small_model()
    free = generate(model, PROMPTS, max_new_tokens=12, temperature=0)
    stop = free[0][5]
    stopped = generate(model, PROMPTS, max_new_tokens=12, temperature=0, stop_tokens={stop})
    for row, shorter in zip(free, stopped, strict=True):
        assert shorter == (row[: row.index(stop)] if stop in row else row)
    assert len(stopped[0]) < 12


def test_generation_works_under_bf16_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        made = generate(small_model(qk_norm=True), PROMPTS, max_new_tokens=3, temperature=0)
    assert [len(row) for row in made] == [3] * len(PROMPTS)


def test_no_tokens_are_made_where_none_are_asked_for() -> None:
    assert generate(small_model(), [[1], [2, 3]], max_new_tokens=0) == [[], []]
    assert generate(small_model(), [], max_new_tokens=5) == []


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_filters_keep_what_transformers_keeps(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = torch.randn(10, generator=torch.Generator().manual_seed(seed)) * 3
    expected = TemperatureLogitsWarper(temperature)(torch.empty(0), logits[None])
    if top_k:
        expected = TopKLogitsWarper(min(top_k, 10))(torch.empty(0), expected)
    # At a cut-off that falls on a token's edge, the last bit of a sum decides: either is right.
    sums = expected.softmax(-1).sort(descending=True).values.cumsum(-1)
    assume((sums - top_p).abs().min() > 1e-5)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(torch.empty(0), expected)
    torch.testing.assert_close(
        filtered(logits / temperature, top_k, top_p), expected[0].softmax(-1)
    )


def test_samples_are_drawn_as_often_as_the_model_says() -> None:
    """Within five standard errors of a binomial count, for each token."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -9.0])
    generator = torch.Generator().manual_seed(0)
    draws = [sample(logits, generator, 0.8, 0, 1.0) for _ in range(4000)]
    shares = np.exp(logits.numpy() / 0.8) / np.exp(logits.numpy() / 0.8).sum()
    errors = np.sqrt(shares * (1 - shares) / 4000)
    observed = np.bincount(draws, minlength=5) / 4000
    assert (np.abs(observed - shares) <= 5 * errors + 1e-3).all()


@pytest.mark.parametrize(
    "prompts, seed, message",
    [
        ([[1], []], 0, "prompt 1 is empty"),
        ([[1, 61]], 0, "ids from 1 to 61, but the model knows 0 to 60"),
        ([[-1]], 0, "ids from -1"),
        ([[1], [2]], [0], "1 seeds for 2 prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(
    prompts: list[list[int]], seed: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        generate(small_model(), prompts, max_new_tokens=1, seed=seed)
