from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm.config_tokenizer import TokenizerConfig
from llm.decoder import Decoder
from llm.errors import ConfigError, DataError
from llm.export import export_huggingface
from llm.generate import Completion, generate, prompt_tokens, stream, unwritten_ids
from llm.sampling import SamplingConfig, sample
from llm.tokenizer import Tokenizer, train_tokenizer
from tests.llm.small_models import FAMILIES, SHAPES, small_model

PROMPTS = [[5, 9, 2], [60], [3] * 11, [7, 8, 9, 10, 11, 12], [1, 2]]
GREEDY = SamplingConfig(temperature=0)
TOKENIZER_JSON = train_tokenizer(
    ["the quick brown fox, über 狐 jumps over the lazy dog; " * 4],
    TokenizerConfig(vocab_size=320),
)
TOKENIZER = Tokenizer.from_bytes(TOKENIZER_JSON)
SPARE = range(1, 20)
"""Ids of reserved tokens, but for end of text."""


def naive(
    model: Decoder, prompt: list[int], length: int, config: SamplingConfig = GREEDY
) -> list[int]:
    """The definition: read the whole window again for each token, one prompt at a time."""
    generator = torch.Generator().manual_seed(config.seed)
    text = list(prompt)
    for _ in range(length):
        window = torch.tensor([text[-model.config.context_length :]])
        seen = torch.zeros(model.config.vocab_size, dtype=torch.bool)
        seen[text] = True
        with torch.no_grad():
            logits = model(window)[0, -1]
        text.append(sample(logits, generator, config, seen))
    return text[len(prompt) :]


def tokens(made: list[Completion]) -> list[list[int]]:
    return [list(one.tokens) for one in made]


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(max_new_tokens=30, temperature=0),
        SamplingConfig(max_new_tokens=30, seed=3),
        SamplingConfig(
            max_new_tokens=30, seed=3, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.3
        ),
    ],
    ids=["greedy", "sampled", "filtered"],
)
@pytest.mark.parametrize("shape", [*SHAPES.values(), *FAMILIES.values()], ids=[*SHAPES, *FAMILIES])
def test_a_cached_batch_equals_the_naive_loop_token_for_token(
    shape: dict[str, Any], config: SamplingConfig
) -> None:
    """The context is 24 tokens: every row outgrows it, each at another step."""
    model = small_model(**shape).eval()
    for prompt, row in zip(PROMPTS, tokens(generate(model, PROMPTS, config)), strict=True):
        assert row == naive(model, prompt, 30, config)


@pytest.mark.parametrize("shape", [{"n_kv_heads": 2}, FAMILIES["qwen3_moe"], {"family": "gpt2"}])
def test_greedy_text_is_that_of_transformers(shape: dict[str, Any], tmp_path: Path) -> None:
    model = small_model(vocab_size=320, **shape)
    export_huggingface(model, TOKENIZER_JSON, tmp_path, eot_id=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    for penalty in (1.0, 1.4):
        written = theirs.generate(
            torch.tensor([[7, 8, 9]]),
            do_sample=False,
            max_new_tokens=20,
            repetition_penalty=penalty,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        config = SamplingConfig(
            max_new_tokens=20, temperature=0, repetition_penalty=penalty, logprobs=3
        )
        (ours,) = generate(model, [[7, 8, 9]], config)
        assert list(ours.tokens) == written.sequences[0, 3:].tolist()
        logprobs = torch.stack(written.logits)[:, 0].log_softmax(-1)
        chosen = logprobs[torch.arange(20), torch.tensor(ours.tokens)]
        torch.testing.assert_close(torch.tensor(ours.logprobs), chosen, atol=1e-4, rtol=1e-4)
        top = logprobs.topk(3)
        for place, likeliest in enumerate(ours.likeliest):
            assert [token for token, _ in likeliest] == top.indices[place].tolist()
            values = torch.tensor([value for _, value in likeliest])
            torch.testing.assert_close(values, top.values[place], atol=1e-4, rtol=1e-4)


def test_prompts_longer_than_the_context_are_read_from_their_last_window() -> None:
    model = small_model()
    prompts = [list(range(40)), [4, 5], list(range(24)), list(range(25))]
    made = generate(model, prompts, GREEDY.model_copy(update={"max_new_tokens": 4}))
    assert tokens(made) == [naive(model, prompt, 4) for prompt in prompts]


SETTINGS = st.builds(
    SamplingConfig,
    max_new_tokens=st.integers(0, 8),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 20]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    stop_tokens=st.sampled_from([(), (0, 1, 2, 3)]),
    logprobs=st.sampled_from([None, 0, 2]),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 60), min_size=1, max_size=30), SETTINGS)))
def test_what_a_prompt_gets_does_not_depend_on_its_batch(
    requests: list[tuple[list[int], SamplingConfig]],
) -> None:
    model = small_model(qk_norm=True, n_kv_heads=2)
    together = generate(model, [prompt for prompt, _ in requests], [one for _, one in requests])
    for (prompt, config), completion in zip(requests, together, strict=True):
        (alone,) = generate(model, [prompt], config)
        assert completion.tokens == alone.tokens
        assert completion.finish == alone.finish
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
        expected = len(completion.tokens) if config.logprobs is not None else 0
        assert len(completion.logprobs) == len(completion.likeliest) == expected


def test_a_seed_repeats_a_sample_and_another_seed_does_not() -> None:
    model = small_model()
    each = [SamplingConfig(max_new_tokens=20, seed=seed) for seed in (5, 5, 6)]
    first, again, other = generate(model, [[1, 2, 3]] * 3, each)
    assert first == again
    assert first != other
    assert [first] == generate(model, [[1, 2, 3]], each[0])


def test_generation_leaves_torchs_global_generator_and_the_models_mode_alone() -> None:
    model = small_model(dropout=0.5).train()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    made = generate(model, PROMPTS, SamplingConfig(max_new_tokens=3))
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert made == generate(model.eval(), PROMPTS, SamplingConfig(max_new_tokens=3))


def test_a_row_ends_before_its_stop_token_while_others_go_on() -> None:
    model = small_model()
    greedy = SamplingConfig(temperature=0, max_new_tokens=12)
    free = tokens(generate(model, PROMPTS, greedy))
    stop = free[0][5]
    stopped = generate(model, PROMPTS, greedy.model_copy(update={"stop_tokens": (stop,)}))
    for row, shorter in zip(free, stopped, strict=True):
        assert list(shorter.tokens) == (row[: row.index(stop)] if stop in row else row)
        assert shorter.finish == ("stop" if stop in row else "length")
    assert len(stopped[0].tokens) < 12


def test_generation_works_under_bf16_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        made = generate(small_model(qk_norm=True), PROMPTS, SamplingConfig(max_new_tokens=3))
    assert [len(one.tokens) for one in made] == [3] * len(PROMPTS)


def test_no_tokens_are_made_where_none_are_asked_for() -> None:
    nothing = Completion(tokens=(), text="", finish="length", logprobs=(), likeliest=())
    none = SamplingConfig(max_new_tokens=0)
    assert generate(small_model(), [[1], [2, 3]], none) == [nothing, nothing]
    assert generate(small_model(), [], GREEDY) == []


# with a tokenizer


def test_text_comes_with_each_token_and_is_the_tokens_text() -> None:
    model = small_model(vocab_size=320)
    start = prompt_tokens(TOKENIZER, "the fox")
    config = SamplingConfig(max_new_tokens=40, seed=1)
    pieces = list(stream(model, [start], config, TOKENIZER))
    (completion,) = generate(model, [start], config, TOKENIZER)
    assert tuple(piece.token for piece in pieces) == completion.tokens
    assert "".join(piece.text for piece in pieces) == completion.text
    assert completion.text == TOKENIZER.decode(completion.tokens)
    assert [piece.finish for piece in pieces] == [None] * 39 + ["length"]


def test_a_prompt_begins_as_a_document_does_in_training() -> None:
    assert prompt_tokens(TOKENIZER, "")[0] == TOKENIZER.eot_id
    assert TOKENIZER.decode(prompt_tokens(TOKENIZER, "the fox")) == "<|endoftext|>the fox"


def test_ids_that_no_text_has_are_never_drawn() -> None:
    """Nor those above the tokenizer's vocabulary, where a model's was rounded up."""
    assert unwritten_ids(TOKENIZER, 330) == [*SPARE, *range(TOKENIZER.vocab_size, 330)]
    model = small_model(vocab_size=330)
    requests = [SamplingConfig(max_new_tokens=60, seed=seed, temperature=2) for seed in range(8)]
    free = {token for one in generate(model, [[30]] * 8, requests) for token in one.tokens}
    made = generate(model, [[30]] * 8, requests, TOKENIZER)
    assert free & set(unwritten_ids(TOKENIZER, 330))
    assert not {token for one in made for token in one.tokens} & {
        TOKENIZER.eot_id,
        *unwritten_ids(TOKENIZER, 330),
    }


def test_a_text_ends_before_its_stop_string_and_the_others_go_on() -> None:
    model = small_model(vocab_size=320)
    starts = [prompt_tokens(TOKENIZER, text) for text in ("the fox", "über", "d")]
    config = SamplingConfig(max_new_tokens=40, seed=1)
    free = generate(model, starts, config, TOKENIZER)
    stop = free[1].text[4:7]
    each = [config, config.model_copy(update={"stop": ("never there", stop)}), config]
    made = generate(model, starts, each, TOKENIZER)
    assert made[1].text == free[1].text[: free[1].text.index(stop)]
    assert made[1].finish == "stop"
    assert made[1].tokens == free[1].tokens[: len(made[1].tokens)]
    assert [made[0], made[2]] == [free[0], free[2]]


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[1], []], GREEDY, "prompt 1 is empty"),
        ([[1, 61]], GREEDY, "ids from 1 to 61, but the model knows 0 to 60"),
        ([[-1]], GREEDY, "ids from -1"),
        ([[1], [2]], [GREEDY], "1 settings for 2 prompts"),
    ],
)
def test_prompts_that_cannot_be_read_are_named(
    prompts: list[list[int]], settings: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        generate(small_model(), prompts, settings)


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ConfigError, match="need a tokenizer"):
        generate(small_model(), [[1]], SamplingConfig(stop=("x",)))
