from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.cli_size import parse_amount
from llm.errors import ConfigError
from llm.presets import PRESETS


def loam(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def sized(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = loam(capsys, "size", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    "what, name",
    [("7b", "llama-2-7b"), ("124m", "gpt2"), ("GPT2", "gpt2"), ("llama-2-7b", "llama-2-7b"),
     ("8.03e9", "llama-3-8b"), ("30m", "depth 5"), ("depth=12", "depth 12"), ("d12", "depth 12")],
)  # fmt: skip
def test_a_model_is_named_in_many_ways(
    capsys: pytest.CaptureFixture[str], what: str, name: str
) -> None:
    made = sized(capsys, what)
    assert made["name"] == name
    if name in PRESETS:
        assert made["parameters"] == PRESETS[name].parameters


def test_a_budget_names_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    day = sized(capsys, "--hours", "24", "--gpus", "8")
    assert day["asked"]["tokens_per_parameter"] >= 20
    assert day["asked"]["seconds"] == pytest.approx(86400)
    money = sized(capsys, "--money", "100", "--price", "2.5")
    assert money["asked"]["cost"] == pytest.approx(100)
    assert money["parameters"] < day["parameters"]


def test_a_pipelines_model_is_sized_with_its_tokenizers_vocabulary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = sized(capsys, "flows/configs/quickstart.toml")
    assert made["config"]["vocab_size"] == 4096
    assert made["name"] == "quickstart"
    assert made["asked"]["tokens"] == 300 * 16 * 256


def test_a_run_gives_the_rate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = PRESETS["llama-1m"].config
    body = {"identity": {"model": shape.model_dump(mode="json")}}
    (tmp_path / "run.json").write_text(json.dumps(body))
    (tmp_path / "metrics").mkdir()
    rows = [{"step": step, "loss": 1.0, "tokens_per_second": 5000.0} for step in (1, 2, 3)]
    (tmp_path / "metrics" / "00000001.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    made = sized(capsys, "llama-1m", "--tokens", "5m", "--like", str(tmp_path), "--gpu", "1:8:20")
    assert made["asked"]["seconds"] == pytest.approx(1000)
    code, _, err = loam(capsys, "size", "llama-1m", "--like", str(tmp_path / "x"))
    assert code == 2
    assert "there is no run" in err


def test_the_tables_say_what_the_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = loam(capsys, "size", "7b", "--gpu", "a100", "--price", "1.5",
                        "--tokens-per-day", "50m", "--years", "2")  # fmt: skip
    assert code == 0
    for words in ("6,738,415,616 parameters", "training on 1 x A100", "memory to train",
                  "serving on A100", "served over its life: 36.5 B tokens"):  # fmt: skip
        assert words in out


def test_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = loam(capsys, "size", "presets")
    assert code == 0
    assert all(name in out for name in PRESETS)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("lama",), "neither a preset"),
        ((), "say what to size"),
        (("7b", "--gpu", "h1000"), "did you mean h100"),
        (("7b", "--gpu", "abacus"), "is given as TFLOPS:GB:GB/s"),
        (("1k",), "the nearest is 1, of 4,247,776; give another vocab-size"),
        (("7b", "--hours", "24", "--tokens", "2t"), "both say how long to train"),
        (("7b", "--money", "5"), "give price"),
        (("7b", "--tokens", "many"), "expected a number"),
    ],
)
def test_what_cannot_be_sized_says_why(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = loam(capsys, "size", *arguments)
    assert code == 2
    assert said in err


def test_amounts_are_read_as_they_are_written() -> None:
    assert parse_amount("x", "124M") == 124e6
    assert parse_amount("x", "1_000") == parse_amount("x", "1,000") == 1000
    assert parse_amount("x", "2e12") == parse_amount("x", "2t")
    for wrong in ("", "0", "m", "-5", "1.2.3"):
        with pytest.raises(ConfigError):
            parse_amount("x", wrong)
