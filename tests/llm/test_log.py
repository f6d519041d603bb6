from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.config_model import ModelConfig
from llm.metrics import TIMINGS, Row, read_metrics
from llm.optim import learning_rate_scale
from llm.sizing import training_flops_per_token
from llm.train import train
from tests.llm.small_runs import small_spec, torch_settings_kept


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def test_a_row_says_what_training_did_and_what_it_took(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, peak_tflops=0.001)
    result = train(spec)
    rows = read_metrics(spec.run_url)
    looked = {"validation_loss", "bits_per_byte"}
    rates = {"lr_matrix", "lr_embedding", "lr_vector", "lr_head"}
    always = {"step", "loss", "grad_norm", "tokens", "skipped"} | rates | TIMINGS
    assert {frozenset(row) for row in rows} == {frozenset(always), frozenset(always | looked)}
    flops = training_flops_per_token(ModelConfig.model_validate(result["model"]))
    for row in rows:
        share = row["tokens_per_second"] * flops / 1e9
        assert row["mfu"] == pytest.approx(share, rel=0.01, abs=1e-4)
        assert 50 < row["memory_mib"] < 50_000
        scale = learning_rate_scale(row["step"] - 1, 24, spec.train.optim)
        assert row["lr_matrix"] == spec.train.optim.muon_learning_rate * scale
        assert row["lr_head"] == spec.train.optim.head_learning_rate * scale
    assert rows[-1]["tokens"] == result["tokens"]


def test_a_measured_peak_is_not_exceeded_by_much(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    train(spec)
    assert all(0 < row["mfu"] < 1.2 for row in read_metrics(spec.run_url))


class OutOfReach:
    def write(self, row: Row) -> None:
        raise ConnectionError("no route to host")

    def close(self) -> None:
        raise ConnectionError("no route to host")


def test_a_program_that_cannot_be_told_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = train(small_spec(tmp_path / "a"))
    monkeypatch.setattr("llm.log.open_writers", lambda spec, step: [OutOfReach()])
    found = train(small_spec(tmp_path / "b"))
    assert found["weights"]["sha256"] == expected["weights"]["sha256"]
    assert "train.log_to: ConnectionError: no route to host" in capsys.readouterr().err
