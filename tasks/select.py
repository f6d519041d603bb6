"""Which documents stay: thresholds and allow-lists over stored signals, as drops.

The defaults are FineWeb's recipe (Penedo et al. 2024): Gopher's quality and repetition rules, C4's
without its terminal punctuation, and FineWeb's own three. Changing one reads no text again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from llm.config import Config
from llm.errors import ConfigError, DataError
from tasks.as_task import as_task
from tasks.signals import DUPLICATE_NGRAMS, SIGNALS, TOP_NGRAMS
from tasks.store.corpus import Shard, commit_stage, live_rows, open_corpus
from tasks.store.pins import Pin, hold
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Action, Outcome, Request, Run, reuse, run_actions
from tasks.store.schema import DOCUMENTS, DROPS
from tasks.store.stage import Stage
from tasks.store.store import Store

STAGE = Stage("select", 1, ("pyarrow",))


class SelectConfig(Config):
    """What a document must be to stay. A threshold of null turns its rule off, a preset of false
    turns its whole family off. A value equal to its threshold stays."""

    languages: tuple[str, ...] = ()
    """Languages to keep, as codes such as `en`; empty keeps all. A document whose language is not
    known is dropped where this is set."""

    min_language_score: float | None = Field(0.65, ge=0, le=1)
    """How sure the language model must be, where `languages` is set. FineWeb, section 3.3."""

    licenses: tuple[str, ...] | None = None
    """Licenses to keep, as SPDX identifiers such as `CC-BY-4.0`; null keeps all, and a document
    without a license too."""

    min_quality: float | None = Field(None, ge=0, le=1)
    """Least score of the quality classifier; off by default, as the scale is the classifier's."""

    quality_quantile: float | None = Field(None, gt=0, lt=1)
    """Part of the documents to drop by quality, those of the lowest scores. The first run finds the
    score to cut at and pins it (`quality_cut`), so that more documents never move it. DCLM (Li et
    al. 2024, section 4.4) keeps the best tenth: 0.9."""

    topics: tuple[str, ...] = ()
    """Topics to keep, by the topic model's labels; empty keeps all."""

    gopher_quality: bool = True
    """Gopher's quality rules (Rae et al. 2021, appendix A.1.1)."""

    min_words: int | None = Field(50, ge=0)
    """Gopher: documents of fewer than 50 words leave."""

    max_words: int | None = Field(100_000, ge=0)
    """Gopher: documents of more than 100,000 words leave."""

    min_mean_word_length: float | None = Field(3.0, ge=0)
    """Gopher: words shorter than 3 characters on average. Scripts without spaces are exempt."""

    max_mean_word_length: float | None = Field(10.0, ge=0)
    """Gopher: words longer than 10 characters on average. Scripts without spaces are exempt."""

    max_hash_ratio: float | None = Field(0.1, ge=0)
    """Gopher: more than one hash sign in ten words."""

    max_ellipsis_ratio: float | None = Field(0.1, ge=0)
    """Gopher: more than one ellipsis in ten words."""

    max_bullet_line_share: float | None = Field(0.9, ge=0, le=1)
    """Gopher: more than 90 % of lines begin with a bullet."""

    max_ellipsis_line_share: float | None = Field(0.3, ge=0, le=1)
    """Gopher: more than 30 % of lines end with an ellipsis."""

    min_alphabetic_word_share: float | None = Field(0.8, ge=0, le=1)
    """Gopher: fewer than 80 % of words hold a letter. Scripts without spaces are exempt."""

    min_stop_words: int | None = Field(2, ge=0, le=8)
    """Gopher: fewer than 2 of its 8 stop words. They are English: it applies where `language` is
    `en`."""

    gopher_repetition: bool = True
    """Gopher's repetition rules (Rae et al. 2021, table A1)."""

    max_duplicate_line_share: float | None = Field(0.30, ge=0, le=1)
    """Gopher, table A1: duplicate line fraction."""

    max_duplicate_paragraph_share: float | None = Field(0.30, ge=0, le=1)
    """Gopher, table A1: duplicate paragraph fraction."""

    max_duplicate_line_char_share: float | None = Field(0.20, ge=0, le=1)
    """Gopher, table A1: duplicate line character fraction."""

    max_duplicate_paragraph_char_share: float | None = Field(0.20, ge=0, le=1)
    """Gopher, table A1: duplicate paragraph character fraction."""

    max_top_ngram_char_shares: tuple[float | None, float | None, float | None] = (0.20, 0.18, 0.16)
    """Gopher, table A1: top 2-, 3- and 4-gram character fractions."""

    max_duplicate_ngram_char_shares: tuple[
        float | None, float | None, float | None, float | None, float | None, float | None
    ] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Gopher, table A1: duplicate 5- to 10-gram character fractions. Scripts without spaces are
    exempt, where a word here is a character and five of them are a common phrase."""

    c4: bool = True
    """C4's rules (Raffel et al. 2020, section 2.2). It deletes lines; here they are not counted."""

    max_lorem_ipsum: int | None = Field(0, ge=0)
    """C4: pages with the phrase `lorem ipsum` leave."""

    max_curly_brackets: int | None = Field(0, ge=0)
    """C4: pages with a curly bracket leave, since they hold code: turn it off to keep code."""

    min_sentences: int | None = Field(5, ge=0)
    """C4: pages left with fewer than 5 sentences leave."""

    min_terminal_line_share: float | None = Field(None, ge=0, le=1)
    """C4 deletes each line without terminal punctuation. Off, since FineWeb found that this costs
    some 30 % of the tokens (section 3.5)."""

    max_javascript_line_share: float | None = Field(None, ge=0, le=1)
    """C4 deletes such lines and no page; off."""

    max_policy_line_share: float | None = Field(None, ge=0, le=1)
    """C4 deletes such lines and no page; off."""

    fineweb: bool = True
    """FineWeb's own rules (Penedo et al. 2024, section 3.6)."""

    min_punctuated_line_share: float | None = Field(0.12, ge=0, le=1)
    """FineWeb: fewer than 12 % of lines end with punctuation. Text wrapped at a fixed width fails
    it, whatever it says: turn it off for such sources."""

    max_duplicated_char_share: float | None = Field(0.1, ge=0, le=1)
    """FineWeb: more than a tenth of the characters in duplicated lines. (datatrove's code defaults
    to 0.01; this is the paper's.)"""

    max_short_line_share: float | None = Field(0.67, ge=0, le=1)
    """FineWeb: more than 67 % of lines are at most 30 characters long. Scripts without spaces are
    exempt, where 30 characters say as much as 60 to 90 elsewhere."""

    max_newline_ratio: float | None = Field(0.3, ge=0)
    """FineWeb's code, not its paper: more than 3 line breaks in ten words, which are lists."""

    @model_validator(mode="after")
    def _one_threshold_of_quality(self) -> Self:
        if self.min_quality is not None and self.quality_quantile is not None:
            raise ValueError(
                "min_quality gives the least quality and quality_quantile finds one: set one of "
                "the two"
            )
        return self


@dataclass(frozen=True)
class Rule:
    """A document leaves for `reason` where `signal` `op` `threshold`, if `scope` applies to it.

    Scopes: `all`; `spaced`, texts mostly in scripts with spaces between words; `english`; and
    `identified`, texts whose language a model told.
    """

    reason: str
    signal: str
    op: Literal["<", ">", "not in"]
    threshold: float | tuple[str, ...]
    scope: Literal["all", "spaced", "english", "identified"] = "all"


def select_shard(documents: pa.Table, signals: pa.Table, config: SelectConfig) -> pa.Table:
    """The rows of one shard that leave, as DROPS sorted by id.

    `documents` has columns id, digest and license, `signals` those of SIGNALS, row for row for the
    same documents (else DataError). A document leaves by the first of `rules(config)` it breaks,
    so that counts by reason add up. Raises ConfigError where a document has no quality or topic and
    `config` asks for one.
    """
    for column in ("id", "digest"):
        if not documents.column(column).equals(signals.column(column)):
            raise DataError(
                f"documents and signals differ in column {column}: found {documents.num_rows} and "
                f"{signals.num_rows} rows, expected the same documents in the same order; annotate "
                "this shard again"
            )
    _check_measured(signals, "quality", config.min_quality is not None, "min_quality")
    _check_measured(signals, "topic", bool(config.topics), "topics")
    table = signals.append_column("license", documents.column("license"))
    alive = pa.chunked_array([pa.array([True] * table.num_rows, pa.bool_())])
    parts: list[pa.Table] = []
    for rule in rules(config):
        broken = pc.and_(alive, pc.and_(_in_scope(table, rule), _breaks(table, rule)))
        parts.append(_drops(table.filter(broken), rule))
        alive = pc.and_(alive, pc.invert(broken))
    return pa.concat_tables([DROPS.empty(), *parts]).sort_by("id").combine_chunks()


def _check_measured(signals: pa.Table, signal: str, wanted: bool, setting: str) -> None:
    if wanted and signals.column(signal).null_count:
        raise ConfigError(
            f"{setting} is set but documents have no {signal}; set annotate's {signal}_model or "
            f"unset {setting}"
        )


def rules(config: SelectConfig) -> list[Rule]:
    """Every rule that is on, in the order of judgement: language, license, topic and quality, then
    Gopher's quality and repetition, C4 and FineWeb."""
    found = list(_identity_rules(config))
    if config.gopher_quality:
        found += _gopher_quality_rules(config)
    if config.gopher_repetition:
        found += _gopher_repetition_rules(config)
    if config.c4:
        found += _c4_rules(config)
    if config.fineweb:
        found += _fineweb_rules(config)
    return found


def _identity_rules(config: SelectConfig) -> Iterator[Rule]:
    if config.languages:
        yield Rule("language", "language", "not in", config.languages)
        if config.min_language_score is not None:
            least = config.min_language_score
            yield Rule("language_score", "language_score", "<", least, "identified")
    if config.licenses is not None:
        yield Rule("license", "license", "not in", config.licenses)
    if config.topics:
        yield Rule("topic", "topic", "not in", config.topics)
    if config.min_quality is not None:
        yield Rule("quality", "quality", "<", config.min_quality)


def _gopher_quality_rules(config: SelectConfig) -> Iterator[Rule]:
    c = config
    yield from _rule("gopher_few_words", "word_count", "<", c.min_words)
    yield from _rule("gopher_many_words", "word_count", ">", c.max_words)
    length = "mean_word_length"
    yield from _rule("gopher_short_words", length, "<", c.min_mean_word_length, "spaced")
    yield from _rule("gopher_long_words", length, ">", c.max_mean_word_length, "spaced")
    yield from _rule("gopher_hashes", "hash_ratio", ">", c.max_hash_ratio)
    yield from _rule("gopher_ellipses", "ellipsis_ratio", ">", c.max_ellipsis_ratio)
    yield from _rule("gopher_bullet_lines", "bullet_line_share", ">", c.max_bullet_line_share)
    ellipsis = "ellipsis_line_share"
    yield from _rule("gopher_ellipsis_lines", ellipsis, ">", c.max_ellipsis_line_share)
    letters = "alphabetic_word_share"
    yield from _rule("gopher_alphabetic", letters, "<", c.min_alphabetic_word_share, "spaced")
    yield from _rule("gopher_stop_words", "stop_word_count", "<", c.min_stop_words, "english")


def _gopher_repetition_rules(config: SelectConfig) -> Iterator[Rule]:
    for part in ("line", "paragraph", "line_char", "paragraph_char"):
        signal = f"duplicate_{part}_share"
        yield from _rule(f"gopher_{signal}", signal, ">", getattr(config, f"max_{signal}"))
    for n, threshold in zip(TOP_NGRAMS, config.max_top_ngram_char_shares, strict=True):
        yield from _rule(f"gopher_top_{n}gram", f"top_{n}gram_char_share", ">", threshold)
    shares = config.max_duplicate_ngram_char_shares
    for n, threshold in zip(DUPLICATE_NGRAMS, shares, strict=True):
        signal = f"duplicate_{n}gram_char_share"
        yield from _rule(f"gopher_duplicate_{n}gram", signal, ">", threshold, "spaced")


def _c4_rules(config: SelectConfig) -> Iterator[Rule]:
    c = config
    yield from _rule("c4_lorem_ipsum", "lorem_ipsum_count", ">", c.max_lorem_ipsum)
    yield from _rule("c4_curly_brackets", "curly_bracket_count", ">", c.max_curly_brackets)
    yield from _rule("c4_terminal_lines", "terminal_line_share", "<", c.min_terminal_line_share)
    script = "javascript_line_share"
    yield from _rule("c4_javascript_lines", script, ">", c.max_javascript_line_share)
    yield from _rule("c4_policy_lines", "policy_line_share", ">", c.max_policy_line_share)
    yield from _rule("c4_few_sentences", "sentence_count", "<", c.min_sentences)


def _fineweb_rules(config: SelectConfig) -> Iterator[Rule]:
    c = config
    marks = "punctuated_line_share"
    yield from _rule("fineweb_punctuation", marks, "<", c.min_punctuated_line_share)
    duplicates = "duplicate_line_char_share"
    yield from _rule("fineweb_duplicate_chars", duplicates, ">", c.max_duplicated_char_share)
    yield from _rule(
        "fineweb_short_lines", "short_line_share", ">", c.max_short_line_share, "spaced"
    )
    yield from _rule("fineweb_newlines", "newline_ratio", ">", c.max_newline_ratio)


def _rule(
    reason: str,
    signal: str,
    op: Literal["<", ">"],
    threshold: float | None,
    scope: Literal["all", "spaced", "english"] = "all",
) -> Iterator[Rule]:
    if threshold is not None:
        yield Rule(reason, signal, op, float(threshold), scope)


def _in_scope(table: pa.Table, rule: Rule) -> pa.ChunkedArray | pa.Scalar:
    if rule.scope == "spaced":
        return pc.less(table["unspaced_share"], 0.5)
    if rule.scope == "english":
        return pc.fill_null(pc.equal(table["language"], "en"), False)
    if rule.scope == "identified":
        return pc.equal(table["language_from"], "model")
    return pa.scalar(True)


def _breaks(table: pa.Table, rule: Rule) -> pa.ChunkedArray:
    column = table[rule.signal]
    if isinstance(rule.threshold, tuple):
        allowed = pa.array(rule.threshold, pa.string())
        return pc.invert(pc.is_in(column, value_set=allowed, skip_nulls=True))
    compare = pc.less if rule.op == "<" else pc.greater
    return compare(column, rule.threshold)


def _drops(rows: pa.Table, rule: Rule) -> pa.Table:
    n, column = rows.num_rows, rows[rule.signal]
    by_name = isinstance(rule.threshold, tuple)
    nothing = pa.nulls(n, pa.float64())
    threshold = nothing if by_name else pa.array([rule.threshold] * n, pa.float64())
    return pa.table(
        {
            "id": rows["id"],
            "stage": pa.array([STAGE.name] * n, pa.string()),
            "reason": pa.array([rule.reason] * n, pa.string()),
            "value": nothing if by_name else column,
            "threshold": threshold,
            "detail": pc.fill_null(column, "unknown") if by_name else pa.nulls(n, pa.string()),
        },
        schema=DROPS.arrow,
    )


def hold_cut(run: Run, corpus: Manifest, quantile: float) -> Pin:
    """The pinned score below which `quantile` of the first build's live documents were.

    It is another one for another classifier, whose content is part of what it was made with.
    Raises ConfigError where documents have no score.
    """
    models = corpus.payload["pins"]
    model = models.get("quality") or models.get("quality-model")
    if model is None:
        raise ConfigError(
            "quality_quantile is set but documents have no quality; set annotate's quality_model, "
            "add a section quality, or unset quality_quantile"
        )

    def make() -> ObjectRef:
        shards = open_corpus(run.store, corpus).shards
        cut = quality_cut((_live_quality(run.store, shard) for shard in shards), quantile)
        run.say(f"select: documents of a quality under {cut:g} leave")
        return run.store.put_bytes(json.dumps({"min_quality": cut}).encode(), "cut", "json")

    return hold(run, "quality_cut", {"quality_quantile": quantile, "model": model}, make)


def _live_quality(store: Store, shard: Shard) -> pa.ChunkedArray:
    columns = ["id", "quality"]
    return live_rows(store, shard, shard.extras.get(SIGNALS.kind), SIGNALS, columns)["quality"]


def quality_cut(scores: Iterable[pa.ChunkedArray], quantile: float) -> float:
    """The score to cut at: of n scores, in ascending order, the one after n * `quantile`, rounded
    down, others; so many are below it, or fewer where some tie with it.

    `scores` have 6 decimals and lie in [0, 1]. They are counted and not kept, so that memory is
    flat. Raises DataError where there are none.
    """
    counts = np.zeros(10**6 + 1, np.int64)
    for column in scores:
        counts += np.bincount(
            np.rint(column.to_numpy() * 1e6).astype(np.int64), minlength=10**6 + 1
        )
    ascending = np.cumsum(counts)
    if not ascending[-1]:
        raise DataError("no document is left to find the quantile of quality of")
    return float(np.searchsorted(ascending, int(ascending[-1] * quantile), "right")) / 1e6


def select_request(corpus: Manifest, config: SelectConfig, cut: Pin | None) -> Request:
    """What decides the filters' verdicts: the signals, the text's columns and the thresholds."""
    pins = {cut.name: cut.object.sha256} if cut else {}
    return Request(STAGE, config.model_dump(), {"corpus": corpus}, pins)


def select_work(store: Store, shard: Shard, config: SelectConfig) -> Outcome:
    columns = store.read_table(shard.text, DOCUMENTS, ["id", "digest", "license"])
    signals = store.read_table(shard.extras.get(SIGNALS.kind), SIGNALS)
    drops = select_shard(columns, signals, config)
    return Outcome(((DROPS, drops),), columns.num_rows, columns.num_rows - drops.num_rows)


@as_task("select")
def select(run: Run, corpus: Manifest, config: SelectConfig) -> Manifest:
    """Drops what fails a threshold over the stored signals: nothing is measured again."""
    cut = None
    if config.quality_quantile is not None:
        cut = hold_cut(run, corpus, config.quality_quantile)
    request = select_request(corpus, config, cut)
    if done := reuse(run, request):
        return done
    applied = config
    if cut is not None:
        found = json.loads(run.store.read_bytes(cut.object))
        applied = config.model_copy(update={"quality_quantile": None, **found})
    shards = open_corpus(run.store, corpus).shards
    actions = [
        Action(
            {**shard.inputs, "signals": _digest(shard.extras.get(SIGNALS.kind))}, (shard, applied)
        )
        for shard in shards
    ]
    receipts = run_actions(run, request, select_work, actions)
    summary = {"quality_cut": applied.min_quality} if cut else {}
    return commit_stage(run, request, receipts, shards, summary=summary)


def _digest(ref: ObjectRef | None) -> str:
    return ref.data_digest if ref else ""
