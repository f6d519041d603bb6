from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

from llm import checkpoint
from llm.parallel import World
from tests.llm.parallel_runs import SAVED_AT, STEPS, Job, record, write_jobs
from tests.llm.small_runs import torch_settings_kept

ROOT = Path(__file__).parents[2]
KINDS = ("ddp", "fsdp2")
OPTIMIZERS = ("adamw", "muon")
OTHERS = (("experts", "adamw"), ("experts", "muon"), ("gpt2", "adamw"), ("speedrun", "muon"))


@pytest.fixture(autouse=True, scope="module")
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)
        yield


def torchrun(n_processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module in that many processes of this machine, and waits for its end."""
    how = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}", "-m"]
    return subprocess.run(
        [sys.executable, *how, *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of one process and of two, from the start and from each other's checkpoints."""
    folder = tmp_path_factory.mktemp("parallel")

    def job(kind: Any, optimizer: str, start: str = "", model: str = "llama") -> Job:
        name = f"{optimizer}-{kind}-from-{start}" if start else f"{optimizer}-{kind}"
        name = name if model == "llama" else f"{model}-{name}"
        (folder / name).mkdir()
        begins = str(folder / f"{optimizer}-{start}") if start else None
        return Job(kind, str(folder / name), begins, optimizer, model)

    one = [job("none", optimizer) for optimizer in OPTIMIZERS]
    one += [job("none", optimizer, model=model) for model, optimizer in OTHERS]
    record(one, World.single())
    two = [job(kind, optimizer) for optimizer in OPTIMIZERS for kind in KINDS]
    two += [job(kind, optimizer, "none") for optimizer in OPTIMIZERS for kind in KINDS]
    two += [job("fsdp2", "adamw", "ddp"), job("fsdp2", "adamw", "fsdp2")]
    two += [job(kind, optimizer, model=model) for model, optimizer in OTHERS for kind in KINDS]
    write_jobs(folder / "jobs.json", two)
    done = torchrun(2, "tests.llm.parallel_runs", str(folder / "jobs.json"))
    assert done.returncode == 0, done.stderr
    one = [job("none", optimizer, kind) for optimizer in OPTIMIZERS for kind in KINDS]
    record(one, World.single())
    return folder


def rows(trained: Path, name: str) -> list[dict[str, float]]:
    return json.loads((trained / name / "rows.json").read_text())


def agree(
    found: list[dict[str, float]],
    expected: list[dict[str, float]],
    optimizer: str,
    losses: float = 1e-6,
) -> None:
    """Losses to 1e-6, norms nearly. Muon turns a last digit that flips into a bfloat16 that does,
    and norms notice."""
    norms = {"adamw": 1e-5, "muon": 1e-4}[optimizer]
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], rel=losses), f"at step {step}"
        assert one["norm"] == pytest.approx(other["norm"], rel=max(norms, losses)), (
            f"at step {step}"
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_losses_and_gradient_norms_of_one(
    trained: Path, kind: str, optimizer: str
) -> None:
    expected = rows(trained, f"{optimizer}-none")
    assert expected[0]["loss"] != expected[-1]["loss"]
    assert any(row["norm"] > 0.5 for row in expected)  # Clipping takes part.
    agree(rows(trained, f"{optimizer}-{kind}"), expected, optimizer)


@pytest.mark.parametrize("model, optimizer", OTHERS)
@pytest.mark.parametrize("kind", KINDS)
def test_so_do_they_with_models_of_every_family(
    trained: Path, kind: str, model: str, optimizer: str
) -> None:
    expected = rows(trained, f"{model}-{optimizer}-none")
    # A router may send a token elsewhere for a bfloat16 that flips.
    losses = {"experts": 1e-4, "speedrun": 1e-5}.get(model, 1e-6) if optimizer == "muon" else 1e-6
    agree(rows(trained, f"{model}-{optimizer}-{kind}"), expected, optimizer, losses)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_two_processes_goes_on_in_one_and_the_other_way_round(
    trained: Path, kind: str, optimizer: str
) -> None:
    rest = rows(trained, f"{optimizer}-none")[SAVED_AT:]
    assert len(rest) == STEPS - SAVED_AT
    agree(rows(trained, f"{optimizer}-none-from-{kind}"), rest, optimizer)
    agree(rows(trained, f"{optimizer}-{kind}-from-none"), rest, optimizer)


@pytest.mark.parametrize("start", KINDS)
def test_how_a_model_is_held_may_change_between_checkpoints(trained: Path, start: str) -> None:
    rest = rows(trained, "adamw-none")[SAVED_AT:]
    agree(rows(trained, f"adamw-fsdp2-from-{start}"), rest, "adamw")


def test_a_resume_in_the_same_world_is_exact(trained: Path) -> None:
    rest = rows(trained, "adamw-fsdp2")[SAVED_AT:]
    assert rows(trained, "adamw-fsdp2-from-fsdp2") == rest


def test_each_rank_writes_its_own_rows_of_sharded_tensors(trained: Path) -> None:
    folder = trained / "adamw-fsdp2" / "checkpoints" / f"{SAVED_AT:08d}"
    shards = {
        f"{part}-0000{i}-of-00002.safetensors" for part in ("model", "optimizers") for i in (1, 2)
    }
    assert {path.name for path in folder.iterdir()} == shards | {
        "optimizers.safetensors",
        "state.json",
        "index.json",
    }
    sizes = [(folder / f"optimizers-0000{i}-of-00002.safetensors").stat().st_size for i in (1, 2)]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("kind", ["none", "fsdp2"])
def test_torchs_own_reader_of_sharded_safetensors_agrees_with_ours(
    trained: Path, kind: str
) -> None:
    found = checkpoint.latest(str(trained / f"adamw-{kind}"))
    assert found is not None
    loaded = {name: torch.zeros_like(tensor) for name, tensor in found.state["model"].items()}
    dcp.load(loaded, storage_reader=HuggingFaceStorageReader(found.url), no_dist=True)
    for name, tensor in found.state["model"].items():
        assert torch.equal(loaded[name], tensor), name
