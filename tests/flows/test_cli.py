from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.showing import printable
from tasks.store.rows import document_id
from tests.flows.grown import EMAIL, REPOSITORY, Grown

Loam = Callable[..., tuple[int, str, str]]


@pytest.fixture
def loam(capsys: pytest.CaptureFixture[str]) -> Loam:
    """Runs a command in this process: its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


@pytest.fixture(autouse=True)
def _store_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOAM_STORE", "store")


def as_json(loam: Loam, *arguments: str) -> Any:
    code, out, _ = loam(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def report_of(grown: Grown) -> Path:
    path = grown.folder / "reports" / "tiny.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text("<!doctype html>")
    return path


# run and plan


def test_a_second_run_says_that_there_is_nothing_to_do_and_where_the_report_is(
    grown: Grown, loam: Loam
) -> None:
    report = report_of(grown)
    code, out, err = loam("run", "loam.toml")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert out.startswith("nothing to do")
    assert str(report.relative_to(grown.folder)) in out


def test_run_with_nothing_to_do_answers_in_json(grown: Grown, loam: Loam) -> None:
    report_of(grown)
    answer = as_json(loam, "run")
    assert (answer["nothing_to_do"], answer["planned"]) == (True, [])


def test_what_needs_neither_prefect_nor_torch_imports_neither(grown: Grown) -> None:
    report_of(grown)
    script = f"""
import sys
from flows.cli import main
for command in {[
    "run", "plan", "status loam.toml", "show tiny", "show tiny --quarantined", "models",
    "store verify", "store gc --dry-run", "takedown --list", "export tiny --to exported",
    "export model/tiny --to exported-model",
]!r}:
    try:
        main(command.split())
    except SystemExit as left:
        assert left.code == 0, command
    heavy = sorted({{"prefect", "torch", "presidio_analyzer", "transformers"}} & sys.modules.keys())
    assert not heavy, (command, heavy)
"""  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_plan_tells_each_stage_in_a_line_and_the_reason_once(grown_copy: Grown, loam: Loam) -> None:
    grown_copy.edited("min_words = 50", "min_words = 60")
    code, out, _ = loam("plan", "edited.toml")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("select ")]
    assert "run" in line
    assert "min_words: 50 -> 60" in line
    assert out.count("min_words") == 1


def test_plan_in_json_says_whether_there_is_anything_to_do(grown_copy: Grown, loam: Loam) -> None:
    assert as_json(loam, "plan")["nothing_to_do"] is True
    grown_copy.edited("steps = 4", "steps = 8")
    plan = as_json(loam, "plan", "edited.toml")
    assert plan["nothing_to_do"] is False
    (stage,) = [stage for stage in plan["stages"] if stage["action"] == "run"]
    assert (stage["stage"], stage["why"]) == ("train", ["train.steps: 4 -> 8"])


def test_a_store_given_on_the_command_line_replaces_the_config_s(grown: Grown, loam: Loam) -> None:
    plan = as_json(loam, "plan", "--store", str(grown.folder / "other"))
    assert plan["store"].endswith("/other")
    assert plan["nothing_to_do"] is False


# errors and exit codes


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["plan", "absent.toml"], "no config at absent.toml"),
        (["show", "absent"], "there are corpus/tiny, dataset/tiny"),
        (["show", "pin/tiny/tokenizer"], "no ref pin/tiny/tokenizer"),
        (["show", "tiny", "--drops", "absent"], "gopher_few_words"),
        (["show", "tiny", "--matches"], "no document was dropped for any benchmark"),
        (["show", "tiny", "--matches", "quiz"], "benchmarks with leaks: none"),
        (["models", "absent"], "there are tiny"),
        (["models", "tiny", "--promote", "9"], "has no version '9'"),
        (["models", "--promote", "1"], "which model"),
        (["generate", "--model", "absent"], "there are tiny"),
        (["generate", "--model", "tiny@9"], "has no version '9'"),
        (["store", "verify", "--ref", "tiny"], "corpus/tiny"),
        (["store", "verify", "--store", "absent"], "there is nothing in"),
        (["takedown", "example.org"], "--reason"),
        (["erase", "example.org", "--yes"], "is not taken down"),
        (["export", "dataset/tiny", "--to", "x"], "corpus/NAME or model/NAME"),
        (["export", "tiny", "--to", "x", "--format", "gguf"], "as parquet or jsonl, not as gguf"),
        (["export", "model/tiny", "--to", "x", "--format", "jsonl"], "as huggingface or gguf"),
        (["export", "model/tiny", "--to", "x", "--format", "gguf"], "ending in .gguf"),
        (["export", "model/tiny", "--to", "store"], "is not empty"),
        (["export", "model/absent", "--to", "x"], "there are tiny"),
        (["repin", "absent", "loam.toml"], "heldout, tokenizer"),
        (["status", "--store", "gopher://x"], "file:// or s3://"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_standard_error_and_exit_code_2(
    grown: Grown, loam: Loam, arguments: list[str], said: str
) -> None:
    code, out, err = loam(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["absent"],
        ["plan", "--absent"],
        ["run", "--sample", "0"],
        ["show"],
        ["generate", "--n", "x"],
    ],
)
def test_wrong_usage_is_exit_code_2(grown: Grown, loam: Loam, arguments: list[str]) -> None:
    assert loam(*arguments)[0] == 2


def test_without_a_config_and_a_loam_toml_it_says_what_to_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loam: Loam
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = loam("run")
    assert code == 2
    assert "loam run " in err


def test_an_interrupt_is_exit_code_130(
    grown: Grown, loam: Loam, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_plan", interrupted)
    code, _, err = loam("plan")
    assert code == 130
    assert "run again" in err


def test_what_nobody_expected_keeps_its_traceback(
    grown: Grown, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "make_plan", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["plan"])


@pytest.mark.parametrize(
    "command",
    ["run", "plan", "status", "show", "card", "generate", "models", "store verify", "store gc",
     "export", "repin", "deploy"],
)  # fmt: skip
def test_every_command_has_an_example_in_its_help(loam: Loam, command: str) -> None:
    code, out, _ = loam(*command.split(), "--help")
    assert code == 0
    assert any(line.strip().startswith(f"loam {command}") for line in out.splitlines())


# show


def test_the_funnel_balances_stage_by_stage(grown: Grown, loam: Loam) -> None:
    rows = as_json(loam, "show", "corpus/tiny")["funnel"]
    assert rows[0]["stage"] == "import docs"
    assert rows[-1]["stage"] == "split"
    for before, after in pairwise(rows):
        assert after["rows_in"] == before["rows_out"]
    for row in rows:
        assert row["rows_in"] == row["rows_out"] + sum(row["drops"].values())


def test_what_was_looked_for_is_shown_with_what_was_found(grown: Grown, loam: Loam) -> None:
    (heldout,) = as_json(loam, "show", "tiny")["benchmarks"]
    assert (heldout["name"], heldout["items_leaked"], heldout["documents_dropped"]) == (
        "heldout", 0, 0
    )  # fmt: skip
    assert 0 <= heldout["items_matched"] <= heldout["items"]
    _, out, _ = loam("show", "tiny")
    assert "documents dropped" in out


def test_the_text_left_at_the_end_is_what_an_export_holds(
    grown: Grown, loam: Loam, tmp_path: Path
) -> None:
    rows = as_json(loam, "show", "tiny")["funnel"]
    written = as_json(loam, "export", "tiny", "--to", str(tmp_path / "x"), "--format", "jsonl")
    texts = [
        json.loads(line)["text"]
        for path in sorted((tmp_path / "x").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    assert rows[-1]["rows_out"] == written["rows"] == len(texts)
    assert rows[-1]["text_bytes"] == sum(len(text.encode()) for text in texts)


def test_an_export_is_opened_by_what_people_open_data_with(
    grown: Grown, loam: Loam, tmp_path: Path
) -> None:
    import datasets
    import duckdb
    import pandas as pd
    import polars as pl

    n: dict[str, int] = {}
    for format_ in ("parquet", "jsonl"):
        folder = str(tmp_path / format_)
        n[format_] = as_json(loam, "export", "tiny", "--to", folder, "--format", format_)["rows"]
        opened = datasets.load_dataset(folder, cache_dir=str(tmp_path / "cache"), split="train")
        assert (len(opened), opened.column_names[:3]) == (n[format_], ["id", "digest", "text"])
        counted = duckdb.sql(f"select count(distinct id) from '{folder}/*.{format_}'").fetchall()
        assert counted == [(n[format_],)]
    assert n["parquet"] == n["jsonl"] > 0
    assert len(pd.read_parquet(tmp_path / "parquet")) == n["parquet"]
    assert pl.read_parquet(tmp_path / "parquet" / "*.parquet").height == n["parquet"]
    lines = [path.read_text() for path in sorted((tmp_path / "jsonl").glob("*.jsonl"))]
    assert sum(len(pd.read_json(StringIO(body), lines=True)) for body in lines) == n["jsonl"]
    assert sum(pl.read_ndjson(body.encode()).height for body in lines) == n["jsonl"]


def test_an_exported_model_writes_in_transformers_what_it_writes_here(
    grown: Grown, loam: Loam, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "model"
    written = as_json(loam, "export", "model/tiny", "--to", str(folder))
    about = json.loads((folder / ".loam-export.json").read_text())
    assert (about["model"], about["version"], len(about["files"])) == ("tiny", 1, written["files"])
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    begin = [tokenizer.bos_token_id, *tokenizer("The river")["input_ids"]]
    ids = model.generate(torch.tensor([begin]), max_new_tokens=8, do_sample=False)[0]
    (text,) = as_json(
        loam, "generate", "--prompt", "The river", "--max-new-tokens", "8", "--temperature", "0"
    )["texts"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("format_, size", [("gguf", 4.0), ("gguf-q8_0", 34 / 32)])
def test_an_exported_gguf_holds_the_model(
    grown: Grown, loam: Loam, tmp_path: Path, format_: str, size: float
) -> None:
    import gguf

    path = tmp_path / "tiny.gguf"
    arguments = ("export", "model/tiny@1", "--to", str(path), "--format", format_)
    assert as_json(loam, *arguments) == {"to": str(path), "version": 1, "files": 1}
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    embedding = found["token_embd.weight"]
    assert embedding.n_bytes == embedding.n_elements * size
    code, _, err = loam(*arguments)
    assert (code, "is there already" in err) == (2, True)


def test_drops_are_shown_with_what_was_measured_and_without_personal_data(
    grown: Grown, loam: Loam
) -> None:
    samples = as_json(loam, "show", "tiny", "--drops", "gopher_few_words")
    short = next(one for one in samples if one["url"] == "https://example.org/short")
    assert (short["value"], short["threshold"]) == (2, 50)
    assert short["excerpt"] == "Ask <EMAIL_1>."
    assert EMAIL not in json.dumps(samples)


def test_a_duplicate_names_the_one_that_stayed(grown: Grown, loam: Loam) -> None:
    (copy,) = as_json(loam, "show", "tiny", "--drops", "exact_duplicate")
    twins = {document_id("docs", "d3"), document_id("docs", "copy")}
    assert {copy["id"], copy["detail"]} == twins
    assert (copy["value"], copy["excerpt"][:4]) == (1.0, "The ")


def test_a_document_cannot_command_the_terminal(grown: Grown, loam: Loam) -> None:
    _, out, _ = loam("show", "tiny", "--drops", "gopher_few_words")
    assert "\x1b" not in out
    assert "[bold]not markup[/bold]" in out


def test_n_bounds_the_examples(grown: Grown, loam: Loam) -> None:
    assert len(as_json(loam, "show", "tiny", "--drops", "gopher_few_words", "--n", "1")) == 1


def test_what_could_not_be_read_is_shown_by_reason_and_place(grown: Grown, loam: Loam) -> None:
    groups = as_json(loam, "show", "tiny", "--quarantined")
    assert sorted(group["reason"] for group in groups) == ["no_text", "not_json"]
    assert all(group["examples"][0][0].startswith("docs.jsonl:") for group in groups)


def test_nothing_is_broken_to_a_width_in_a_pipe(grown: Grown, loam: Loam) -> None:
    _, out, _ = loam("models")
    assert len(out.rstrip().splitlines()) == 2


# status, models, generate


def test_status_lists_what_stands_in_the_store(grown: Grown, loam: Loam) -> None:
    status = as_json(loam, "status", "loam.toml")
    assert [ref["name"] for ref in status["refs"]] == ["corpus/tiny", "dataset/tiny"]
    assert [(one["name"], one["rows"]) for one in status["snapshots"]] == [("tiny/docs", 43)]
    assert [pin["name"] for pin in status["pins"]] == ["tiny/heldout", "tiny/tokenizer"]
    assert status["models"] == [
        {"name": "tiny", "newest": 1, "aliases": {"candidate": 1, "champion": 1}}
    ]
    assert (status["crawls"], status["trainings"]) == ([], [])
    assert status["due"] == {"tiny/docs": "no"}


def test_status_knows_a_training_that_was_stopped(grown_copy: Grown, loam: Loam) -> None:
    (result,) = Path("store/runs").glob("*/result.json")
    result.unlink()
    (training,) = as_json(loam, "status")["trainings"]
    assert (training["step"], training["steps"], training["holder"]) == (4, 4, None)
    code, out, _ = loam("status")
    assert code == 0
    assert "step 4 of 4" in out


def test_status_of_an_empty_store_says_so(tmp_path: Path, loam: Loam) -> None:
    code, out, _ = loam("status", "--store", str(tmp_path / "none"))
    assert code == 0
    assert "empty" in out


def test_generate_is_the_same_for_the_same_seed(grown: Grown, loam: Loam) -> None:
    arguments = ("generate", "--prompt", "The ", "--max-new-tokens", "8", "--n", "2")
    first = as_json(loam, *arguments, "--seed", "5")
    assert first == as_json(loam, *arguments, "--seed", "5")
    assert (first["model"], first["version"]) == ("tiny", 1)
    assert all(text.startswith("The ") for text in first["texts"])
    (second,) = as_json(loam, *arguments[:-1], "1", "--seed", "6")["texts"]
    assert second == first["texts"][1]


def test_several_prompts_get_what_each_gets_alone(grown: Grown, loam: Loam) -> None:
    arguments = ("generate", "--max-new-tokens", "6", "--n", "2")
    prompts = ("--prompt", "The river", "--prompt", "A stone of the")
    both = as_json(loam, *arguments, *prompts)
    assert both["prompts"] == ["The river"] * 2 + ["A stone of the"] * 2
    alone = [as_json(loam, *arguments, *prompts[at : at + 2])["texts"] for at in (0, 2)]
    assert both["texts"] == alone[0] + alone[1]
    code, out, _ = loam(*arguments, *prompts)
    assert (code, out) == (0, printable("\n\n---\n\n".join(both["texts"])) + "\n")


def test_models_tells_aliases_and_verdict_and_promotes_by_hand(
    grown_copy: Grown, loam: Loam
) -> None:
    Path("store/models/tiny/aliases.json").write_text('{"candidate": 1}')
    (version,) = as_json(loam, "models", "tiny")
    assert version["aliases"] == ["candidate"]
    (version,) = as_json(loam, "models", "tiny", "--promote", "1")
    assert version["aliases"] == ["candidate", "champion"]
    assert version["verdict"] == "promoted: there was no champion"


# the store


def test_verify_finds_nothing_wrong_with_what_was_just_made(grown: Grown, loam: Loam) -> None:
    found = as_json(loam, "store", "verify")
    assert found["ok"] is True
    assert found["objects"] > 10


def test_verify_names_a_changed_object_and_fails(grown_copy: Grown, loam: Loam) -> None:
    damaged = max(Path("store/objects").rglob("*.parquet"), key=lambda path: path.stat().st_size)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    code, out, _ = loam("store", "verify", "--ref", "corpus/tiny")
    whole, all_out, _ = loam("store", "verify")
    assert max(code, whole) == 1
    assert f"changed  file://{damaged.absolute()}" in out + all_out


def test_gc_lists_what_nothing_reaches_and_leaves_it(grown_copy: Grown, loam: Loam) -> None:
    stray = Path("store/objects/00/00ff.bin")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    found = as_json(loam, "store", "gc", "--dry-run")
    assert found["objects"] == [f"file://{stray.absolute()}"]
    assert stray.exists()


def test_gc_deletes_what_nothing_reaches_and_nothing_else(grown_copy: Grown, loam: Loam) -> None:
    stray = Path("store/objects/00/00ff.bin")
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"stray")
    before = {path for path in Path("store").rglob("*") if path.is_file()}
    code, out, _ = loam("store", "gc", "--keep", "1")
    assert code == 0
    assert "deleted 0 receipts, 0 manifests, 1 object, 0 runs" in out
    after = {path for path in Path("store").rglob("*") if path.is_file()}
    assert {path for path in before - after if path.suffix != ".lock"} == {stray}
    assert loam("store", "verify")[0] == 0
    assert as_json(loam, "plan")["nothing_to_do"] is True


def test_a_pin_let_go_of_is_made_anew_by_the_next_run(grown_copy: Grown, loam: Loam) -> None:
    code, out, _ = loam("repin", "tokenizer", "loam.toml")
    assert code == 0
    assert "the next run learns a new tokenizer" in out
    (stage,) = [one for one in as_json(loam, "plan")["stages"] if one["action"] == "run"]
    assert (stage["stage"], stage["why"]) == ("tokenise", ["tokenizer: it is not pinned yet"])


# with Prefect


@pytest.mark.slow
def test_run_ends_with_a_sample_the_funnel_the_report_and_commands_that_work(
    grown_copy: Grown,
) -> None:
    grown_copy.edited("steps = 4", "steps = 6")
    done = loam_in_a_process("run", "edited.toml")
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert "beginning with train (train.steps: 4 -> 6)" in done.stdout
    report, *_, one, two, three = done.stdout.splitlines()[-6:]
    assert Path(report.removeprefix("report: ")).exists()
    for command in (one, two, three):
        assert loam_in_a_process(*command.replace('"', "").split()[1:]).returncode == 0
    again = loam_in_a_process("run", "edited.toml")
    assert again.stdout.startswith("nothing to do")


@pytest.mark.slow
def test_an_error_inside_the_flow_is_told_once_and_without_a_traceback(grown_copy: Grown) -> None:
    benchmark = (
        '[[decontaminate.benchmarks]]\nname = "quiz"\npath = "absent.jsonl"\nfields = ["q"]\n'
    )
    grown_copy.edited("[tokenizer]", f"{benchmark}[tokenizer]")
    done = loam_in_a_process("run", "edited.toml")
    assert done.returncode == 2
    assert "absent.jsonl" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr + done.stdout


def loam_in_a_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
