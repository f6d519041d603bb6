"""A dataset card says what is in the data, and answers as the figures would have it."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from markdown_it import MarkdownIt

from flows.cli import main
from tasks.card import JSON, MARKDOWN, Card, card_of, plain, read_card, render_markdown, write_card
from tasks.card_checks import checklist, enough, known_gaps
from tasks.card_facts import CanaryFacts, Facts, Share, gather
from tasks.export import export_corpus
from tasks.inspecting import drops_by_reason, funnel
from tasks.store.records import Manifest
from tasks.store.store import Store
from tests.flows.small_pipeline import NAME, Place
from tests.tasks.small_corpus import live, store_of


def line_of(store: Store) -> list[Manifest]:
    ref = store.find_ref("corpus", NAME)
    assert ref is not None
    return [store.manifest(pin) for pin in ref.line]


@pytest.fixture(scope="module")
def line(grown_once: Place) -> list[Manifest]:
    return line_of(store_of(grown_once))


@pytest.fixture(scope="module")
def written(grown_once: Place, line: list[Manifest]) -> dict[str, bytes]:
    found = read_card(store_of(grown_once), line)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def made(written: dict[str, bytes]) -> Card:
    return Card.model_validate_json(written[JSON])


@pytest.fixture(scope="module")
def facts(made: Card) -> Facts:
    return Facts(**{name: getattr(made, name) for name in Facts.model_fields})


def test_the_sizes_are_those_of_the_live_documents(grown_once: Place, made: Card) -> None:
    texts = live(grown_once).values()
    assert made.documents == len(texts)
    assert made.text_bytes == sum(len(text.encode()) for text in texts)
    for shares in (made.splits, made.licenses, made.languages, made.formats, made.provenance):
        assert sum(one.documents for one in shares) == made.documents
    assert {one.name: one.kind for one in made.sources} == {"site": "crawl", "notes": "import"}
    assert sum(one.documents for one in made.sources) == made.documents


def test_every_drop_is_there_by_stage_and_reason(
    grown_once: Place, line: list[Manifest], made: Card
) -> None:
    told = {(one.stage, reason): n for one in made.stages for reason, n in one.drops.items()}
    assert told == {(one.stage, one.reason): one.count for one in drops_by_reason(line)}
    rows = {row.stage: row for row in funnel(store_of(grown_once), line)}
    assert all(rows[one.stage].rows_out == one.rows_out for one in made.stages)
    by_rule = {one.reason: one.documents for one in made.filters if one.documents}
    assert by_rule == made.stage("select").drops
    assert made.duplicates.removed == sum(made.stage("dedup").drops.values()) > 0


def test_a_rule_names_its_threshold_and_its_paper(made: Card) -> None:
    words = next(one for one in made.filters if one.reason == "gopher_few_words")
    assert (words.rule, words.paper) == ("word_count < 50", "Gopher, Rae et al. 2021")
    assert all(one.paper for one in made.filters)


def test_planted_data_is_found_in_the_card(made: Card) -> None:
    assert {one.type for one in made.personal_data} == {"EMAIL_ADDRESS"}
    quiz = next(one for one in made.benchmarks if one.name == "quiz")
    assert (quiz.items, quiz.items_leaked, quiz.documents_dropped) == (3, 1, 1)


def test_a_card_made_again_is_the_same_bytes(
    grown_once: Place, line: list[Manifest], written: dict[str, bytes]
) -> None:
    store = store_of(grown_once)
    labelled = next(one for one in line if one.stage == "split")
    before = [one for one in line if one.stage != "card"]
    again = card_of(gather(store, NAME, before, labelled))
    assert render_markdown(again).encode() == written[MARKDOWN]
    assert again.model_dump(mode="json") == json.loads(written[JSON])


def answers(facts: Facts, **changes: object) -> dict[str, str]:
    """The answers by the first word of their question."""
    checks = checklist(facts.model_copy(update=changes))
    assert len({one.question.split()[0].strip(":?") for one in checks}) == len(checks)
    return {one.question.split()[0].strip(":?"): one.answer for one in checks}


def share(value: str | None, documents: int) -> Share:
    return Share(value=value, documents=documents, share=documents / 10, text_bytes=100)


def test_the_answers_follow_the_figures(facts: Facts) -> None:
    found = answers(facts)
    assert found["Decontaminated"] == found["Deduplicated"] == found["Outliers"] == "yes"
    # Notes have no URL, and nobody said under which licence anything is.
    assert found["Provenance"] == found["Licences"] == "no"
    assert found["Fit"] == found["Sensitive"] == found["As"] == "unknown"
    ten = {"documents": 10}
    licensed = (share("CC0-1.0", 10),)
    assert answers(facts, licenses=licensed, **ten)["Licences"] == "yes"
    assert answers(facts, provenance=(share("URL and time", 10),), **ten)["Provenance"] == "yes"
    assert answers(facts, formats=(share("clean", 10),), **ten)["Format"] == "yes"
    torn = (share("clean", 9), share("not NFC", 1))
    assert answers(facts, formats=torn, **ten)["Format"] == "no"
    assert answers(facts, filters=())["Outliers"] == "no"
    assert answers(facts, benchmarks=facts.benchmarks[-1:])["Decontaminated"] == "no"
    assert answers(facts, compared_with=3)["As"] == "yes"
    assert answers(facts, compared_with=3, alarms=("select removes more",))["As"] == "no"


@pytest.mark.parametrize(("caught", "answer"), [(95, "yes"), (94, "no")])
def test_sensitive_data_is_removed_where_planted_values_were_found(
    facts: Facts, caught: int, answer: str
) -> None:
    canary = CanaryFacts(kind="pii", stage="scrub", planted=110, reached=100, caught=caught)
    assert answers(facts, canaries=(canary,))["Sensitive"] == answer


@pytest.mark.parametrize(("caught", "answer"), [(19, "yes"), (18, "no")])
def test_one_type_of_sensitive_data_that_was_missed_is_not_made_up_for_by_the_others(
    facts: Facts, caught: int, answer: str
) -> None:
    canary = CanaryFacts(
        kind="pii", stage="scrub", planted=1000, reached=1000, caught=980 + caught,
        least="IBAN_CODE", least_reached=20, least_caught=caught,
    )  # fmt: skip
    assert answers(facts, canaries=(canary,))["Sensitive"] == answer


@pytest.mark.parametrize(("languages", "answer"), [(["en"], "no"), (["en", "de"], "yes")])
def test_the_languages_asked_for_are_those_that_it_must_be_in(
    facts: Facts, languages: list[str], answer: str
) -> None:
    select = facts.stage("select")
    asked = select.model_copy(update={"settings": {**select.settings, "languages": languages}})
    stages = tuple(asked if one is select else one for one in facts.stages)
    found = answers(facts, stages=stages, languages=(share("en", 9), share("de", 1)), documents=10)
    assert found["Fit"] == answer


def test_what_was_not_measured_is_a_known_gap(facts: Facts) -> None:
    gaps = "\n".join(known_gaps(facts))
    for words in ("No language model", "No canaries", "licence of", "Names of persons"):
        assert words in gaps
    assert "No benchmark" not in gaps
    pins = {**facts.reproduction.pins, "language-model": "0" * 64}
    held = facts.reproduction.model_copy(update={"pins": pins})
    assert "No language model" not in "\n".join(
        known_gaps(facts.model_copy(update={"reproduction": held}))
    )
    assert "No benchmark" in "\n".join(
        known_gaps(facts.model_copy(update={"benchmarks": facts.benchmarks[-1:]}))
    )


def test_a_corpus_is_enough_for_four_times_its_tokens() -> None:
    assert enough(100, 400).answer == "yes"
    assert enough(100, 401).answer == "no"
    assert enough(0, 1).answer == "no"


HOSTILE = "a|b](http://x.test) <script>alert(1)</script> `c`\n# head\x1b[31m **bold** __init__"


def test_what_sources_say_cannot_command_the_page_or_the_terminal(made: Card) -> None:
    source = made.sources[0].model_copy(
        update={"name": HOSTILE, "licenses": (share(HOSTILE, 1),), "origins": (HOSTILE,)}
    )
    page = render_markdown(
        made.model_copy(
            update={"sources": (source,), "domains": (share(HOSTILE, 1),), "alarms": (HOSTILE,)}
        )
    )
    assert "\x1b" not in page
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(page)
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image"})
    headings = [token for token in tokens if token.type == "heading_open"]
    plainly = MarkdownIt("commonmark").enable("table").parse(render_markdown(made))
    # The section on alarms is one more.
    assert len(headings) == 1 + sum(token.type == "heading_open" for token in plainly)
    shown = "".join(child.content for child in inline if child.type == "text")
    assert "<script>alert(1)</script>" in shown
    assert "**bold** __init__" in shown


def test_every_row_of_a_table_has_the_cells_of_its_head(written: dict[str, bytes]) -> None:
    blocks, rows = [], []
    for text in [*written[MARKDOWN].decode().split("\n"), ""]:
        if text.startswith("|"):
            rows.append(text.replace("\\|", "").count("|"))
        elif rows:
            blocks, rows = [*blocks, rows], []
    assert len(blocks) >= 8
    assert all(len(set(block)) == 1 and len(block) > 2 for block in blocks)
    tokens = MarkdownIt("commonmark").enable("table").parse(written[MARKDOWN].decode())
    assert sum(token.type == "table_open" for token in tokens) == len(blocks)


def test_a_long_list_is_cut_on_the_page_and_whole_in_the_data(made: Card) -> None:
    many = tuple(share(f"license-{n}", 1) for n in range(23))
    page = render_markdown(made.model_copy(update={"licenses": many}))
    assert "license-19 " in page
    assert "license-20 " not in page
    assert "And 3 more in `card.json`." in page


def test_names_with_an_underscore_are_left_readable() -> None:
    assert plain("gopher_few_words") == "gopher_few_words"
    assert plain("_private") == "\\_private"


def test_the_card_of_a_run_also_says_if_it_is_enough_to_train_on(
    grown_once: Place, line: list[Manifest], tmp_path: Path
) -> None:
    store = store_of(grown_once)
    ref = store.find_ref("dataset", NAME)
    assert ref is not None
    data = store.manifest(ref.manifest)
    tokens = data.summary["splits"]["train"]["tokens"]
    write_card(store, [*line, data], tmp_path, 5 * tokens)
    told = Card.model_validate_json((tmp_path / JSON).read_bytes())
    assert told.checklist[1] == enough(tokens, 5 * tokens)
    assert "large enough for the training" in (tmp_path / MARKDOWN).read_text()
    write_card(store, line, tmp_path / "corpus", 5 * tokens)
    assert (tmp_path / "corpus" / MARKDOWN).read_bytes() == (read_card(store, line) or {})[MARKDOWN]
    write_card(store, [], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_export_has_its_card_beside_it_and_is_read_without_it(
    grown_once: Place, written: dict[str, bytes], tmp_path: Path
) -> None:
    export_corpus(store_of(grown_once), NAME, str(tmp_path / "out"), "parquet")
    assert {name: (tmp_path / "out" / f".{name}").read_bytes() for name in written} == written
    assert ds.dataset(tmp_path / "out").count_rows() == len(live(grown_once))


@pytest.mark.parametrize(("option", "name"), [([], MARKDOWN), (["--json"], JSON)])
def test_the_command_prints_the_card_that_is_kept(
    grown_once: Place,
    written: dict[str, bytes],
    option: list[str],
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["card", f"corpus/{NAME}", "--store", grown_once.root, *option])
    assert left.value.code == 0
    assert capsys.readouterr().out.encode() == written[name]


def test_only_a_corpus_has_a_card(grown_once: Place, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["card", f"dataset/{NAME}", "--store", grown_once.root])
    assert left.value.code == 2
    assert "only a corpus has a card" in capsys.readouterr().err
