"""A model and its tokenizer as one GGUF file, which llama.cpp and what is built on it read.

The file is written by `gguf`, llama.cpp's own package (the extra `gguf`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from llm.bpe_fast import (
    GPT2_PATTERN,
    ONE_DIGIT_PATTERN,
    WORD_PATTERN,
    is_plain,
    split_pattern,
)
from llm.config_model import ModelConfig
from llm.decoder import Decoder
from llm.errors import ConfigError, DataError
from llm.export import end_of_text
from llm.huggingface import model_type
from llm.rotary import original_context_length

Precision = Literal["f32", "q8_0"]

_ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gpt2": "gpt2"}
_TENSORS = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "ln_f": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "ln_1": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "ln_2": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
"""Our names of tensors, and llama.cpp's."""
_WHOLE = ("position_embd", "ffn_gate_inp")
"""Matrices that stay in fp32, as llama.cpp's own converter has them."""
_SPLITS = {
    (WORD_PATTERN, False): "dbrx",
    (WORD_PATTERN, True): "llama-bpe",
    (ONE_DIGIT_PATTERN, False): "qwen2",
    (GPT2_PATTERN, False): "gpt-2",
}
"""Where a tokenizer splits words, whether one that is a token is taken whole, and llama.cpp's name
for that."""


def export_gguf(
    model: Decoder, tokenizer_json: bytes, path: Path, *, eot_id: int, precision: Precision = "f32"
) -> None:
    """Write a `llama` or `gpt2` model to `path`. `q8_0` keeps matrices in 8.5 bits a number.

    A text begins with the end-of-text token there, as in training. Raises ConfigError for a model
    that llama.cpp does not know or without the package `gguf`, DataError for a tokenizer that it
    does not know or that does not fit the model.
    """
    try:
        import gguf
    except ImportError as error:
        raise ConfigError("writing GGUF needs a package: pip install 'loam[gguf]'") from error
    config = model.config
    architecture = _ARCHITECTURES[model_type(config)]
    end_of_text(tokenizer_json, eot_id, config.vocab_size)
    writer = gguf.GGUFWriter(path, architecture)
    _write_shape(writer, config)
    _write_tokenizer(writer, tokenizer_json, config.vocab_size, eot_id)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    writer.add_file_type(
        gguf.LlamaFileType.MOSTLY_Q8_0 if precision == "q8_0" else gguf.LlamaFileType.ALL_F32
    )
    for name, array in _tensors(config, model.state_dict()):
        whole = array.ndim < 2 or array.shape[-1] % 32 or any(part in name for part in _WHOLE)
        if precision == "f32" or whole:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, q8_0), raw_dtype=q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_shape(writer: Any, config: ModelConfig) -> None:
    import gguf

    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    if config.family == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.n_experts:
        if not config.normalize_expert_weights:
            raise ConfigError("llama.cpp always scales a token's expert weights to sum to one")
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_per_token)
        writer.add_expert_feed_forward_length(config.d_ff)
    if (scaling := config.rope_scaling) is not None:
        if scaling.kind == "llama3":
            raise ConfigError("rope_scaling of kind llama3 is not written to GGUF: use yarn")
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling.kind))
        writer.add_rope_scaling_factor(scaling.factor)
        writer.add_rope_scaling_orig_ctx_len(original_context_length(config, scaling))


def _write_tokenizer(writer: Any, tokenizer_json: bytes, vocab_size: int, eot_id: int) -> None:
    import gguf

    # By way of the library, which fills in what a file leaves out.
    described = json.loads(Tokenizer.from_str(tokenizer_json.decode()).to_str())
    model = described["model"]
    split = _SPLITS.get((split_pattern(described) or "", bool(model.get("ignore_merges"))))
    if split is None or not is_plain(described):
        raise DataError(
            "the model's tokenizer is none that llama.cpp knows, which are byte-level BPE with the "
            "word pattern of Llama 3, Qwen 2 or GPT-2 and nothing before it: train with "
            'tokenizer.kind = "bpe", or export as huggingface'
        )
    tokens = [f"[UNUSED{i}]" for i in range(vocab_size)]
    kinds = [gguf.TokenType.UNUSED] * vocab_size
    for token, i in model["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(eot_id)
    writer.add_eos_token_id(eot_id)
    writer.add_add_bos_token(True)


def _tensors(
    config: ModelConfig, tensors: dict[str, Tensor]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """llama.cpp's name of each tensor, and its numbers."""
    for ours, tensor in tensors.items():
        layer = re.match(r"layers\.(\d+)\.", ours)
        name = ours.removeprefix(layer[0] if layer else "")
        suffix = name.rsplit(".", 1)[-1] if name.endswith((".weight", ".bias")) else "weight"
        name = _TENSORS[name.removesuffix(f".{suffix}")]
        array = tensor.float().contiguous().numpy()
        if model_type(config) == "llama" and name in ("attn_q", "attn_k"):
            array = _interleaved(array, config.head_dim)
        yield f"blk.{layer[1]}.{name}.{suffix}" if layer else f"{name}.{suffix}", array


def _interleaved(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """For `llama` llama.cpp turns channel 2i with 2i + 1, where we turn i with i + E/2."""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
