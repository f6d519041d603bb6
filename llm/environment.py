"""The machine a run trains on: what must be equal for equal bits, and how to set it up."""

from __future__ import annotations

import ctypes
import os
import random
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.amp.autocast_mode import autocast

from llm.config_train import TrainConfig
from llm.errors import ConfigError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


@dataclass(frozen=True)
class Environment:
    """What must be equal for two runs to agree bit for bit."""

    device: str
    processor: str
    isa: str
    threads: int
    world_size: int
    torch: str
    mode: Literal["eager", "compiled", "compiled, recomputing"]
    """A compiler fuses a backward pass that computes activations again in another way."""
    dtype: Literal["float32", "bfloat16", "float16"]

    def autocast(self) -> autocast:
        """The numbers of matrix products; weights, gradients and the loss stay float32."""
        dtype = torch.float16 if self.dtype == "float16" else torch.bfloat16
        return autocast(self.device, dtype=dtype, enabled=self.dtype != "float32")


def begin(config: TrainConfig) -> Environment:
    """Sets the process up (device, threads, determinism, seeds) and says what it is.

    Raises ConfigError when the config asks for a device that is not there.
    """
    # cuBLAS is deterministic only with a fixed workspace, chosen before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It finds what is read before it is written, and costs up to a tenth of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_memory()
    torch.set_num_threads(config.threads)
    random.seed(config.seed)
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise ConfigError('train.device is "cuda", but torch finds none: use "auto" or "cpu"')
    if cuda and config.device != "cpu":
        device, processor = "cuda", torch.cuda.get_device_name()
        major, minor = torch.cuda.get_device_capability()
        isa, native_bf16 = f"sm_{major}{minor}", major >= 8
    else:
        able = torch.cpu.get_capabilities()
        device, processor = "cpu", str(able.get("cpu_name", able["architecture"]))
        native_bf16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
        isa = torch.backends.cpu.get_cpu_capability() + ("+BF16" if native_bf16 else "")
    auto: Literal["float32", "bfloat16"] = "bfloat16" if native_bf16 else "float32"
    return Environment(
        device=device,
        processor=processor,
        isa=isa,
        threads=config.threads,
        world_size=1,
        torch=str(torch.__version__),
        mode=_mode(config),
        dtype=auto if config.dtype == "auto" else config.dtype,
    )


def _keep_memory() -> None:
    """Let freed memory stay with the process, where its C library can be told (glibc).

    Otherwise each tensor above 32 MiB is fetched from the kernel and cleared again in every step: a
    tenth of a step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _mode(config: TrainConfig) -> Literal["eager", "compiled", "compiled, recomputing"]:
    if not config.compile:
        return "eager"
    return "compiled, recomputing" if config.checkpoint_activations else "compiled"


def rng_state() -> dict[str, Any]:
    """The state of every global generator that this process draws from: values and tensors.

    Of CUDA's generators that is the one of its own device, however many there are.
    """
    numpy = np.random.get_state(legacy=False)
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": numpy | {"state": numpy["state"] | {"key": numpy["state"]["key"].tolist()}},
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`; a GPU's generator is left aside where only one side has one."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
