from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from llm import files
from llm.config_model import n_parameters
from llm.config_optim import OptimConfig
from llm.errors import ConfigError, DataError
from llm.preflight import Preflight, preflight
from llm.train import train
from tests.llm.small_runs import small_spec, small_texts, torch_settings_kept


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def levels(found: Preflight) -> dict[str, str]:
    return {finding.about: finding.level for finding in found.findings}


def test_a_run_that_fits_passes_and_its_findings_are_written(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    found = preflight(spec)
    assert set(levels(found).values()) == {"ok"}
    assert set(levels(found)) == {
        *("vocabulary", "data", "epochs", "memory", "disk", "rehearsal", "time")
    }
    assert found.minutes == pytest.approx(found.seconds_per_step * spec.train.steps / 60)
    written = json.loads(files.read_bytes(f"{spec.run_url}/preflight.json"))
    assert written["seconds_per_step"] == found.seconds_per_step
    assert len(written["findings"]) == len(found.findings)


def test_looking_first_changes_nothing_about_the_run(tmp_path: Path) -> None:
    looked, plain = small_spec(tmp_path / "a", steps=4), small_spec(tmp_path / "b", steps=4)
    preflight(looked)
    sha256 = [train(spec)["weights"]["sha256"] for spec in (looked, plain)]
    assert sha256[0] == sha256[1]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_checkpoint_is_as_large_as_foretold(tmp_path: Path, optimizer: Any, tied: bool) -> None:
    spec = small_spec(tmp_path, steps=2, optim=OptimConfig(optimizer=optimizer))
    model = spec.model.model_copy(update={"tie_embeddings": tied, "d_ff": 512})
    spec = spec.model_copy(update={"model": model})
    found = preflight(spec)
    train(spec)
    folder = files.local_path(spec.run_url) / "checkpoints/00000002"
    tensors = [folder / "model.safetensors", folder / "optimizers.safetensors"]
    assert sum(path.stat().st_size for path in tensors) == pytest.approx(
        found.checkpoint_bytes, rel=0.03
    )
    assert found.n_parameters == n_parameters(model.model_copy(update={"vocab_size": 24}))


def test_a_vocabulary_larger_than_the_tokenizers_is_remarked_on(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    spec = spec.model_copy(update={"model": spec.model.model_copy(update={"vocab_size": 64})})
    found = preflight(spec)
    assert levels(found)["vocabulary"] == "warn"
    assert "40 rows will never be used" in str(found.findings[0])


def test_more_than_four_passes_over_the_data_are_remarked_on(tmp_path: Path) -> None:
    assert levels(preflight(small_spec(tmp_path, steps=400)))["epochs"] == "warn"


def test_a_step_that_takes_more_windows_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"181 windows of 16, but one step takes 200"):
        preflight(small_spec(tmp_path, batch_size=40, accumulation_steps=5))


def test_a_dataset_without_a_validation_split_is_refused(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, small_texts(60))
    table = pq.read_table(tmp_path / "dataset.parquet")
    pq.write_table(table.filter(pc.equal(table["split"], "train")), tmp_path / "dataset.parquet")
    with pytest.raises(DataError, match="no document of split 'validation'"):
        preflight(spec)


def test_a_machine_with_too_little_memory_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100_000))
    monkeypatch.setattr("llm.preflight.rehearse", None)
    message = r"memory: about 1 MiB needed for 1 windows.*checkpoint_activations"
    with pytest.raises(ConfigError, match=message):
        preflight(small_spec(tmp_path))


def test_processes_that_share_a_model_are_looked_at_with_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, ddp, fsdp2 = (
        preflight(small_spec(tmp_path / f"{kind}{n}", parallel=kind), n)
        for n, kind in ((1, "auto"), (2, "ddp"), (2, "fsdp2"))
    )
    assert fsdp2.memory_bytes < ddp.memory_bytes < alone.memory_bytes
    found = json.loads((tmp_path / "ddp2" / "run" / "micro_batch.json").read_bytes())
    assert found["windows"] == 2  # Of four, so that the run takes what was rehearsed.
    assert (levels(fsdp2)["rehearsal"], fsdp2.minutes) == ("ok", None)
    with pytest.raises(ConfigError, match="3 processes cannot share"):
        preflight(small_spec(tmp_path / "odd"), 3)
    # What one process cannot hold, two that shard it can.
    room = SimpleNamespace(available=(ddp.memory_bytes + fsdp2.memory_bytes) / 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: room)
    with pytest.raises(ConfigError, match="memory: about"):
        preflight(small_spec(tmp_path / "c", parallel="ddp", micro_batch_size=2), 2)
    preflight(small_spec(tmp_path / "d", parallel="fsdp2", micro_batch_size=2), 2)


def test_a_disk_without_room_for_the_checkpoints_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(ConfigError, match=r"disk: checkpoints take 1 MiB.*keep_checkpoints"):
        preflight(small_spec(tmp_path))


def test_a_rehearsal_that_diverges_is_refused(tmp_path: Path) -> None:
    wild = OptimConfig(
        optimizer="adamw", learning_rate=1e38, head_learning_rate=1e38, warmup_steps=0
    )
    spec = small_spec(tmp_path, optim=wild)
    with pytest.raises(ConfigError, match=r"rehearsal: losses .*lower the rates"):
        preflight(spec)
    assert not files.exists(f"{spec.run_url}/run.json")
