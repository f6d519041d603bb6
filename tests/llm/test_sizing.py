"""Sizes held against what others published, with the tolerance that arithmetic deserves."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from llm.config_model import ModelConfig, n_parameters
from llm.depth import shape
from llm.errors import ConfigError
from llm.families import build_model
from llm.gpus import GPUS, find_gpu
from llm.presets import PRESETS
from llm.sizing import (
    activation_bytes,
    forward_flops_per_token,
    largest_batch,
    law_parameters,
    multiplied_parameters,
    training_flops_per_token,
    training_memory,
    training_seconds,
)

LLAMA_2_7B, LLAMA_3_8B = PRESETS["llama-2-7b"].config, PRESETS["llama-3-8b"].config


def test_a_token_costs_what_palm_says() -> None:
    config = PRESETS["smollm2-135m"].config
    attention = 12 * 30 * 9 * 64 * 2048
    assert training_flops_per_token(config) == 6 * n_parameters(config) + attention
    assert forward_flops_per_token(config) * 3 == training_flops_per_token(config)


def test_an_embedding_of_its_own_is_looked_up_and_not_multiplied() -> None:
    tied = LLAMA_2_7B.model_copy(update={"tie_embeddings": True})
    assert multiplied_parameters(LLAMA_2_7B) == n_parameters(tied) == multiplied_parameters(tied)


def test_gpt2_costs_what_nanogpt_counts() -> None:
    # nanoGPT, model.py, estimate_mfu: 6 N + 12 L H Q T, N without the positions.
    config = PRESETS["gpt2"].config
    flops = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 12 * 64 * 1024
    assert training_flops_per_token(config) == flops


def test_an_expert_that_a_token_does_not_go_to_costs_memory_alone() -> None:
    shared = {"vocab_size": 1000, "d_model": 64, "n_heads": 2, "d_ff": 128, "qk_norm": True}
    few, many = (ModelConfig(**shared, n_experts=n, n_experts_per_token=2) for n in (4, 64))
    routers = (64 - 4) * few.d_model * few.n_layers
    assert multiplied_parameters(many) == multiplied_parameters(few) + routers
    assert n_parameters(many) > 5 * n_parameters(few)


MIXTRAL = ModelConfig(
    vocab_size=32000, context_length=32768, n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8,
    n_experts=8, n_experts_per_token=2, d_ff=14336, qk_norm=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "config, billions, active",
    [
        (PRESETS["qwen3-30b-a3b"].config, 30.5, 3.3),  # Yang et al. 2025, table 2.
        (MIXTRAL, 46.7, 12.9),  # Jiang et al. 2024, section 2.
    ],
)
def test_a_mixture_is_reckoned_by_what_a_token_meets_and_held_whole(
    config: ModelConfig, billions: float, active: float
) -> None:
    assert n_parameters(config) / 1e9 == pytest.approx(billions, abs=0.05)
    assert law_parameters(config) / 1e9 == pytest.approx(active, abs=0.06)
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * config.context_length
    products = (training_flops_per_token(config) - attention) / 6e9
    assert products == pytest.approx(active, rel=0.1)  # Less what is only looked up.
    memory = training_memory(config, 1, optimizer="adamw")
    looked_up = config.vocab_size * config.d_model
    assert memory.weights == 6 * n_parameters(config) - 2 * looked_up
    assert memory.gradients == 4 * n_parameters(config)


def test_value_embeddings_are_looked_up() -> None:
    shared = {"family": "speedrun", "vocab_size": 1000, "d_model": 64, "n_heads": 2}
    plain, rich = (ModelConfig(**shared, value_embeddings=on) for on in (False, True))
    assert n_parameters(rich) > n_parameters(plain) + 1000
    assert multiplied_parameters(rich) - multiplied_parameters(plain) < 10


def test_llama_2_7b_took_184_320_hours_of_an_a100() -> None:
    # Touvron et al. 2023, table 2; 2 T tokens. That is a utilization of 44 %.
    hours = training_seconds(LLAMA_2_7B, 2e12, GPUS["a100"], mfu=0.44) / 3600
    assert hours == pytest.approx(184_320, rel=0.1)


def test_torchtitan_trains_8b_at_6667_tokens_a_second_on_an_h100() -> None:
    # torchtitan's figure for FSDP2 on 8 of them with compile, which is a utilization of 39 %.
    rate = 1 / training_seconds(LLAMA_3_8B, 1, GPUS["h100"], mfu=0.39)
    assert rate == pytest.approx(6667, rel=0.1)


def test_gpt2_124m_takes_two_hours_of_an_rtx_4090_to_3_28() -> None:
    # Deveraux-Parker/nanoGPT_1GPU_SPEEDRUN: 0.92 B tokens in 115 minutes, products partly in
    # float8, so that it works at 69 % of the peak for bfloat16.
    config = PRESETS["gpt2"].config
    minutes = training_seconds(config, 0.92e9, GPUS["rtx-4090"], mfu=0.65) / 60
    assert minutes == pytest.approx(115, rel=0.2)


def test_nanochat_reaches_gpt2_with_the_operations_it_reports() -> None:
    # nanochat, dev/LEADERBOARD.md, run 1: depth 24, vocabulary 32,768, windows of 2,048, 16,704
    # steps of 524,288 tokens, 4.33e19 operations in 3.04 h on 8 H100. Most of its attention looks
    # at half a window, and its value embeddings are not multiplied.
    config = ModelConfig(**shape(24, {"vocab_size": 32768, "context_length": 2048, "d_ff": 4096}))
    tokens = 16_704 * 524_288
    assert training_flops_per_token(config) * tokens == pytest.approx(4.33e19, rel=0.2)
    hours = training_seconds(config, tokens, GPUS["h100"], 8, mfu=0.5) / 3600
    assert hours == pytest.approx(3.04, rel=0.2)


def test_the_state_of_a_model_takes_16_bytes_a_parameter_with_adamw_and_less_with_muon() -> None:
    # Rajbhandari et al. 2020, section 3.1: 16 bytes for each parameter.
    adamw = training_memory(LLAMA_2_7B, 1, optimizer="adamw", dtype="float32")
    assert adamw.total - adamw.activations == 16 * n_parameters(LLAMA_2_7B)
    muon = training_memory(LLAMA_2_7B, 1, optimizer="muon", dtype="float32")
    embeddings = 2 * LLAMA_2_7B.vocab_size * LLAMA_2_7B.d_model
    assert adamw.optimizer - muon.optimizer == 4 * (n_parameters(LLAMA_2_7B) - embeddings)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(["float32", "bfloat16"]))
def test_checkpointing_never_takes_more(name: str, dtype: str) -> None:
    config = PRESETS[name].config
    plain, checkpointed = (activation_bytes(config, 4, dtype, on) for on in (False, True))  # type: ignore[arg-type]
    assert checkpointed < plain
    assert activation_bytes(config, 8, dtype) == 2 * plain  # type: ignore[arg-type]


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(GPUS)), st.integers(0, 6))
def test_the_largest_batch_fits_and_twice_as_much_does_not(
    name: str, gpu: str, devices: int
) -> None:
    config, device, n = PRESETS[name].config, GPUS[gpu], 1 << devices
    batch = largest_batch(config, device, n_devices=n)
    for size, fits in ((batch, True), (2 * batch or 1, False)):
        if size:
            memory = training_memory(config, size, n_devices=n)
            assert (memory.total <= 0.9 * device.memory) == fits


def test_a_7b_does_not_train_on_one_80_gb_device_with_adamw() -> None:
    assert largest_batch(LLAMA_2_7B, GPUS["h100"], optimizer="adamw", checkpointing=True) == 0
    assert largest_batch(LLAMA_2_7B, GPUS["h100"], optimizer="adamw", n_devices=8) >= 1


def test_a_gpu_is_found_by_its_name_or_by_its_figures() -> None:
    assert find_gpu("H100") is GPUS["h100"]
    assert find_gpu("RTX 4090") is find_gpu("4090") is GPUS["rtx-4090"]
    assert find_gpu("0.38:16:20").flops == 0.38e12
    with pytest.raises(ConfigError, match="did you mean h100"):
        find_gpu("h1oo")
    with pytest.raises(ConfigError, match="TFLOPS:GB"):
        find_gpu("1:2")


FAMILIES = {
    "llama": {},
    "qwen3": {"qk_norm": True},
    "experts": {"qk_norm": True, "n_experts": 4},
    "gpt2": {"family": "gpt2"},
    "speedrun": {"family": "speedrun"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_what_the_allocator_sees_or_a_little_more(
    family: str, dtype: Any, checkpointing: bool
) -> None:
    config = ModelConfig(
        **FAMILIES[family], context_length=64, n_layers=8, d_model=128, n_heads=4, vocab_size=1000
    )
    model = build_model(config)
    model.checkpoint_activations = checkpointing
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # So that gradients are not counted.
    tokens_BT = torch.randint(config.vocab_size, (8, 64))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model.loss(tokens_BT, tokens_BT)
        loss.backward()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    peak = max(itertools.accumulate(event.nbytes() for event in events))
    copies = 2 * multiplied_parameters(config) if dtype == "bfloat16" else 0
    expected = activation_bytes(config, 8, dtype, checkpointing) + copies
    assert 0.9 <= expected / peak <= 1.5
