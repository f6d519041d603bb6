from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers

from llm.config_model import n_parameters
from llm.config_tokenizer import TokenizerConfig
from llm.decoder import Decoder
from llm.errors import ConfigError, DataError
from llm.export_gguf import Precision, export_gguf
from llm.tokenizer import Tokenizer as OurTokenizer
from llm.tokenizer import train_tokenizer
from tests.llm.small_models import small_model

TEXT = "The river runs to the sea, and the sea is not full. Ünïcödé: 水は流れる — 3.14!\n" * 3
TOKENIZER_JSON = train_tokenizer([TEXT], TokenizerConfig(vocab_size=320))
TOKENIZER = OurTokenizer.from_bytes(TOKENIZER_JSON)
SHAPES: dict[str, dict[str, Any]] = {
    "llama_grouped": {"n_kv_heads": 2, "rope_theta": 5e5},
    "llama_tied": {"tie_embeddings": True, "norm_eps": 1e-3},
    "llama_linear": {"rope_scaling": {"kind": "linear", "factor": 2.0}},
    "llama_yarn": {"rope_scaling": {"kind": "yarn", "factor": 2.0}},
    "qwen3": {"qk_norm": True, "head_dim": 48, "n_kv_heads": 2},
    "qwen3_moe": {"qk_norm": True, "n_experts": 5, "d_ff": 32},
    "gpt2": {"family": "gpt2"},
    "gpt2_untied": {"family": "gpt2", "tie_embeddings": False},
}
TEXTS = [
    "The sea's 2718 and  it's 水\n\n full, I'LL say!",
    "river",
    "Runs 1234567 rivers' SEA'S  \n\n水は!",
    "A river  of 3141\n\n 水's I'LL say: ",
    "\tto the   sea 3.14 " * 5,
    "Of 2718 seas  it's 水\n\n full, I'LL say;",
    "not",
    "...",
]


def export(path: Path, precision: Precision = "f32", **shape: Any) -> Decoder:
    size = {"vocab_size": TOKENIZER.vocab_size, "context_length": 256, "d_model": 64, **shape}
    model = small_model(**size).eval()
    export_gguf(model, TOKENIZER_JSON, path, eot_id=TOKENIZER.eot_id, precision=precision)
    return model


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_llama_cpp_expects_the_same_next_tokens(shape: dict[str, Any], tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("llama_cpp.py"))
    model = export(tmp_path / "model.gguf", **shape)
    ids = [[TOKENIZER.eot_id, *map(int, found)] for found in TOKENIZER.encode_batch(TEXTS)]
    command = [sys.executable, script, str(tmp_path / "model.gguf"), json.dumps([*ids, *TEXTS])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert sum(top is not None for top in found) > 6
    # Its own tokenizer gives the same ids, end-of-text first.
    for prompt, top in zip([*ids, *ids], found, strict=True):
        ours = model(torch.tensor([prompt]))[0, -1].log_softmax(-1)
        for token, log_probability in top or []:
            # GELU comes from a coarse table there; all else agrees to 1e-5.
            assert log_probability == pytest.approx(float(ours[token]), abs=3e-3)


@pytest.mark.parametrize("precision, error", [("f32", 0.0), ("q8_0", 1 / 127)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_number_of_the_model_is_in_the_file(
    shape: dict[str, Any], precision: Precision, error: float, tmp_path: Path
) -> None:
    model = export(tmp_path / "model.gguf", precision, **shape)
    found = gguf.GGUFReader(tmp_path / "model.gguf").tensors
    assert sum(int(tensor.n_elements) for tensor in found) == n_parameters(model.config)
    stored = np.sort(np.abs(np.concatenate([numbers(tensor) for tensor in found])))
    ours = np.concatenate([t.numpy().ravel() for t in model.state_dict().values()])
    np.testing.assert_allclose(stored, np.sort(np.abs(ours)), atol=error, rtol=0)


def numbers(tensor: Any) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).ravel()


def test_a_pattern_that_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    other = Tokenizer.from_str(TOKENIZER_JSON.decode())
    other.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d+|\D+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    model = small_model(vocab_size=TOKENIZER.vocab_size)
    with pytest.raises(DataError, match="use byte-level BPE"):
        export_gguf(model, other.to_str().encode(), tmp_path / "model.gguf", eot_id=0)


@pytest.mark.parametrize(
    "shape, message",
    [
        ({"family": "speedrun"}, "train family 'llama'"),
        ({"rope_scaling": {"kind": "llama3", "factor": 2.0}}, "use yarn"),
        (
            {"qk_norm": True, "n_experts": 3, "normalize_expert_weights": False},
            "always scales a token's expert weights",
        ),
    ],
)
def test_a_model_that_llama_cpp_does_not_know_is_refused(
    shape: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tmp_path / "model.gguf", **shape)
