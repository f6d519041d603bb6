"""Training 10.7 M parameters in float32: tokens a CPU-second, against nanoGPT, litgpt, HF's."""

from __future__ import annotations

from tests.bench import throughput
from tests.bench.harness import Result


def run(quick: bool) -> Result:
    """A step is forward, backward, clip and optimizer, on 8,192 tokens (`throughput.run`).

    Ours is the llama family with its defaults, Muon among them, against AdamW alone elsewhere.
    """
    return throughput.run("float32", target=1.0, least_share=0.0, quick=quick)
