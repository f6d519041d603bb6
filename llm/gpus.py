"""What accelerators can do at most, from their makers' data sheets. No torch here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from llm.errors import ConfigError


@dataclass(frozen=True)
class Gpu:
    """A device: dense bfloat16 products accumulated in float32, its memory and its bandwidth."""

    name: str
    flops: float
    """Operations a second at most, without sparsity."""
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second at most between memory and chip."""


def _gpu(name: str, tflops: float, gigabytes: float, gb_per_second: float) -> Gpu:
    return Gpu(name, tflops * 1e12, gigabytes * 1e9, gb_per_second * 1e9)


GPUS = {
    "b200": _gpu("B200 SXM", 2250, 180, 8000),  # HGX B200: a eighth of the eight.
    "h200": _gpu("H200 SXM", 989.4, 141, 4800),
    "h100": _gpu("H100 SXM", 989.4, 80, 3350),
    "h100-pcie": _gpu("H100 PCIe", 756, 80, 2000),
    "mi300x": _gpu("MI300X", 1307.4, 192, 5300),
    "a100": _gpu("A100 SXM 80 GB", 312, 80, 2039),
    "a100-40gb": _gpu("A100 SXM 40 GB", 312, 40, 1555),
    "l40s": _gpu("L40S", 362, 48, 864),
    "rtx-5090": _gpu("RTX 5090", 209.5, 32, 1792),  # Blackwell whitepaper, float32 accumulation.
    "rtx-4090": _gpu("RTX 4090", 165.2, 24, 1008),  # Ada whitepaper, likewise.
    "l4": _gpu("L4", 121, 24, 300),
    "rtx-3090": _gpu("RTX 3090", 71, 24, 936),  # Ampere GA102 whitepaper, likewise.
}
"""By the name that an option takes."""


def find_gpu(name: str) -> Gpu:
    """The device of that name, or a made one: `TFLOPS:GB:GB/s`, such as 0.38:16:20.

    Raises ConfigError naming the nearest.
    """
    key = name.lower().replace(" ", "-").replace("_", "-")
    found = GPUS.get(key) or GPUS.get(f"rtx-{key}") or GPUS.get(key.removesuffix("-80gb"))
    if found is not None:
        return found
    if ":" in name:
        try:
            tflops, gigabytes, gb_per_second = (float(part) for part in name.split(":"))
        except ValueError:
            tflops = gigabytes = gb_per_second = 0.0
        if min(tflops, gigabytes, gb_per_second) <= 0:
            raise ConfigError(f"{name!r} is no device: expected TFLOPS:GB:GB/s, as in 0.38:16:20")
        return _gpu(name, tflops, gigabytes, gb_per_second)
    nearest = difflib.get_close_matches(key, GPUS, 1, 0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"known: {', '.join(GPUS)}."
    raise ConfigError(
        f"no GPU {name!r} is known; {hint} Any other is given as TFLOPS:GB:GB/s, as in 0.38:16:20"
    )
