"""Greedy text at batch 1 of 12.6 M parameters, against transformers and llama.cpp's Q8_0."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch

from llm.config_model import ModelConfig
from llm.config_tokenizer import TokenizerConfig
from llm.decoder import Decoder
from llm.export import export_huggingface
from llm.export_gguf import export_gguf
from llm.families import build_model
from llm.generate import generate
from llm.quantize import int8_model
from llm.sampling import SamplingConfig
from llm.tokenizer import train_tokenizer
from tests.bench.harness import PeersMissing, Result, call, cpu_seconds

TARGET = 1.6
INT8_TARGET, LLAMA_CPP_TARGET = 3.0, 0.5
"""For int8 over transformers in fp32, and over llama.cpp's Q8_0."""
SHAPE = ModelConfig(
    vocab_size=2560, context_length=256, n_layers=6, d_model=384, n_heads=6, qk_norm=True
)
PROMPT = [0, 17, 230, 5, 900, 41, 2000, 77]
LENGTH = SHAPE.context_length - len(PROMPT)
PEERS = {"transformers": "model", "llama_cpp": "model.gguf"}
"""What each reads."""


def run(quick: bool) -> Result:
    """CPU seconds of a text that fills the context, its prompt of 8 tokens included.

    `ratio` is of fp32 over transformers with its cache, the same weights on both sides. All sides
    take turns, each several times in a turn; its least time counts.
    """
    torch.set_num_threads(1)
    model = _model()
    sides = {"ours": model, "ours_int8": int8_model(model)}
    seconds, tokens, missing = _take_turns(sides, *((2, 1) if quick else (4, 4)))
    same = {f"{side}_as_naive": _as_naive(sides[side], tokens[side]) for side in sides}
    if "transformers" in tokens:
        same["as_transformers"] = tokens["ours"] == tokens["transformers"]
    ratios = {
        "ratio": seconds["transformers"] / seconds["ours"],
        "int8_ratio": seconds["transformers"] / seconds["ours_int8"],
        "llama_cpp_ratio": seconds["llama_cpp"] / seconds["ours_int8"],
    }
    known = {key: value for key, value in ratios.items() if value < inf}
    speeds = {f"{side}_tok_s": LENGTH / seconds[side] for side in seconds if seconds[side] < inf}
    targets = {"int8_target": INT8_TARGET, "llama_cpp_target": LLAMA_CPP_TARGET}
    return Result(
        ratio=known.pop("ratio", None),
        target=TARGET,
        ok=all(same.values()),
        figures=speeds | known | targets,
        quality=same,
        peers_missing=missing,
    )


def _take_turns(
    sides: Mapping[str, Decoder], turns: int, repeats: int
) -> tuple[dict[str, float], dict[str, list[int]], str | None]:
    """Least seconds and the tokens of each side and peer, and what to do for peers not there."""
    seconds = dict.fromkeys([*sides, *PEERS], inf)
    tokens: dict[str, list[int]] = {}
    missing = None
    with tempfile.TemporaryDirectory() as name:
        _export(sides["ours"], Path(name))
        for _ in range(turns):
            for side, model in sides.items():
                _write(model)  # As on the other sides, the first does not count.
                spent, tokens[side] = cpu_seconds(lambda model=model: _write(model), repeats)
                seconds[side] = min(seconds[side], spent)
            for library, file in PEERS.items():
                try:
                    found = _peer(library, Path(name) / file, repeats)
                    seconds[library] = min(seconds[library], found["seconds"])
                    tokens[library] = found["tokens"]
                except PeersMissing as error:
                    missing = str(error)
    return seconds, tokens, missing


@torch.no_grad()
def _model() -> Decoder:
    """Random, also where a new model has zeros."""
    model = build_model(SHAPE).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, SHAPE.d_model**-0.5, generator=generator)
    return model


def _export(model: Decoder, folder: Path) -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    tokenizer_json = train_tokenizer([text], TokenizerConfig(vocab_size=SHAPE.vocab_size))
    export_huggingface(model, tokenizer_json, folder / "model", eot_id=0)
    export_gguf(model, tokenizer_json, folder / "model.gguf", eot_id=0, precision="q8_0")


def _write(model: Decoder) -> list[int]:
    (made,) = generate(model, [PROMPT], SamplingConfig(max_new_tokens=LENGTH, temperature=0))
    return list(made.tokens)


def _peer(library: str, path: Path, repeats: int) -> dict[str, Any]:
    found = call("generate", library, str(path), json.dumps(PROMPT), str(LENGTH), str(repeats))
    if "missing" in found:
        raise PeersMissing(found["missing"])
    return found


@torch.no_grad()
def _as_naive(model: Decoder, tokens: list[int]) -> bool:
    """Whether each token is the likeliest one after those before it, all read without a cache."""
    likeliest = model(torch.tensor([PROMPT + tokens]))[0].argmax(-1)
    return likeliest[len(PROMPT) - 1 : -1].tolist() == tokens
