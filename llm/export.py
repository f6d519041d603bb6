"""A model as a folder that transformers, vLLM, SGLang and llama.cpp read.

`llm/huggingface.py` says what is called what there; `llm/import_huggingface.py` goes the other way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from llm.decoder import Decoder
from llm.errors import DataError
from llm.huggingface import their_config, their_tensors
from llm.tokenizer import Tokenizer


def export_huggingface(
    model: Decoder, tokenizer_json: bytes, directory: Path, *, eot_id: int
) -> None:
    """Write a model and its tokenizer as transformers expects them.

    The same weights give the same bytes. The five files are written one after the other: to
    publish them whole is the caller's part.

    Raises ConfigError for a family that no other program has, and DataError where the tokenizer has
    no special token `eot_id` or more ids than the model.
    """
    described = their_config(model.config)
    eot = end_of_text(tokenizer_json, eot_id, model.config.vocab_size)
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    special = {"bos_token_id": eot_id, "eos_token_id": eot_id, "pad_token_id": eot_id}
    tensors = their_tensors(model.config, model.state_dict())
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    # transformers 5 reads `dtype`; version 4 and others the older name.
    described |= {"dtype": dtype, "torch_dtype": dtype, "use_cache": True, **special}
    _write_json(directory / "config.json", described)
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


def end_of_text(tokenizer_json: bytes, eot_id: int, vocab_size: int) -> str:
    """The name of the token that ends a text. Raises DataError where the tokenizer does not fit."""
    tokenizer = Tokenizer.from_bytes(tokenizer_json)
    names = {i: name for name, i in tokenizer.special_ids.items()}
    if eot_id not in names:
        raise DataError(
            f"the tokenizer has no special token {eot_id}: give the id of its end-of-text token"
        )
    if tokenizer.vocab_size > vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the model knows {vocab_size}: "
            f"export the model with the tokenizer it was trained with"
        )
    return names[eot_id]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
