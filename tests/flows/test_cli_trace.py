from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from tasks.store.rows import document_id
from tests.flows.grown import REPOSITORY, Grown, documents
from tests.tasks.store.test_format import Reader

Loam = Callable[..., tuple[int, str, str]]
TEXTS = {row["id"]: row["text"] for row in documents()}


@pytest.fixture
def loam(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Loam:
    """Runs a command in this process: its exit code, standard output and standard error."""
    monkeypatch.setenv("LOAM_STORE", "store")

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        out, err = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, out, err

    return call


def as_json(loam: Loam, *arguments: str) -> Any:
    code, out, _ = loam(*arguments, "--json")
    assert code == 0
    return json.loads(out)


def test_a_token_leads_to_the_page_and_to_the_model_trained_on_it(grown: Grown, loam: Loam) -> None:
    (held,) = as_json(loam, "trace", TEXTS["d5"])["datasets"]
    offset = held["offset"] + held["tokens"] - 1
    shard = held["object"].split("/")[-1][:12]
    code, out, err = loam("trace", "--token-shard", shard, "--offset", str(offset))
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert f"document {document_id('docs', 'd5')}, found by token {offset}" in told
    for line in (
        "live in dataset/tiny",
        "url https://example.org/5",
        "import docs (live)",
        "file docs.jsonl",
        "select kept",
        f"token {held['tokens'] - 1} of row {held['row']}",
        f"shard {held['object']}",
        "tiny@1",
    ):
        assert line in told


def test_a_trace_takes_under_two_seconds_of_one_core_and_loads_nothing_heavy(
    grown: Grown, loam: Loam
) -> None:
    (held,) = as_json(loam, "trace", TEXTS["d5"])["datasets"]
    script = f"""
import sys, time
from flows.cli import main
try:
    main(["trace", "--token-shard", {held["object"]!r}, "--offset", "{held["offset"]}"])
except SystemExit as left:
    assert left.code == 0
heavy = {{"prefect", "torch", "presidio_analyzer", "transformers", "numba", "spacy"}}
assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
assert time.process_time() < 2, time.process_time()
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "LOAM_STORE": grown.store}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_a_duplicate_s_story_names_the_rule_and_the_survivor(grown: Grown, loam: Loam) -> None:
    ids = [document_id("docs", name) for name in ("copy", "d3")]
    stories = [as_json(loam, "trace", "--id", one) for one in ids]
    (lost,) = [one for one in stories if one["left"]]
    assert lost["decisions"][-1]["reason"] == "exact_duplicate"
    _, out, _ = loam("trace", "--id", lost["id"])
    assert "dropped by dedup on the way to corpus/tiny" in out
    assert "dropped as exact_duplicate: 1, threshold 1" in out
    survivor = next(one for one in lost["cluster"] if one["survived"])
    assert survivor["id"] in out
    assert "no dataset holds the document" in out


def test_what_a_page_says_cannot_command_the_terminal(grown: Grown, loam: Loam) -> None:
    _, out, _ = loam("trace", "--id", document_id("docs", "hostile"))
    assert "\x1b" not in out
    assert "not markup" in out


def mean_word_lengths(grown: Grown) -> dict[str, float]:
    """As the store has them, by id, read by a program that shares no code with it."""
    reader = Reader(Path(grown.store))
    chain = reader.chain(reader.manifest(reader.ref("corpus", "tiny")))
    (annotated,) = [one for one in chain if one["stage"] == "annotate"]
    refs = [ref for receipt in reader.receipts(annotated) for ref in receipt["outputs"]]
    return {row["id"]: row["mean_word_length"] for ref in refs for row in reader.table(ref)}


def test_a_replay_says_what_would_change(grown: Grown, loam: Loam) -> None:
    lengths = mean_word_lengths(grown)
    least = lengths[document_id("docs", "d5")]
    setting = f"min_mean_word_length={least}"
    found = as_json(loam, "replay", "select", "--set", setting, "--n", "100")
    gone = {document_id("docs", name) for name in ("short", "hostile")}
    short = {id_ for id_, length in lengths.items() if length < least} - gone
    assert short
    assert {one["id"] for one in found["newly_dropped"]["samples"]} == short
    code, out, _ = loam("replay", "select", "--set", setting)
    assert code == 0
    assert f"min_mean_word_length: 3 -> {least}" in out
    assert f"{len(short)} documents would be dropped" in out


def test_a_replay_starts_from_a_config_that_is_given(grown_copy: Grown, loam: Loam) -> None:
    grown_copy.edited("min_words = 50", "min_words = 60")
    found = as_json(loam, "replay", "select", "edited.toml")
    assert found["changed"] == ["min_words: 50 -> 60"]


def test_a_corpus_has_nothing_that_it_has_not(grown: Grown, loam: Loam) -> None:
    code, out, _ = loam("diff", "corpus/tiny", "dataset/tiny")
    assert code == 0
    assert "they hold the same documents" in out


def test_a_diff_after_another_threshold_adds_up(grown_copy: Grown, loam: Loam) -> None:
    least = mean_word_lengths(grown_copy)[document_id("docs", "d5")]
    path = grown_copy.edited("[tokenizer]", f"min_mean_word_length = {least}\n[tokenizer]")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(
        [sys.executable, "-m", "tests.flows.grown", path.name], check=True, env=environment
    )
    found = as_json(loam, "diff", "corpus/tiny")
    (change,) = found["changes"]
    assert (change["kind"], change["reason"]) == ("lost", "now gopher_short_words")
    assert found["before"]["documents"] - change["documents"] == found["after"]["documents"]
    _, out, _ = loam("diff", "corpus/tiny")
    assert f"- {change['documents']} lost = {found['after']['documents']} documents" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trace"], "give one of"),
        (["trace", "some text", "--id", "0"], "give one of"),
        (["trace", "--token-shard", "ab"], "with --offset"),
        (["trace", "no document says so"], "no document of corpus/tiny, live or dropped"),
        (["trace", "--id", "zz"], "32 hex digits"),
        (["trace", "--token-shard", "zz", "--offset", "0"], "no token shard begins with zz"),
        (["trace", "x", "--ref", "corpus/tinny"], "did you mean corpus/tiny?"),
        (["trace", "x", "--store", "absent"], "there is nothing in"),
        (["diff", "corpus/tiny"], "published once so far"),
        (["replay", "select", "--set", "min_word=1"], "did you mean 'min_words'?"),
        (["replay", "scrub"], "stages that can"),
    ],
)
def test_what_cannot_be_told_is_one_line_and_exit_code_2(
    grown: Grown, loam: Loam, arguments: list[str], said: str
) -> None:
    code, out, err = loam(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
