"""Models that transformers made and saved, read by us: the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from llm.errors import DataError
from llm.import_huggingface import import_huggingface

LLAMA: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16,
    "initializer_range": 0.2,
}  # fmt: skip
MOE = {**LLAMA, "head_dim": 12, "moe_intermediate_size": 20, "num_experts": 5}
GPT2: dict[str, Any] = {
    "vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 16,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8}
THEIRS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**LLAMA),
    "llama_tied": LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "llama_ungrouped": LlamaConfig(**{**LLAMA, "num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
    "llama_yarn": LlamaConfig(**LLAMA, rope_parameters={"rope_theta": 1e4, **YARN}),
    "qwen3": Qwen3Config(**LLAMA, head_dim=12, tie_word_embeddings=True),
    "qwen3_theta": Qwen3Config(**LLAMA, head_dim=8, rope_parameters={"rope_theta": 1e6}),
    "qwen3_moe": Qwen3MoeConfig(**MOE, num_experts_per_tok=2, norm_topk_prob=True),
    "qwen3_moe_plain": Qwen3MoeConfig(**MOE, num_experts_per_tok=3, tie_word_embeddings=True),
    "gpt2": GPT2Config(**GPT2),
    "gpt2_untied": GPT2Config(**GPT2, tie_word_embeddings=False),
    "gpt2_narrow_inside": GPT2Config(**{**GPT2, "n_head": 2, "n_layer": 3}, n_inner=40),
}


def save(config: PreTrainedConfig, directory: Path, **options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # Norms and biases, which would be ones and zeros.
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory, **options)
    return model


@torch.no_grad()
@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS.keys())
def test_the_logits_are_transformers(config: PreTrainedConfig, tmp_path: Path) -> None:
    theirs, ours = save(config, tmp_path), import_huggingface(tmp_path).eval()
    tokens = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt2"])
def test_attention_is_where_transformers_has_it(kind: str, tmp_path: Path) -> None:
    theirs, ours = save(THEIRS[kind], tmp_path), import_huggingface(tmp_path)
    theirs.set_attn_implementation("eager")
    tokens = torch.arange(24).view(2, 12)
    seen = theirs(tokens, output_attentions=True).attentions
    torch.testing.assert_close(ours.attention_probabilities(tokens), torch.stack(seen))


def test_a_model_in_several_files_is_read_whole(tmp_path: Path) -> None:
    theirs = save(THEIRS["llama"], tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        ours = import_huggingface(tmp_path)(tokens)
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_the_file_that_openai_published_is_read(tmp_path: Path) -> None:
    """Its names have no prefix, its masks are stored, and its config says nothing of tying."""
    theirs = save(THEIRS["gpt2"], tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    older = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    older["h.0.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
    save_file(older, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    described = json.loads(path.read_text())
    del described["tie_word_embeddings"]
    path.write_text(json.dumps(described))
    tokens = torch.arange(16)[None]
    with torch.no_grad():
        ours = import_huggingface(tmp_path)(tokens)
        torch.testing.assert_close(ours, theirs(tokens).logits, atol=1e-4, rtol=1e-4)


def test_weights_in_bf16_are_read_as_the_same_numbers(tmp_path: Path) -> None:
    theirs = save(THEIRS["qwen3"], tmp_path)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path)
    ours = import_huggingface(tmp_path)
    assert ours.embed_tokens.weight.dtype == torch.float32
    assert torch.equal(ours.embed_tokens.weight, theirs.get_input_embeddings().weight.float())


@pytest.mark.parametrize(
    "kind, change, message",
    [
        ("llama", {"model_type": "mamba"}, "of type 'mamba'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"mlp_only_layers = \[0\]"),
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "scales its positions"),
        ("llama", {"rope_parameters": {**YARN, "mscale": 2.0}}, "scales its positions"),
        ("llama", {"num_hidden_layers": 3}, "does not hold what its config.json says"),
        ("llama", {"num_key_value_heads": 3}, "the nearest that does is"),
        ("llama", {"max_position_embeddings": None}, "does not say its max_position_embeddings"),
        ("gpt2", {"n_head": None, "n_layer": None}, "does not say its n_head, n_layer"),
    ],
)
def test_a_folder_that_holds_another_model_is_refused(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(THEIRS[kind], tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        import_huggingface(tmp_path)


def test_a_missing_or_damaged_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        import_huggingface(tmp_path)
    save(THEIRS["llama"], tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        import_huggingface(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama_yarn", "qwen3_moe", "gpt2"])
def test_whatever_a_folder_lacks_or_has_wrong_it_is_refused_by_a_sentence(
    kind: str, tmp_path: Path
) -> None:
    """Never by a traceback. What may be left out, or is none of the shape's, is read."""
    save(THEIRS[kind], tmp_path)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    described, tensors = json.loads(config.read_text()), load_file(weights)
    rope = described.get("rope_parameters") or {}
    odd: list[Any] = [None, "x", -1, [], {}]
    changed = [described | {name: value} for name in described for value in odd]
    changed += [
        described | {"rope_parameters": rope | {name: value}} for name in rope for value in odd
    ]
    refused = 0
    for body in [[], None, 3, {}, *changed]:
        config.write_text(json.dumps(body))
        try:
            import_huggingface(tmp_path)
        except DataError:
            refused += 1
    assert refused > 40
    config.write_text(json.dumps(described))
    for name, tensor in tensors.items():
        others = {other: tensors[other] for other in tensors if other != name}
        for damaged in (others, {**others, name: tensor[..., :-1].contiguous()}):
            save_file(damaged, weights)
            with pytest.raises(DataError, match=r"does not hold what its config\.json says"):
                import_huggingface(tmp_path)
    for index in ([], {}, {"weight_map": 3}, {"weight_map": {"a": 3}}, {"weight_map": {"a": "b"}}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(DataError, match="again"):
            import_huggingface(tmp_path)
