"""A model as a folder that transformers, vLLM, SGLang and llama.cpp read, and back again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer

from llm.config_model import ModelConfig
from llm.errors import DataError
from llm.model import Model

_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "n_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
}
"""Our names of what a shape is made of, and theirs."""
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
}
"""What the `llama` family has no choice in: anything else in a `config.json` is another model."""


def export_huggingface(
    model: Model, tokenizer_json: bytes, directory: Path, *, eot_id: int
) -> None:
    """Write a model and its tokenizer as transformers expects them: Qwen3 with `qk_norm`, or Llama.

    The same weights give the same bytes. The five files are written one after the other: to
    publish them whole is the caller's part.

    Raises DataError where the tokenizer has no `eot_id` or more ids than the model.
    """
    eot = _end_of_text(tokenizer_json, eot_id, model.config.vocab_size)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {_their_name(name): tensor for name, tensor in model.state_dict().items()}
    contiguous = {name: tensors[name].contiguous() for name in sorted(tensors)}
    (directory / "model.safetensors").write_bytes(save(contiguous, metadata={"format": "pt"}))
    special = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    _write_json(directory / "config.json", _their_config(model, special))
    _write_json(directory / "generation_config.json", special)
    (directory / "tokenizer.json").write_bytes(tokenizer_json)
    _write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.config.context_length,
            "clean_up_tokenization_spaces": False,
            "bos_token": eot,
            "eos_token": eot,
            "pad_token": eot,
        },
    )


def load_exported(directory: Path) -> tuple[Model, ModelConfig]:
    """The model in a folder that `export_huggingface` or transformers wrote, in fp32.

    Raises DataError where a file is missing or damaged, or where the model is none of ours.
    """
    config = _our_config(directory / "config.json")
    path = directory / "model.safetensors"
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): export the model again") from error
    model = Model(config)
    found = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise DataError(f"{path} does not hold what its config.json says: {error}") from error
    return model, config


def _their_name(name: str) -> str:
    return name if name.startswith("lm_head.") else f"model.{name}"


def _their_config(model: Model, special: dict[str, int]) -> dict[str, Any]:
    config = model.config
    model_type = "qwen3" if config.qk_norm else "llama"
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        **{theirs: getattr(config, ours) for ours, theirs in _FIELDS.items()},
        **_FIXED,
        # transformers 5 reads `rope_parameters` and `dtype`; version 4 and others the older names.
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "dtype": dtype,
        "torch_dtype": dtype,
        "attention_dropout": 0.0,
        "use_cache": True,
        **special,
    }


def _our_config(path: Path) -> ModelConfig:
    try:
        theirs = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): export the model again") from error
    if theirs.get("model_type") not in _ARCHITECTURES:
        raise DataError(
            f"{path} describes a model of type {theirs.get('model_type')!r}: "
            f"only {' and '.join(_ARCHITECTURES)} can be loaded"
        )
    for name, value in _FIXED.items():
        if theirs.get(name, value) != value:
            raise DataError(f"{path} has {name} = {theirs[name]!r}: only {value!r} can be loaded")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise DataError(f"{path} scales its positions ({rope}): only unscaled ones can be loaded")
    return ModelConfig(
        qk_norm=theirs["model_type"] == "qwen3",
        rope_theta=rope.get("rope_theta", theirs.get("rope_theta", 10000.0)),
        **{ours: theirs[name] for ours, name in _FIELDS.items() if theirs.get(name) is not None},
    )


def _end_of_text(tokenizer_json: bytes, eot_id: int, vocab_size: int) -> str:
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    eot = tokenizer.id_to_token(eot_id)
    if eot is None:
        raise DataError(f"the tokenizer has no id {eot_id}: give the id of its end-of-text token")
    n_ids = 1 + max(tokenizer.get_vocab().values())
    if n_ids > vocab_size:
        raise DataError(
            f"the tokenizer has {n_ids} ids, but the model knows {vocab_size}: "
            f"export the model with the tokenizer it was trained with"
        )
    return eot


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
