"""Greedy text by llama.cpp: `python llama_cpp.py FILE PROMPT N`. Imports no Loam."""

from __future__ import annotations

import json
import sys

import xllamacpp
from xllamacpp import ggml_type, llama_flash_attn_type


def main(path: str, prompt: str, n_tokens: str) -> None:
    """Prints what it adds to the prompt, ids or text as JSON, everything in fp32."""
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    request = {"prompt": json.loads(prompt), "temperature": 0, "max_tokens": int(n_tokens)}
    answer = xllamacpp.Server(params).handle_completions({**request, "ignore_eos": True})
    print(json.dumps(answer["choices"][0]["text"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
