"""The report of a small pipeline that was really run: what it says is what went in and came out."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from flows.config import parse_config, read_config
from flows.planning import make_plan
from flows.reporting import report_on
from flows.running import RunOptions
from tasks.inspecting import line_of
from tasks.report import Told, assemble, report_path
from tasks.report_page import ReportData
from tasks.store.run import Visit
from tasks.store.store import Store
from tests.flows.grown import EMAIL, N_DOCUMENTS, Grown


@pytest.fixture(scope="module")
def visits(grown_once: Grown) -> tuple[Visit, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(grown_once.folder)
        return make_plan(read_config(grown_once.config), RunOptions()).visits


@pytest.fixture(scope="module")
def told(grown_once: Grown, visits: tuple[Visit, ...]) -> Told:
    config = read_config(grown_once.config).model_dump(mode="json", exclude_none=True)
    store = Store.at(str(grown_once.folder / "store"))
    return Told(store, "tiny", tuple(line_of(visits)), visits, config)


@pytest.fixture(scope="module")
def data(told: Told) -> ReportData:
    return assemble(told)


def test_the_planted_documents_are_accounted_for(data: ReportData) -> None:
    counts = {drop.reason: drop.count for drop in data.drops}
    assert counts == {"gopher_few_words": 2, "exact_duplicate": 1}
    assert [(q.reason, q.count) for q in data.quarantine] == [("no_text", 1), ("not_json", 1)]
    assert [(s.source, s.documents) for s in data.sources] == [("docs", N_DOCUMENTS)]
    begun, left = data.funnel[0].rows_out, sum(source.documents for source in data.sources)
    assert begun - left == sum(counts.values())
    assert f"{left} of {begun} documents" in data.verdict


def test_each_stage_of_the_funnel_takes_what_the_one_before_left(data: ReportData) -> None:
    for before, after in zip(data.funnel, data.funnel[1:], strict=False):
        assert after.rows_in == before.rows_out
        assert after.rows_in == after.rows_out + after.dropped


def test_the_examples_show_what_was_dropped_without_personal_data(data: ReportData) -> None:
    (few,) = [drop for drop in data.drops if drop.reason == "gopher_few_words"]
    shown = {example.url: example for example in few.examples}
    short = shown["https://example.org/short"]
    assert short.excerpt == "Ask <EMAIL_1>."
    assert (short.value, short.threshold) == (2.0, 50.0)
    assert EMAIL not in data.model_dump_json()


def test_tokens_are_those_of_the_dataset(data: ReportData, told: Told) -> None:
    dataset = next(one for one in told.manifests if one.stage == "dataset")
    path = told.store.object_url(dataset.object("dataset")).removeprefix("file://")
    expected = duckdb.sql(
        f"select split, count(*), sum(length), sum(n_bytes) from '{path}' group by 1 order by 1"
    ).fetchall()
    found = [(one.split, one.documents, one.tokens, one.n_bytes) for one in data.tokens]
    assert sorted(found) == expected
    # One sentence of 18 words is as long as the next; see `documents`.
    assert all(one.words == one.documents * 8 * 18 for one in data.tokens)


def test_the_model_is_told_from_its_shape_to_its_place_in_the_registry(data: ReportData) -> None:
    facts = {fact.name: fact.value for fact in (*data.model, *data.recipe, *data.tokenizer)}
    assert (facts["d_model"], facts["steps"], facts["kind"]) == (32, 4, "byte-level BPE")
    assert [score.name for score in data.evaluation[:4]] == [
        *("uniform", "unigram", "gzip", "tiny version 1"),
    ]
    assert data.training[-1].step == data.samples[-1].step == 4
    assert data.registration is not None
    assert (data.registration.version, data.registration.gate_passed) == (1, True)


def test_every_stage_names_what_it_was_made_of(data: ReportData) -> None:
    known = {f"{one.stage.split()[0]} {one.fingerprint[:12]}" for one in data.lineage}
    assert {name for one in data.lineage for name in one.inputs} <= known


def test_the_config_in_the_report_is_the_config_of_the_run(data: ReportData, told: Told) -> None:
    again = parse_config(tomllib.loads(data.config_toml), "report")
    assert again.model_dump(mode="json", exclude_none=True) == told.config


def test_a_corpus_alone_has_a_report_without_a_model(told: Told) -> None:
    published = [visit.name for visit in told.visits].index("publish")
    visits = told.visits[: published + 1]
    alone = assemble(replace(told, manifests=tuple(line_of(visits)), visits=visits))
    assert (alone.tokens, alone.model, alone.evaluation, alone.registration) == ((), (), (), None)
    assert alone.funnel[-1].stage == "split"
    assert alone.sources
    assert "bits per byte" not in alone.verdict


def test_only_a_run_that_made_something_keeps_a_report_of_its_own(
    grown: Grown, visits: tuple[Visit, ...], tmp_path: Path
) -> None:
    config = read_config(grown.config)
    store = config.store.model_copy(update={"reports": str(tmp_path)})
    config = config.model_copy(update={"store": store})
    path = report_on(config, RunOptions(), [replace(visit, reused=True) for visit in visits])
    first = path.read_bytes()
    assert path == report_path(tmp_path, "tiny")
    assert sorted(tmp_path.glob("*.html")) == [path]
    assert report_on(config, RunOptions(), [replace(v, reused=True) for v in visits]) == path
    assert path.read_bytes() == first
    report_on(config, RunOptions(), [replace(visit, reused=False) for visit in visits])
    kept, newest = sorted(tmp_path.glob("*.html"))
    assert newest == path
    assert re.fullmatch(r"tiny-\d{8}T\d{6}-[0-9a-f]{6}\.html", kept.name)
    assert kept.read_bytes() == newest.read_bytes()
