from __future__ import annotations

import ctypes
import platform
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pytest
import torch

from llm.config_train import TrainConfig
from llm.environment import _keep_memory, begin, rng_state, set_rng_state
from llm.errors import ConfigError
from tests.llm.small_runs import torch_settings_kept


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def drawn() -> tuple[float, float, float]:
    return torch.rand(1).item(), random.random(), float(np.random.random())


def test_generators_go_on_from_where_they_were_saved() -> None:
    begin(TrainConfig(device="cpu", threads=1))
    drawn()
    state = rng_state()
    expected = [drawn() for _ in range(3)]
    set_rng_state(state)
    assert [drawn() for _ in range(3)] == expected


def test_generators_of_a_gpu_are_left_aside_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    begin(TrainConfig(device="cpu", threads=1))
    state = rng_state() | {"cuda": torch.zeros(16, dtype=torch.uint8)}
    expected = drawn()
    set_rng_state(state)
    assert drawn() == expected


KEEPS_MEMORY = """
import psutil, torch
from llm.config_train import TrainConfig
from llm.environment import begin
begin(TrainConfig(device="cpu", threads=1))
resident = psutil.Process().memory_info
before = resident().rss
torch.ones(2**25)
print((resident().rss - before) / 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library cannot be told")
def test_freed_memory_stays_with_the_process() -> None:
    """Of a tensor of 128 MiB, which is gone."""
    told = subprocess.run([sys.executable, "-c", KEEPS_MEMORY], stdout=subprocess.PIPE, check=True)
    assert float(told.stdout) > 100


def test_a_platform_without_glibc_keeps_its_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    _keep_memory()


def test_the_same_seed_begins_with_the_same_draws() -> None:
    found = []
    for seed in (1, 1, 2):
        begin(TrainConfig(device="cpu", threads=1, seed=seed))
        found.append(drawn())
    assert found[0] == found[1] != found[2]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r'train\.device is "cuda", but torch finds none'):
        begin(TrainConfig(device="cuda"))


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, {"mode": "eager"}),
        ({"compile": True}, {"mode": "compiled"}),
        ({"checkpoint_activations": True}, {"mode": "eager"}),  # The same numbers.
        (
            {"compile": True, "checkpoint_activations": True},
            {"mode": "compiled, recomputing"},
        ),
        ({"dtype": "float16"}, {"dtype": "float16"}),
        ({"threads": 1}, {"threads": 1, "world_size": 1, "torch": torch.__version__}),
    ],
)
def test_the_environment_class_is_what_bits_depend_on(
    settings: dict[str, object], expected: dict[str, object]
) -> None:
    found = asdict(begin(TrainConfig.model_validate({"device": "cpu"} | settings)))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    "dtype, product",
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_products_are_made_in_the_numbers_of_the_config(dtype: str, product: torch.dtype) -> None:
    settings = {"device": "cpu", "threads": 1, "dtype": dtype}
    environment = begin(TrainConfig.model_validate(settings))
    with environment.autocast():
        assert torch.mm(torch.ones(4, 4), torch.ones(4, 4)).dtype == product
