"""The most operations a second that a device can do: what a run's utilization is a share of."""

from __future__ import annotations

import re
import time

import torch

from llm.environment import Environment
from llm.gpus import GPUS

CPU_SIZE, GPU_SIZE = 512, 8192
"""Width of the matrices that a peak is measured with: large enough that it grows no more."""
PRODUCTS = 5

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def peak_flops(environment: Environment) -> float:
    """Of one process's device, in the numbers that the run multiplies.

    From the maker's data sheet where it is a known GPU that multiplies 16-bit numbers, else the
    best of a few products of large matrices, on as many threads as the run has.
    """
    if environment.device == "cuda" and environment.dtype != "float32":
        name = environment.processor.lower()
        named = [gpu for gpu in GPUS.values() if _is(gpu.name, name)]
        if named:
            return named[0].flops
    return measured_peak(environment)


def _is(model: str, name: str) -> bool:
    """Whether a device that calls itself `name` is of that model: "H100 SXM", "nvidia h100 ..."."""
    brand, *kind = model.lower().split()
    pcie = "pcie" in kind
    numbers = [word for word in kind if word.isdigit()]
    return (
        brand in re.split(r"[\s-]+", name)
        and pcie == ("pcie" in name)
        and all(word in name for word in numbers)
    )


def measured_peak(environment: Environment) -> float:
    """Of the best of a few products of square matrices."""
    size = GPU_SIZE if environment.device == "cuda" else CPU_SIZE
    a, b = (
        torch.ones(size, size, dtype=_DTYPES[environment.dtype], device=environment.device)
        for _ in range(2)
    )
    best = float("inf")
    for _ in range(PRODUCTS):
        _wait(environment)
        begun = time.perf_counter()
        torch.mm(a, b)
        _wait(environment)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def _wait(environment: Environment) -> None:
    if environment.device == "cuda":
        torch.cuda.synchronize()
