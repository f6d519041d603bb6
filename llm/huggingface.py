"""How transformers writes down the models we have: its names of settings and of tensors, and ours.

| ours                       | theirs     | who else reads it                |
|----------------------------|------------|----------------------------------|
| `llama`                    | Llama      | vLLM, SGLang, llama.cpp          |
| `llama`, `qk_norm`         | Qwen3      | the same                         |
| `llama`, experts           | Qwen3-MoE  | the same                         |
| `gpt2`                     | GPT-2      | the same                         |
| `speedrun`                 | none       | nobody                           |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm.config_model import Family, ModelConfig, RopeScaling
from llm.errors import ConfigError, DataError
from llm.rotary import LLAMA3_TURNS, YARN_TURNS, original_context_length


@dataclass(frozen=True)
class Layout:
    """One type of model, in transformers' words."""

    family: Family
    architecture: str
    fields: dict[str, str]
    """Our names of what a shape is made of, and theirs."""
    fixed: dict[str, Any]
    """What our family has no choice in: anything else in a `config.json` is another model."""
    defaults: dict[str, Any]
    """What a field that is left out means there, where it means something else here."""


_LLAMA_FIELDS = {
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
_LLAMA_FIXED = {"hidden_act": "silu", "attention_bias": False}
_QWEN3_FIXED = {**_LLAMA_FIXED, "use_sliding_window": False}
_MOE_FIELDS = {
    **_LLAMA_FIELDS,
    "d_ff": "moe_intermediate_size",
    "n_experts": "num_experts",
    "n_experts_per_token": "num_experts_per_tok",
    "normalize_expert_weights": "norm_topk_prob",
    "balance_coefficient": "router_aux_loss_coef",
}
_GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "context_length": "n_positions",
    "n_layers": "n_layer",
    "d_model": "n_embd",
    "n_heads": "n_head",
    "d_ff": "n_inner",
    "tie_embeddings": "tie_word_embeddings",
    "norm_eps": "layer_norm_epsilon",
}
_OPTIONAL = {
    *("n_kv_heads", "head_dim", "tie_embeddings", "norm_eps"),
    *("normalize_expert_weights", "balance_coefficient"),
}
"""What a `config.json` may leave out; of GPT-2 the width of its feed-forward layer too."""
LAYOUTS = {
    "llama": Layout(
        "llama",
        "LlamaForCausalLM",
        _LLAMA_FIELDS,
        {**_LLAMA_FIXED, "mlp_bias": False},
        {"rms_norm_eps": 1e-6},
    ),
    "qwen3": Layout(
        "llama",
        "Qwen3ForCausalLM",
        _LLAMA_FIELDS,
        _QWEN3_FIXED,
        {"rms_norm_eps": 1e-6, "head_dim": 128},
    ),
    "qwen3_moe": Layout(
        "llama",
        "Qwen3MoeForCausalLM",
        _MOE_FIELDS,
        {**_QWEN3_FIXED, "decoder_sparse_step": 1, "mlp_only_layers": []},
        {"rms_norm_eps": 1e-6, "norm_topk_prob": False},
    ),
    "gpt2": Layout(
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2_FIELDS,
        {
            "activation_function": "gelu_new",
            "add_cross_attention": False,
            "reorder_and_upcast_attn": False,
            "scale_attn_by_inverse_layer_idx": False,
            "scale_attn_weights": True,
        },
        {},
    ),
}


def model_type(config: ModelConfig) -> str:
    """Their name for a model of this shape. Raises ConfigError for a family they do not have."""
    if config.family == "speedrun":
        raise ConfigError(
            "a model of family 'speedrun' cannot be exported: its value embeddings, shortcuts and "
            "norms without weights are in no other program; train family 'llama' with "
            "qk_norm = true, which loads everywhere and comes closest"
        )
    if config.family == "gpt2":
        return "gpt2"
    return "qwen3_moe" if config.n_experts else "qwen3" if config.qk_norm else "llama"


def their_config(config: ModelConfig) -> dict[str, Any]:
    """What decides the logits, as their `config.json` says it."""
    kind = model_type(config)
    layout = LAYOUTS[kind]
    described = {
        "architectures": [layout.architecture],
        "model_type": kind,
        **{theirs: getattr(config, ours) for ours, theirs in layout.fields.items()},
        **layout.fixed,
    }
    if kind == "gpt2":
        return {**described, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    rope = _their_rope(config)
    # transformers 5 reads `rope_parameters`; version 4 and others the two older names.
    described |= {
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "attention_dropout": 0.0,
    }
    if config.rope_scaling is not None:
        described["rope_scaling"] = rope
    if kind == "qwen3_moe":
        described["intermediate_size"] = config.d_ff
    return described


def our_config(theirs: dict[str, Any], where: str) -> ModelConfig:
    """The shape that a `config.json` describes.

    Raises DataError where it is none of ours, pydantic's ValidationError where it is impossible.
    """
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise DataError(
            f"{where} describes a model of type {kind!r}: only {', '.join(LAYOUTS)} can be loaded"
        )
    layout = LAYOUTS[kind]
    if "num_local_experts" in theirs:  # As transformers 5 calls them.
        theirs = {"num_experts": theirs["num_local_experts"], **theirs}
    for name, value in layout.fixed.items():
        if theirs.get(name, value) != value:
            raise DataError(f"{where} has {name} = {theirs[name]!r}: only {value!r} can be loaded")
    given = {**layout.defaults, **{n: v for n, v in theirs.items() if v is not None}}
    fields = {ours: given[name] for ours, name in layout.fields.items() if name in given}
    optional = _OPTIONAL | {"d_ff"} if kind == "gpt2" else _OPTIONAL
    if missing := layout.fields.keys() - fields.keys() - optional:
        names = ", ".join(sorted(layout.fields[ours] for ours in missing))
        raise DataError(f"{where} does not say its {names}: bring the model's own config.json")
    if kind != "gpt2":
        fields |= {"qk_norm": kind != "llama", **_our_rope(theirs, where)}
    config = ModelConfig(family=layout.family, **fields)
    if config.rope_scaling is None:
        return config
    plain = config.rope_scaling.model_copy(update={"original_context_length": 0})
    if original_context_length(config, plain) != config.rope_scaling.original_context_length:
        return config
    return config.model_copy(update={"rope_scaling": plain})  # Said as it follows by itself.


def _their_rope(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    rope: dict[str, Any] = {
        "rope_type": scaling.kind,
        "rope_theta": config.rope_theta,
        "factor": scaling.factor,
    }
    if scaling.kind != "linear":
        rope["original_max_position_embeddings"] = original_context_length(config, scaling)
    if scaling.kind == "llama3":
        rope |= {"low_freq_factor": LLAMA3_TURNS[0], "high_freq_factor": LLAMA3_TURNS[1]}
    return rope


def _our_rope(theirs: dict[str, Any], where: str) -> dict[str, Any]:
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise DataError(f"{where} scales its positions as {rope!r}: expected an object")
    kind = rope.get("rope_type", rope.get("type", "default"))
    fields = {"rope_theta": rope.get("rope_theta", theirs.get("rope_theta", 10000.0))}
    fixed = {
        "low_freq_factor": LLAMA3_TURNS[0],
        "high_freq_factor": LLAMA3_TURNS[1],
        "beta_slow": YARN_TURNS[0],
        "beta_fast": YARN_TURNS[1],
        "attention_factor": None,
        "mscale": None,
        "mscale_all_dim": None,
        "truncate": True,
        "partial_rotary_factor": 1.0,
    }
    other = {n: rope[n] for n, v in fixed.items() if rope.get(n) is not None and rope[n] != v}
    if other or kind not in ("default", "linear", "llama3", "yarn"):
        raise DataError(
            f"{where} scales its positions as {rope}: only linear, llama3 and yarn with their "
            f"usual numbers can be loaded"
        )
    if kind == "default":
        return fields
    original = rope.get("original_max_position_embeddings") or 0
    if kind != "linear" and not original:
        raise DataError(f"{where} has no original_max_position_embeddings in {rope}: add it")
    scaling = {"kind": kind, "factor": rope.get("factor"), "original_context_length": original}
    return {**fields, "rope_scaling": RopeScaling.model_validate(scaling)}


_GPT2_NAMES = {"embed_tokens.": "wte.", "embed_positions.": "wpe.", "layers.": "h."}
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""What older versions stored beside the weights, though it follows from the shape."""
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)\.weight$")


def their_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors under their names, in the order of those."""
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if config.family == "gpt2":
            named[_their_gpt2_name(name)] = tensor.t() if _is_transposed(name, tensor) else tensor
        elif tensor.ndim == 3:
            stack, matrix = name.rsplit(".", 1)
            for number, one in enumerate(tensor):
                named[f"model.{stack}.{number}.{matrix}.weight"] = one
        else:
            named[name if name.startswith("lm_head.") else f"model.{name}"] = tensor
    return {name: named[name].contiguous() for name in sorted(named)}


def our_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names; what follows from others is left out."""
    named: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    for theirs, tensor in tensors.items():
        name = theirs.removeprefix("model.").removeprefix("transformer.")
        if _BUFFERS.search(name) or (config.tie_embeddings and name.startswith("lm_head.")):
            continue
        if config.family == "gpt2":
            name = _our_gpt2_name(name)
            named[name] = tensor.t() if _is_transposed(name, tensor) else tensor
        elif found := _EXPERT.match(name):
            experts.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = tensor
        else:
            named[name] = tensor
    for name, matrices in experts.items():
        named[name] = torch.stack([matrices[number] for number in sorted(matrices)])
    return named


def _is_transposed(name: str, tensor: Tensor) -> bool:
    """GPT-2 keeps the matrices of its blocks as [in, out] (its `Conv1D`)."""
    return name.startswith("layers.") and tensor.ndim == 2


def _their_gpt2_name(name: str) -> str:
    for ours, theirs in _GPT2_NAMES.items():
        if name.startswith(ours):
            return f"transformer.{theirs}{name.removeprefix(ours)}"
    return name if name.startswith("lm_head.") else f"transformer.{name}"


def _our_gpt2_name(name: str) -> str:
    for ours, theirs in _GPT2_NAMES.items():
        if name.startswith(theirs):
            return f"{ours}{name.removeprefix(theirs)}"
    return name
