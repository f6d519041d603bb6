from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.config_model import n_active_parameters, n_parameters
from llm.gpus import GPUS
from llm.presets import PRESETS
from llm.serving_cost import PRECISIONS, decoding, kv_bytes_per_token, lifetime, read_parameters

LLAMA_2_7B = PRESETS["llama-2-7b"].config


def test_a_token_of_llama_2_7b_takes_half_a_mebibyte_of_cache() -> None:
    # Kwon et al. 2023 (vLLM) give 800 kB for the 13B: 2 x 40 layers x 5120 x 2 bytes.
    assert kv_bytes_per_token(LLAMA_2_7B, 2) == 2 * 32 * 4096 * 2 == 512 * 1024


def test_one_sequence_is_bound_by_reading_the_weights() -> None:
    # llama.cpp decodes 7B in 16 bits at about 55 tokens a second on an RTX 4090 (1,008 GB/s).
    assert decoding(LLAMA_2_7B, GPUS["rtx-4090"]).single == pytest.approx(50, rel=0.25)


def test_a_model_larger_than_a_device_is_split() -> None:
    assert decoding(LLAMA_2_7B, GPUS["h100"]).devices == 1
    assert decoding(LLAMA_2_7B, GPUS["rtx-4090"], "float32").devices == 2


def test_experts_that_no_token_of_a_batch_goes_to_are_not_read() -> None:
    mixture = PRESETS["qwen3-30b-a3b"].config
    assert read_parameters(LLAMA_2_7B, 1) == n_parameters(LLAMA_2_7B)
    assert read_parameters(mixture, 1) == pytest.approx(n_active_parameters(mixture))
    assert read_parameters(mixture, 1000) == pytest.approx(n_parameters(mixture))
    # Draws of 8 of 128 experts for each of 20 tokens, what is not in experts besides.
    draw, met = random.Random(0), 0
    for _ in range(1000):
        met += len({one for _ in range(20) for one in draw.sample(range(128), 8)})
    expert = 3 * mixture.d_model * mixture.d_ff * mixture.n_layers
    rest = n_parameters(mixture) - 128 * expert
    assert read_parameters(mixture, 20) == pytest.approx(rest + expert * met / 1000, rel=0.01)


@given(st.sampled_from(sorted(PRESETS)), st.sampled_from(sorted(GPUS)))
def test_less_precision_is_never_slower_and_company_always_faster(name: str, gpu: str) -> None:
    made = [decoding(PRESETS[name].config, GPUS[gpu], one) for one in PRECISIONS]
    assert [one.weights for one in made] == sorted((one.weights for one in made), reverse=True)
    assert all(one.full >= one.single for one in made)
    alone = [one.single / one.devices for one in made]
    assert alone == sorted(alone)


@given(st.floats(1e3, 1e12))
def test_enough_devices_are_on_for_the_load(tokens_per_day: float) -> None:
    served = decoding(LLAMA_2_7B, GPUS["h100"])
    life = lifetime(LLAMA_2_7B, served, tokens_per_day, 2, 3.0)
    assert life.devices * served.full * 86400 >= tokens_per_day * (1 - 1e-9)
    assert life.cost == pytest.approx(life.devices * 24 * 365 * 2 * 3.0)
    assert life.device_hours <= life.devices * 24 * 365 * 2 * (1 + 1e-9)
