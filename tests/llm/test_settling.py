from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from llm import files
from llm.config_train import TrainSpec
from llm.environment import begin
from llm.errors import ConfigError
from llm.inputs import open_inputs
from llm.metrics import read_metrics
from llm.parallel import World
from llm.process import Interrupted
from llm.run_state import fresh
from llm.settling import expected_memory, largest, settle
from llm.train import train
from tests.llm.small_runs import small_spec, torch_settings_kept
from tests.llm.test_train import stop_after


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def with_memory(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=n_bytes))


def settled(spec: TrainSpec) -> int:
    environment = begin(spec.train)
    inputs = open_inputs(spec)
    run = fresh(inputs.model_config, spec.train, environment)
    return settle(run, spec, inputs, environment, World.single())[0]


def needed(spec: TrainSpec, size: int) -> float:
    model = open_inputs(spec).model_config
    return expected_memory(spec.train, model, begin(spec.train), size).total


def test_the_whole_batch_is_taken_at_once_where_it_fits(tmp_path: Path) -> None:
    assert settled(small_spec(tmp_path, batch_size=12)) == 12


def test_else_the_half_of_it_that_fits_and_the_run_keeps_to_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_spec(tmp_path, batch_size=12)
    with_memory(monkeypatch, 1.2 * needed(spec, 3))
    assert settled(spec) == 3
    with_memory(monkeypatch, 1e12)
    assert settled(spec) == 3
    elsewhere = small_spec(tmp_path / "elsewhere", batch_size=12)
    assert settled(elsewhere) == 12


def test_a_number_that_is_given_is_taken_as_far_as_there_are_windows(tmp_path: Path) -> None:
    assert settled(small_spec(tmp_path, batch_size=12, micro_batch_size=5)) == 5
    assert settled(small_spec(tmp_path, batch_size=12, micro_batch_size=50)) == 12


def test_halving_stops_at_one() -> None:
    tried: list[int] = []
    assert largest(12, lambda size: tried.append(size) is not None) == 1
    assert tried == [12, 6, 3, 2]


def no_compiler(loss: Any) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nand a long story")

    return fail


def test_what_does_not_compile_is_trained_without_after_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", no_compiler)
    plain, failing = small_spec(tmp_path / "a"), small_spec(tmp_path / "b", compile=True)
    train(plain)
    with caplog.at_level(logging.WARNING):
        result = train(failing)
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed, the run goes on without it: No working C++ compiler found"
    ]
    assert result["environment"]["mode"] == "eager"
    losses = [[row["loss"] for row in read_metrics(spec.run_url)] for spec in (plain, failing)]
    assert losses[0] == losses[1]


def test_a_run_begun_without_the_compiler_is_not_gone_on_with_by_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        train(small_spec(tmp_path), stop_after(3))
    monkeypatch.setattr(torch, "compile", lambda loss: loss)  # Quicker than the real one.
    with pytest.raises(ConfigError, match="mode was 'eager' and is 'compiled'"):
        train(small_spec(tmp_path, compile=True))


def test_a_run_of_another_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        train(small_spec(tmp_path), stop_after(3))
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ConfigError, match=r"torch was '2\.\S+' and is '9\.9\.9'"):
        train(small_spec(tmp_path))


def test_what_was_found_to_fit_is_written_beside_the_run(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, batch_size=12)
    settled(spec)
    found = json.loads(files.read_bytes(f"{spec.run_url}/micro_batch.json"))
    assert (found["device"], found["windows"], found["micro_batch_size"]) == ("cpu", 12, 12)
