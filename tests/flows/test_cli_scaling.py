from __future__ import annotations

import re
from pathlib import Path

import pytest

from flows.cli import main
from flows.cli_scaling import show_scaling
from llm.scaling import Prediction, Scaling, Trained
from llm.scaling_fit import Point
from llm.scaling_law import CHINCHILLA
from tests.llm.small_runs import small_texts


def shown(low: float, high: float) -> Scaling:
    runs = tuple(Trained(d, 16 * d, Point(10_000 * d, 10**6, 3.0 / d)) for d in (1, 2))
    return Scaling(runs, CHINCHILLA, Prediction(30_000, 10**6, 2.0, low, high), check=None)


def test_a_prediction_has_a_range_only_where_a_run_could_be_left_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_scaling(shown(low=1.9, high=2.1))
    assert "2.0000 (1.9000 to 2.1000 with one run left out)" in capsys.readouterr().out
    show_scaling(shown(low=2.0, high=2.0))
    assert "left out" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_law_is_fitted_on_a_text_file_and_held_against_a_larger_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "input.txt"
    text.write_text("\n".join(small_texts(600)))
    to = tmp_path / "scaling"
    sizes = ["--depths", "1,2,3", "--tokens", "20k,40k", "--width-per-layer", "16"]
    with pytest.raises(SystemExit) as ended:
        main(["scaling", "--text", str(text), *sizes, "--to", str(to), "--check"])
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert re.search(r"loss = .* / N\^.* / D\^", out)
    assert re.search(r"reached: [\d.]+, [+-][\d.]+% off", out)
    assert "<svg" in (to / "scaling.html").read_text()
