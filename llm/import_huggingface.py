"""A model out of a folder that transformers, or our own export, wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llm.decoder import Decoder
from llm.errors import DataError
from llm.families import build_model
from llm.huggingface import our_config, our_tensors


def import_huggingface(directory: Path) -> Decoder:
    """The Llama, Qwen3, Qwen3-MoE or GPT-2 model in a folder, in fp32.

    `config.json` and `model.safetensors` are read, or the latter's parts by their index. Dropout,
    which is no part of a finished model, is 0.

    Raises DataError where a file is missing or damaged, or where the model is none of ours.
    """
    path = directory / "config.json"
    try:
        config = our_config(_read_json(path), str(path))
    except ValidationError as error:
        raise DataError(f"{path} describes no shape that can be loaded: {error}") from error
    model = build_model(config)
    try:
        model.load_state_dict(our_tensors(config, _read_tensors(directory)))
    except RuntimeError as error:
        raise DataError(f"{directory} does not hold what its config.json says: {error}") from error
    return model


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    index = directory / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.exists():
        files = _read_json(index).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise DataError(f"{index} has no weight_map of files: bring or export the model again")
        names = sorted(set(files.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = directory / name
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path} cannot be read ({error}): bring or export the model again, as safetensors"
            ) from error
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): bring or export the model again"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object: bring or export the model again")
    return value
