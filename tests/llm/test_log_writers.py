from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llm import files
from llm.errors import ConfigError
from llm.log_writers import open_writers
from llm.metrics import read_metrics
from llm.train import train
from tests.llm.small_runs import small_spec, torch_settings_kept
from tests.llm.test_train import stop_after


def test_without_names_nothing_is_written_to(tmp_path: Path) -> None:
    assert open_writers(small_spec(tmp_path), 0) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing(module: str) -> Any:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr("importlib.import_module", missing)
    spec = small_spec(tmp_path, log_to=(name,))
    with pytest.raises(ConfigError, match=rf"pip install 'loam\[{name}\]', or leave it out"):
        open_writers(spec, 0)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = loader.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_each_logged_step_once_also_after_a_stop(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with torch_settings_kept():
        spec = small_spec(tmp_path, log_to=("tensorboard",))
        with pytest.raises(Exception, match="stopped at step 11"):
            train(spec, stop_after(11))
        # The checkpoint is lost: steps 9 to 11 are made again.
        for url in files.list_urls(f"{spec.run_url}/checkpoints/00000011"):
            files.delete(url)
        train(spec)
    rows = read_metrics(spec.run_url)
    found = scalars(files.local_path(spec.run_url) / "tensorboard")
    expected = [(row["step"], row["loss"]) for row in rows]
    assert [step for step, _ in found["loss"]] == [step for step, _ in expected]
    for (_, one), (_, other) in zip(found["loss"], expected, strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    looked = [row["step"] for row in rows if "validation_loss" in row]
    assert [step for step, _ in found["bits_per_byte"]] == looked


def test_mlflow_holds_a_resumed_run_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    spec = small_spec(tmp_path, log_to=("mlflow",))
    for first in (0, 2):
        (writer,) = open_writers(spec, first)
        for step in (first + 1, first + 2):
            writer.write({"step": step, "loss": 1.0 / step})
        writer.close()
    client = mlflow.MlflowClient()
    (run,) = mlflow.search_runs(output_format="list")
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(each.step, each.value) for each in history] == [
        (step, 1.0 / step) for step in (1, 2, 3, 4)
    ]


def test_weights_and_biases_take_a_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    spec = small_spec(tmp_path, log_to=("wandb",))
    (writer,) = open_writers(spec, 0)
    writer.write({"step": 1, "loss": 1.0})
    writer.write({"step": 2, "loss": 0.5})
    writer.close()
    (log,) = (files.local_path(spec.run_url) / "wandb").rglob("*.wandb")
    until = time.monotonic() + 30
    while b"loss" not in log.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)  # Its own process writes it, and finishes some time after.
    assert b"loss" in log.read_bytes()
