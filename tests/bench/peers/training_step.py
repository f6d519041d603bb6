"""A training step of another library's decoder of 6 layers of 384, context 256: 10.7 M parameters.

training_step.py LIBRARY DTYPE BATCH STEPS VOCAB [CHECKOUT]: LIBRARY is nanogpt (of the checkout),
litgpt or transformers. Each has the optimizer that its own training sets up; with bfloat16 its
matrix products run under autocast. Dropout is off.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LAYERS, WIDTH, HEADS, CONTEXT = 6, 384, 6, 256
RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.99), 0.1, 1.0
"""nanoGPT's character model."""

Made = tuple[torch.nn.Module, torch.optim.Optimizer, Callable[[Tensor, Tensor], Any]]


def nanogpt(vocab_size: int, checkout: str) -> Made:
    sys.path.insert(0, checkout)
    from model import GPT, GPTConfig

    config = GPTConfig(
        block_size=CONTEXT, vocab_size=vocab_size, n_layer=LAYERS, n_head=HEADS, n_embd=WIDTH,
        dropout=0.0, bias=False,
    )  # fmt: skip
    model = GPT(config)
    return model, model.configure_optimizers(DECAY, RATE, BETAS, "cpu"), lambda x, y: model(x, y)[1]


def litgpt(vocab_size: int) -> Made:
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    model = GPT(
        Config(
            block_size=CONTEXT, padded_vocab_size=vocab_size, n_layer=LAYERS, n_embd=WIDTH,
            n_head=HEADS, head_size=WIDTH // HEADS, rotary_percentage=1.0, bias=False,
            parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP",
            intermediate_size=1024,
        )
    )  # fmt: skip
    # What its pretraining takes where there is no CUDA.
    optimizer = instantiate_torch_optimizer(
        "AdamW", model.parameters(), lr=RATE, betas=BETAS, weight_decay=DECAY, fused=False
    )
    return model, optimizer, lambda x, y: chunked_cross_entropy(model(x), y)


def transformers(vocab_size: int) -> Made:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocab_size, hidden_size=WIDTH, intermediate_size=1024,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
            head_dim=WIDTH // HEADS, max_position_embeddings=CONTEXT, use_cache=False,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    # Trainer's default, adamw_torch_fused.
    optimizer = torch.optim.AdamW(model.parameters(), RATE, BETAS, weight_decay=DECAY, fused=True)
    return model, optimizer, lambda x, y: model(x, labels=x, shift_labels=y).loss


def main() -> None:
    library, dtype, batch, steps, vocab_size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    torch.set_num_threads(1)
    torch.manual_seed(1337)
    make: dict[str, Callable[..., Made]] = {
        "nanogpt": nanogpt,
        "litgpt": litgpt,
        "transformers": transformers,
    }
    model, optimizer, loss_of = make[library](vocab_size, *sys.argv[6:])
    model.train()
    tokens = torch.randint(vocab_size, (batch, CONTEXT + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    best = float("inf")
    for step in range(steps + 1):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        if step:  # The first allocates.
            best = min(best, time.process_time() - start)
    n_parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"seconds": best, "loss": loss.item(), "parameters": n_parameters}))


if __name__ == "__main__":
    main()
