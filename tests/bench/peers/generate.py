"""Greedy text at batch 1 on one thread: generate.py LIBRARY PATH PROMPT LENGTH REPEATS.

LIBRARY is transformers, which reads a folder, or llama_cpp (by `xllamacpp`), which reads a GGUF
file. PROMPT is a JSON list of ids. Prints the least CPU seconds that LENGTH tokens took, the prompt
included, and the tokens where the library tells them; `missing`, where it is not installed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable


def transformers(path: str, prompt: list[int], length: int) -> Callable[[], list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = torch.tensor([prompt])
    settings = {"do_sample": False, "max_new_tokens": length, "eos_token_id": None}

    def write() -> list[int]:
        written = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
        return written[0, len(prompt) :].tolist()

    return write


def llama_cpp(path: str, prompt: list[int], length: int) -> Callable[[], None]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.n_parallel = 1
    params.verbosity = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    request = {
        "prompt": prompt, "max_tokens": length, "temperature": 0, "samplers": ["top_k"], "top_k": 1,
        "ignore_eos": True, "cache_prompt": False,
    }  # fmt: skip

    def write() -> None:
        usage = server.handle_completions(request)["usage"]
        if usage["completion_tokens"] != length:
            raise SystemExit(f"llama.cpp made {usage['completion_tokens']} tokens, not {length}")

    return write


def main() -> None:
    library, path, prompt, length, repeats = sys.argv[1:]
    make = {"transformers": transformers, "llama_cpp": llama_cpp}[library]
    try:
        write = make(path, json.loads(prompt), int(length))
    except ImportError as error:
        print(json.dumps({"missing": f"no {error.name} in .venv-peers: run `make bench-deps`"}))
        return
    write()  # The first allocates.
    best, tokens = float("inf"), None
    for _ in range(int(repeats)):
        start = time.process_time()
        tokens = write()
        best = min(best, time.process_time() - start)
    print(json.dumps({"seconds": best, "tokens": tokens}))


if __name__ == "__main__":
    main()
