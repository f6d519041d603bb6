"""Training 10.7 M parameters in bfloat16: tokens a CPU-second, against nanoGPT and transformers."""

from __future__ import annotations

from tests.bench.harness import Result
from tests.bench.throughput import ours, peak_share, peers

TARGET = 1.4
LEAST_SHARE = 0.55


def run(quick: bool) -> Result:
    """As `throughput_fp32`, all sides under autocast; not `--quick`, ours compiled too.

    `ratio` is that of the faster of our two, and `ok` whether it reaches the share of the peak of
    bfloat16 products that is asked for. Compiling is left out of the time.
    """
    batch_size, steps = (32, 2) if quick else (32, 6)
    eager = ours("bfloat16", batch_size, steps)
    theirs, missing = peers("bfloat16", batch_size, steps)
    figures = {"ours_tok_s": eager} | {f"{name}_tok_s": value for name, value in theirs.items()}
    rate = eager
    if not quick:
        figures["ours_compiled_tok_s"] = ours("bfloat16", batch_size, steps, compiled=True)
        rate = max(rate, figures["ours_compiled_tok_s"])
    share, peak = peak_share("bfloat16", rate)
    return Result(
        ratio=rate / max(theirs.values()) if theirs else None,
        target=TARGET,
        ok=share >= LEAST_SHARE,
        figures=figures | {"peak_gflop_s": peak},
        quality={"peak_share": share, "least": LEAST_SHARE, "batch_tokens": batch_size * 256},
        peers_missing=missing,
    )
