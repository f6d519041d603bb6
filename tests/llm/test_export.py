from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm.decoder import Decoder
from llm.errors import ConfigError, DataError
from llm.export import export_huggingface
from llm.generate import generate
from llm.import_huggingface import import_huggingface
from llm.sampling import SamplingConfig
from tests.llm.small_models import FAMILIES, SHAPES, small_model

EXPORTABLE = {
    **SHAPES,
    **{name: shape for name, shape in FAMILIES.items() if shape.get("family") != "speedrun"},
    "linear": {"rope_scaling": {"kind": "linear", "factor": 3.0}},
    "llama3": {"rope_scaling": {"kind": "llama3", "factor": 2.0}},
    "yarn": {"qk_norm": True, "rope_scaling": {"kind": "yarn", "factor": 2.0}},
    "yarn_from_elsewhere": {
        "rope_scaling": {"kind": "yarn", "factor": 2.0, "original_context_length": 8}
    },
    "plain_expert_weights": {
        "qk_norm": True,
        "n_experts": 3,
        "n_experts_per_token": 2,
        "normalize_expert_weights": False,
        "tie_embeddings": True,
    },
}

TEXT = "The river runs to the sea, and the sea is not full. Ünïcödé: 水は流れる — 3.14!\n"


def train_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


TOKENIZER = train_tokenizer()
VOCAB_SIZE = TOKENIZER.get_vocab_size()


def export(directory: Path, **shape: Any) -> Decoder:
    model = small_model(vocab_size=VOCAB_SIZE, **shape)
    export_huggingface(model, TOKENIZER.to_str().encode(), directory, eot_id=0)
    return model


@pytest.mark.parametrize("shape", EXPORTABLE.values(), ids=EXPORTABLE.keys())
def test_transformers_computes_the_same_logits_and_greedy_text(
    shape: dict[str, Any], tmp_path: Path
) -> None:
    model = export(tmp_path, **shape)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.randint(0, VOCAB_SIZE, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = model(tokens)
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
        written = theirs.generate(
            tokens[:1, :4], do_sample=False, max_new_tokens=20, eos_token_id=None
        )
    greedy = SamplingConfig(max_new_tokens=20, temperature=0)
    (completion,) = generate(model, [tokens[0, :4].tolist()], greedy)
    assert written[0, 4:].tolist() == list(completion.tokens)


@pytest.mark.parametrize("shape", EXPORTABLE.values(), ids=EXPORTABLE.keys())
def test_an_exported_model_loads_back_bit_for_bit(shape: dict[str, Any], tmp_path: Path) -> None:
    model = export(tmp_path, **shape)
    loaded = import_huggingface(tmp_path)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_the_tokenizer_loads_in_transformers_and_gives_the_same_ids(tmp_path: Path) -> None:
    export(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = TEXT + "<|endoftext|> again  and <|user|>"
    assert theirs(text)["input_ids"] == TOKENIZER.encode(text).ids
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == 0
    assert theirs.model_max_length == 24
    assert AutoConfig.from_pretrained(tmp_path).eos_token_id == 0


def test_the_same_weights_export_to_the_same_bytes(tmp_path: Path) -> None:
    export(tmp_path / "one", qk_norm=True)
    export(tmp_path / "two", qk_norm=True)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(
    "shape, architecture",
    [
        ({}, "LlamaForCausalLM"),
        ({"qk_norm": True}, "Qwen3ForCausalLM"),
        ({"qk_norm": True, "n_experts": 2}, "Qwen3MoeForCausalLM"),
        ({"family": "gpt2"}, "GPT2LMHeadModel"),
    ],
)
def test_each_shape_has_the_name_that_serving_stacks_know_it_by(
    shape: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    export(tmp_path, **shape)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [architecture]


def test_a_speedrun_model_is_refused_with_the_reason_and_another_way(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no other program; train family 'llama'"):
        export(tmp_path / "out", family="speedrun")
    assert not (tmp_path / "out").exists()


def test_a_tied_output_layer_is_stored_once(tmp_path: Path) -> None:
    export(tmp_path, tie_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "eot_id, vocab_size, message",
    [(9999, VOCAB_SIZE, "no special token 9999"), (0, 20, "the model knows 20")],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_written(
    eot_id: int, vocab_size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        export_huggingface(
            small_model(vocab_size=vocab_size),
            TOKENIZER.to_str().encode(),
            tmp_path / "out",
            eot_id=eot_id,
        )
    assert not (tmp_path / "out").exists()
