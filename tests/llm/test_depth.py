from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config_model import ModelConfig, n_parameters
from llm.config_optim import OptimConfig
from llm.config_train import TrainConfig
from llm.depth import batch_tokens, recipe, shape, token_budget
from llm.errors import ConfigError


def model(depth: int, vocab_size: int = 32768, context_length: int = 1024) -> ModelConfig:
    given = {"vocab_size": vocab_size, "context_length": context_length}
    return ModelConfig(**shape(depth, given))


@given(st.integers(1, 128))
def test_every_depth_is_a_model(depth: int) -> None:
    made = model(depth)
    assert (made.n_layers, made.d_model) == (depth, 64 * depth)
    assert made.n_heads >= 6 or made.head_dim == 16


@pytest.mark.parametrize("family", ["llama", "gpt2", "speedrun"])
def test_the_dial_turns_every_family(family: str) -> None:
    made = ModelConfig(**shape(6, {"family": family, "vocab_size": 8192}))
    assert (made.n_layers, made.d_model, made.n_heads) == (6, 384, 6)
    assert made.qk_norm == (family != "gpt2")
    ratio = token_budget(made) / token_budget(model(6, 8192))
    assert 0.7 < ratio < 1.3


def test_experts_that_a_token_does_not_go_to_ask_for_no_tokens() -> None:
    given = {"vocab_size": 8192, "n_experts_per_token": 2, "d_ff": 512}
    few, many = (ModelConfig(**shape(6, given | {"n_experts": n})) for n in (4, 64))
    assert token_budget(many) == pytest.approx(token_budget(few), rel=0.05)


@pytest.mark.parametrize("depth", [12, 20, 24, 26, 32])
def test_large_depths_have_nanochats_shape(depth: int) -> None:
    # nanochat, scripts/base_train.py: --depth, aspect ratio 64, heads of 128.
    made = model(depth)
    assert (made.d_model, made.n_heads, made.head_dim) == (64 * depth, depth // 2, 128)


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_deeper_model_is_larger_trains_longer_and_more_gently(one: int, other: int) -> None:
    shallow, deep = sorted((one, other + 64))
    small, large = recipe(model(shallow)), recipe(model(deep))
    assert n_parameters(model(shallow)) < n_parameters(model(deep))
    assert small.optim.learning_rate > large.optim.learning_rate
    assert _tokens(small) < _tokens(large)
    assert small.optim.weight_decay > large.optim.weight_decay


def _tokens(train: TrainConfig, context_length: int = 1024) -> int:
    return train.steps * train.batch_size * train.accumulation_steps * context_length


@given(st.integers(1, 40), st.sampled_from([64, 256, 1024, 4096]))
def test_a_run_takes_twenty_tokens_a_parameter_in_updates_of_the_best_size(
    depth: int, context_length: int
) -> None:
    made = model(depth, context_length=context_length)
    train = recipe(made)
    budget, update = token_budget(made), _tokens(train, context_length) / train.steps
    assert budget == 20 * n_parameters(made)
    assert 0 <= _tokens(train, context_length) - budget < update
    wanted = batch_tokens(budget)
    assert abs(update - wanted) <= max(wanted / 8, context_length / 2)


def test_best_batches_are_those_of_the_step_law() -> None:
    # Li et al. 2025: about 2 M tokens for a run over 300 billion, 400 k for 15 billion.
    assert batch_tokens(300e9) == pytest.approx(2.1e6, rel=0.05)
    assert batch_tokens(15e9) == pytest.approx(0.38e6, rel=0.05)


def test_a_short_run_makes_two_thousand_updates() -> None:
    # nanoGPT's documented CPU task: 2,000 updates of 12 windows of 64 tokens.
    assert batch_tokens(1_536_000) == 12 * 64
    assert recipe(model(1, context_length=64), tokens=1_536_000).batch_size == 12


@given(st.integers(10**4, 10**13), st.sampled_from([64, 1024, 8192]))
def test_micro_batches_make_the_whole_update(tokens: int, context_length: int) -> None:
    train = recipe(model(2, context_length=context_length), tokens=tokens)
    assert train.batch_size == 1 or train.batch_size * context_length < 8 * (1 << 15)
    assert (
        0 <= _tokens(train, context_length) - tokens < _tokens(train, context_length) / train.steps
    )


def test_rates_at_the_reference_width_are_the_defaults() -> None:
    optim, default = recipe(model(2)).optim, OptimConfig()
    assert model(2).d_model == 128
    assert optim.learning_rate == default.learning_rate
    assert optim.head_learning_rate == default.head_learning_rate
    assert optim.muon_learning_rate == default.muon_learning_rate


def test_rates_come_near_those_of_published_runs() -> None:
    # GPT-3 125M trained at 6e-4 (Brown et al. 2020), Llama 2 7B at 3e-4 (Touvron et al. 2023).
    assert 6e-4 / 2.5 < recipe(model(12)).optim.learning_rate < 6e-4 * 2.5
    assert 3e-4 / 2.5 < recipe(model(64)).optim.learning_rate < 3e-4 * 2.5


def test_what_is_given_stays() -> None:
    made = shape(8, {"d_model": 384, "n_layers": 5, "qk_norm": False})
    assert (made["d_model"], made["n_layers"], made["qk_norm"]) == (384, 5, False)
    assert made["n_heads"] == 6
    optim = OptimConfig(optimizer="adamw", weight_decay=0.1, learning_rate=1e-3)
    given = TrainConfig(steps=77, batch_size=4, seed=5, optim=optim)
    train = recipe(model(4), given)
    assert (train.steps, train.batch_size, train.seed) == (77, 4, 5)
    whole = recipe(model(4))
    windows = whole.batch_size * whole.accumulation_steps
    assert train.accumulation_steps == round(windows / 4)
    assert (train.optim.weight_decay, train.optim.learning_rate) == (0.1, 1e-3)
    assert train.optim.head_learning_rate == recipe(model(4)).optim.head_learning_rate


def test_a_token_budget_of_ones_own_sets_steps_and_batch() -> None:
    made = model(4)
    short, long = recipe(made, tokens=10_000_000), recipe(made, tokens=1_000_000_000)
    assert _tokens(short) == pytest.approx(1e7, rel=0.01)
    assert _tokens(long) == pytest.approx(1e9, rel=0.01)
    assert short.batch_size * short.accumulation_steps < long.batch_size * long.accumulation_steps


@pytest.mark.parametrize("depth", [0, -1, 1000, 2.5, "8", True, None])
def test_a_depth_that_cannot_be_says_so(depth: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.depth is .*from 1 to 256"):
        shape(depth)  # type: ignore[arg-type]


def test_a_width_without_a_head_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="give n_heads"):
        shape(4, {"d_model": 100})
    with pytest.raises(ConfigError, match="head_dim is 48"):
        shape(4, {"head_dim": 48})
    assert shape(4, {"d_model": 100, "n_heads": 5})["n_heads"] == 5
    assert shape(4, {"head_dim": 64})["n_heads"] == 4
