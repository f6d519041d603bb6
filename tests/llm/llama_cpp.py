"""What llama.cpp makes of prompts: `python llama_cpp.py FILE PROMPTS`. Imports no Loam."""

from __future__ import annotations

import json
import sys

import xllamacpp
from xllamacpp import ggml_type, llama_flash_attn_type


def main(path: str, prompts: str) -> None:
    """Prints, for each prompt (ids or a text), the ten likeliest next ids and their logs.

    Everything is in fp32. Null for a prompt whose likeliest next token ends the text, or is half a
    character: it reports none then.
    """
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 256
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = ggml_type.GGML_TYPE_F32
    params.flash_attn_type = llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    found = []
    for prompt in json.loads(prompts):
        request = {"prompt": prompt, "temperature": 0, "max_tokens": 1, "logprobs": 10}
        choice = server.handle_completions(request)["choices"][0]
        top = choice["logprobs"] and choice["logprobs"]["content"][0]["top_logprobs"]
        found.append(top and [[one["id"], one["logprob"]] for one in top])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
