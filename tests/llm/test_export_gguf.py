from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from llm.bpe_fast import ONE_DIGIT_PATTERN
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


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_llama_cpp_expects_the_same_next_tokens(shape: dict[str, Any], tmp_path: Path) -> None:
    model = export(tmp_path / "model.gguf", **shape)
    assert_llama_cpp_agrees(model, TOKENIZER, tmp_path / "model.gguf")


def split_by(pattern: str) -> bytes:
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON.decode())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer.to_str().encode()


def split_as_gpt2() -> bytes:
    tokenizer = Tokenizer.from_str(TOKENIZER_JSON.decode())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer.to_str().encode()


def with_words_whole() -> bytes:
    """Words that no merge makes are tokens, and taken as such."""
    file = json.loads(TOKENIZER_JSON)
    file["model"]["ignore_merges"] = True
    for word in ("ĠSEA", "Ġit", "Ġsay", "Runs", "not"):
        file["model"]["vocab"].setdefault(word, len(file["model"]["vocab"]))
    return json.dumps(file).encode()


@pytest.mark.parametrize(
    "tokenizer_json",
    [split_by(ONE_DIGIT_PATTERN), split_as_gpt2(), with_words_whole()],
    ids=["one digit", "gpt2", "words whole"],
)
def test_llama_cpp_splits_text_as_the_tokenizer_does(tokenizer_json: bytes, tmp_path: Path) -> None:
    tokenizer = OurTokenizer.from_bytes(tokenizer_json)
    model = small_model(vocab_size=tokenizer.vocab_size, context_length=256, d_model=64).eval()
    export_gguf(model, tokenizer_json, tmp_path / "model.gguf", eot_id=tokenizer.eot_id)
    assert_llama_cpp_agrees(model, tokenizer, tmp_path / "model.gguf")


@torch.no_grad()
def assert_llama_cpp_agrees(model: Decoder, tokenizer: OurTokenizer, path: Path) -> None:
    """The same likeliest next tokens after ids, and after the texts that it splits by itself."""
    if find_spec("xllamacpp") is None:
        pytest.skip("there is no wheel of xllamacpp for this machine")
    script = str(Path(__file__).with_name("llama_cpp.py"))
    ids = [[tokenizer.eot_id, *map(int, found)] for found in tokenizer.encode_batch(TEXTS)]
    command = [sys.executable, script, str(path), json.dumps([*ids, *TEXTS])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert sum(top is not None for top in found) > 6
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


def other_tokenizer(change: Callable[[Tokenizer], object]) -> bytes:
    made = Tokenizer.from_str(TOKENIZER_JSON.decode())
    change(made)
    return made.to_str().encode()


def lower_first(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Lowercase()


CHARACTERS = train_tokenizer([TEXT], TokenizerConfig(kind="characters"))


@pytest.mark.parametrize(
    "tokenizer_json, message",
    [
        (split_by(r"\d+|\D+"), 'tokenizer.kind = "bpe"'),
        (other_tokenizer(lower_first), 'tokenizer.kind = "bpe"'),
        (other_tokenizer(lambda made: made.add_tokens(["river"])), 'tokenizer.kind = "bpe"'),
        (CHARACTERS, 'tokenizer.kind = "bpe"'),
        (b"{}", "not a tokenizer.json"),
        (train_tokenizer([TEXT], TokenizerConfig(vocab_size=340)), "the model knows 321"),
    ],
)
def test_a_tokenizer_that_llama_cpp_or_the_model_does_not_know_is_refused(
    tokenizer_json: bytes, message: str, tmp_path: Path
) -> None:
    model = small_model(vocab_size=TOKENIZER.vocab_size + 1)
    with pytest.raises(DataError, match=message):
        export_gguf(model, tokenizer_json, tmp_path / "model.gguf", eot_id=0)
    assert not (tmp_path / "model.gguf").exists()


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


def test_without_the_package_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"pip install 'loam\[gguf\]'"):
        export(tmp_path / "model.gguf")
