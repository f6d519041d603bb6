"""Training 10.7 M parameters in bfloat16: tokens a CPU-second, against nanoGPT, litgpt, HF's."""

from __future__ import annotations

from tests.bench import throughput
from tests.bench.harness import Result


def run(quick: bool) -> Result:
    """As `throughput_fp32`, all sides under autocast.

    With AMX a product of matrices takes a tenth of float32's time, so that the share of the peak
    that is asked for, which was set on a processor without, is out of reach of any side.
    """
    return throughput.run("bfloat16", target=1.4, least_share=0.55, quick=quick)
