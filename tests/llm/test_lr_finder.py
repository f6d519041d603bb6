from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import files
from llm.config_optim import OptimConfig
from llm.errors import DataError
from llm.lr_finder import Tried, advice, main, range_test
from tests.llm.small_runs import small_spec, torch_settings_kept


@pytest.fixture(autouse=True)
def _kept() -> Iterator[None]:
    with torch_settings_kept():
        yield


def curve(steepest: float) -> list[Tried]:
    """A loss that falls from 4 to 2, fastest at a factor, and rises again far beyond."""
    factors = [10 ** (i / 10 - 3) for i in range(70)]
    return [
        Tried(x, 3 - math.tanh(2 * math.log10(x / steepest)) + max(0, math.log10(x / steepest) - 3))
        for x in factors
    ]


@pytest.mark.parametrize("steepest", [0.1, 1.0, 10.0])
def test_the_advice_is_where_the_loss_falls_fastest(steepest: float) -> None:
    assert advice(curve(steepest)) == pytest.approx(steepest, rel=0.3)


def test_a_loss_that_never_falls_gives_no_advice() -> None:
    with pytest.raises(DataError, match="did not fall at any rate"):
        advice([Tried(1.0, 3.0), Tried(2.0, 3.1)])


def test_the_advice_does_not_depend_on_what_the_rates_were(tmp_path: Path) -> None:
    def advised(scale: float) -> float:
        rates = {
            name: scale * getattr(OptimConfig(), name)
            for name in ("learning_rate", "embedding_learning_rate", "head_learning_rate")
        }
        optim = OptimConfig(optimizer="adamw", **rates)
        spec = small_spec(tmp_path / f"{scale}", optim=optim)
        return scale * advice(range_test(spec, lowest=1e-3 / scale, highest=1e3 / scale))

    assert advised(1.0) == pytest.approx(advised(30.0), rel=0.5)


def test_the_test_ends_once_the_loss_has_risen(tmp_path: Path) -> None:
    tried = range_test(small_spec(tmp_path), steps=120, lowest=1e-2, highest=1e6)
    assert len(tried) < 120
    assert tried[-1].loss > min(each.loss for each in tried) + 0.5
    assert [each.factor for each in tried] == sorted(each.factor for each in tried)


def test_the_command_draws_the_curve_and_says_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_spec(tmp_path)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    assert main([str(path), "--steps", "60"]) == 0
    said = capsys.readouterr().out
    assert "<- advised" in said
    assert "[train.optim]" in said
    assert "muon_learning_rate = " in said
    written = json.loads(files.read_bytes(f"{spec.run_url}/lr_finder/curve.json"))
    assert len(written) <= 60
    assert not files.exists(f"{spec.run_url}/run.json")  # It is no run.


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.json")]) == 2
    assert "there is no spec" in capsys.readouterr().err
