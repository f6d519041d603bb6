from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from llm import decode
from llm.decode import OneText, can_decode
from llm.decoder import Decoder, KVCache
from llm.errors import DataError
from llm.generate import generate
from llm.quantize import int8_model
from llm.sampling import SamplingConfig
from tests.llm.small_models import FAMILIES, SHAPES, small_model
from tests.llm.test_generate import naive

ROTATIONS: dict[str, dict[str, Any]] = {
    kind: {"rope_scaling": {"kind": kind, "factor": 2.0}} for kind in ("linear", "llama3", "yarn")
}
EVERY = {**SHAPES, **ROTATIONS, "odd_sizes": {"d_model": 44, "n_heads": 2, "d_ff": 37}}
every_shape = pytest.mark.parametrize("shape", EVERY.values(), ids=EVERY.keys())
in_fp32_and_int8 = pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])


def ready(shape: dict[str, Any], int8: bool) -> Decoder:
    model = small_model(**shape).eval()
    return int8_model(model) if int8 else model


@torch.inference_mode()
def begun(model: Decoder, prompt: list[int], capacity: int) -> OneText:
    cache = KVCache(model.config, 1, capacity, like=model.embed_tokens.weight)
    model.hidden(torch.tensor([prompt]), cache)
    return OneText(model, cache)


@in_fp32_and_int8
@every_shape
def test_logits_at_every_position_are_the_models_own(shape: dict[str, Any], int8: bool) -> None:
    model = ready(shape, int8)
    tokens = torch.randint(0, 61, (24,), generator=torch.Generator().manual_seed(2))
    text = begun(model, tokens[:5].tolist(), 24)
    found = torch.stack([text.next_logits(int(token)) for token in tokens[5:]])
    with torch.no_grad():
        expected = model(tokens[None])[0, 5:]
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.std()), rtol=2e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
@in_fp32_and_int8
@every_shape
def test_a_single_text_equals_the_naive_loop_token_for_token(
    shape: dict[str, Any], int8: bool, temperature: float
) -> None:
    """The context is 24 tokens: the text outgrows it."""
    model = ready(shape, int8)
    assert can_decode(model)
    config = SamplingConfig(max_new_tokens=40, temperature=temperature)
    for prompt in ([5, 9, 2], [60], list(range(30))):
        (made,) = generate(model, [prompt], config)
        assert list(made.tokens) == naive(model, prompt, 40, config)


def test_the_weights_are_read_where_they_lie() -> None:
    model = small_model(tie_embeddings=True)
    text, state = begun(model, [1], 2), model.state_dict()
    up_ND, embed_VD = state["layers.1.mlp.up_proj.weight"], state["embed_tokens.weight"]
    assert np.shares_memory(text.layers[1].up.rows_ND, up_ND.numpy())
    assert np.shares_memory(text.head.rows_ND, embed_VD.numpy())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("llama", "qwen3")])
def test_other_families_and_experts_are_left_to_their_models(name: str) -> None:
    assert not can_decode(small_model(**FAMILIES[name]))


def test_what_is_not_in_fp32_on_a_cpu_is_left_to_the_model() -> None:
    assert not can_decode(small_model().bfloat16())
    assert not can_decode(small_model().to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_decode(small_model())


def test_layers_that_several_threads_read_sooner_are_left_to_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small_model()
    monkeypatch.setattr(decode, "SHARED_BYTES", 1)
    for threads, alone in ((1, True), (2, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert can_decode(model) == alone


def test_a_text_that_outgrows_its_cache_is_refused() -> None:
    text = begun(small_model(), [1, 2], 3)
    text.next_logits(4)
    with pytest.raises(DataError, match="room for 3 tokens"):
        text.next_logits(5)
