from __future__ import annotations

import pytest
import torch

from llm.environment import Environment
from llm.gpus import GPUS
from llm.peak import measured_peak, peak_flops
from tests.llm.small_runs import torch_settings_kept


def environment(device: str, processor: str, dtype: str = "bfloat16") -> Environment:
    return Environment(device, processor, "", 1, 1, "2.13.0", "eager", dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, key",
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_a_known_device_has_the_peak_of_its_data_sheet(name: str, key: str) -> None:
    assert peak_flops(environment("cuda", name)) == GPUS[key].flops


def test_a_cpus_peak_is_measured_and_no_product_of_matrices_is_much_faster() -> None:
    here = environment("cpu", "whatever", "float32")
    with torch_settings_kept():
        torch.set_num_threads(1)
        found = max(measured_peak(here) for _ in range(3))
    assert 1e9 < found < 1e13
