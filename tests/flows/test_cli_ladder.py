from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows import cli
from tests.flows.grown import Grown
from tests.llm.small_runs import small_texts, torch_settings_kept

QUICK = ("--steps", "3", "--sample-tokens", "5", "--threads", "1")


def loam(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left, torch_settings_kept():
        cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, out, err


def test_a_text_is_climbed_on_and_each_rung_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("worms.txt").write_text(" ".join(small_texts(40)))
    code, out, err = loam(capsys, "ladder", "--text", "worms.txt", *QUICK)
    assert code == 0, err
    rows = [line.split("  ")[0] for line in out.splitlines()]
    names = ["count bigram", "neural bigram", "MLP", "GRU", "transformer"]
    start = rows.index("frequency alone")
    assert rows[start + 1 : start + 6] == names
    for name in names:
        assert f"{name} writes:" in out


def test_a_pipelines_dataset_is_climbed_on_to_its_own_model(
    grown: Grown, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = loam(capsys, "ladder", "loam.toml", *QUICK, "--seed", "3", "--json")
    assert code == 0, err
    made = json.loads(out)
    counted, learned, _, _, transformer = made["rungs"]
    assert learned["tokens"] == transformer["tokens"] <= 3 * 2 * 32
    assert counted["parameters"] == learned["parameters"]
    assert transformer["validation"]["n_tokens"] == counted["validation"]["n_tokens"]


def test_without_a_dataset_it_says_what_makes_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loam.toml").write_text(
        'name = "new"\n[[sources]]\nkind = "import"\nname = "a"\npaths = ["a.txt"]\n'
    )
    code, _, err = loam(capsys, "ladder")
    assert code == 2
    assert "no dataset/new" in err
    assert "`loam run` makes it" in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("loam.toml", "--text", "a.txt"), "both loam.toml and --text a.txt are given"),
        (("--text", "absent.txt"), "there is no text at absent.txt"),
        (("--text", ""), "the name of the text is empty"),
        (("--text", "."), "Is a directory"),
    ],
)
def test_what_cannot_be_climbed_on_is_one_line(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = loam(capsys, "ladder", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err


def test_attention_is_drawn_for_a_registered_model(
    grown: Grown,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOAM_STORE", "store")
    for name, begins in (("maps.html", b"<!doctype html>"), ("maps.png", b"\x89PNG")):
        path = tmp_path / "made" / name
        code, out, err = loam(capsys, "attention", "--text", "the river", "--to", str(path))
        assert code == 0, err
        assert out.startswith("1 layer of 2 heads, ")
        assert path.read_bytes().startswith(begins)
    assert b"What tiny 1 looks at" in (tmp_path / "made" / "maps.html").read_bytes()


def test_attention_says_which_models_there_are_what_it_writes_and_how_long_a_text_may_be(
    grown: Grown,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOAM_STORE", "store")
    code, _, err = loam(capsys, "attention", "--text", "a", "--model", "absent")
    assert (code, "there are tiny" in err) == (2, True)
    (tmp_path / "file").touch()
    for to, said in (
        ("maps.jpg", "ends in .html"),
        (str(tmp_path / "file" / "maps.html"), "writing failed"),
    ):
        code, _, err = loam(capsys, "attention", "--text", "a", "--to", to)
        assert (code, said in err) == (2, True)
    code, _, err = loam(capsys, "attention", "--text", "river " * 40)
    assert (code, "context_length is 32" in err) == (2, True)
