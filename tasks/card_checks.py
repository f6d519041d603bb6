"""The answers of a dataset card: its checklist and its known gaps, from its figures alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from tasks.card_facts import Check, Facts, Share
from tasks.census import CLEAN, URL_AND_TIME
from tasks.report_corpus import HELDOUT_SET
from tasks.report_page import format_count, format_percent, format_size

Answer = Literal["yes", "no", "unknown"]

# A model that trains well on so many tokens for each parameter: Hoffmann et al. 2022 (Training
# Compute-Optimal Large Language Models), table 3.
TOKENS_PER_PARAMETER = 20

# How often a text can be trained on and be worth nearly as much as new text: Muennighoff et al.
# 2023 (Scaling Data-Constrained Language Models), section 6.
EPOCHS = 4

# Part of the planted personal data that scrubbing must find for a yes.
LEAST_RECALL = 0.95


def checklist(facts: Facts) -> tuple[Check, ...]:
    """Each question, answered `yes`, `no`, or `unknown` where nothing measured it."""
    return (
        _fit(facts),
        _format(facts),
        _private(facts),
        _outliers(facts),
        _licenses(facts),
        _decontaminated(facts),
        _deduplicated(facts),
        _provenance(facts),
        _as_usual(facts),
    )


def _fit(facts: Facts) -> Check:
    asked = facts.stage("select").settings["languages"]
    share = sum(one.share for one in facts.languages if one.value in asked)
    parameters = facts.estimated_tokens // TOKENS_PER_PARAMETER
    parts = [
        f"asked for {', '.join(asked)}: {format_percent(share)}"
        if asked
        else "no language was asked for (select.languages)",
        f"found: {_listed(facts.languages[:3])}",
        f"{format_size(facts.text_bytes)} or about {format_count(facts.estimated_tokens)} tokens, "
        f"enough for {format_count(parameters)} parameters at {TOKENS_PER_PARAMETER} tokens each",
    ]
    return Check(
        question="Fit to the task: in the languages asked for?",
        answer=_answer(round(share, 4) == 1) if asked else "unknown",
        figures="; ".join(parts),
    )


def _format(facts: Facts) -> Check:
    clean = _having(facts.formats, CLEAN)
    wrong = [one for one in facts.formats if one.value != CLEAN]
    parts = [f"{format_count(clean)} of {format_count(facts.documents)} texts are clean"]
    parts += [f"{format_count(one.documents)} {one.value}" for one in wrong]
    return Check(
        question="Format consistent: NFC, and no control characters?",
        answer=_answer(clean == facts.documents),
        figures="; ".join(parts),
    )


def _private(facts: Facts) -> Check:
    engine, recall = facts.personal_data_engine, facts.recall("pii")
    replaced = format_count(sum(one.findings for one in facts.personal_data))
    parts = [
        f"{replaced} findings of {len(facts.personal_data)} types replaced, of "
        f"{len(engine['entities'])} types looked for"
    ]
    if recall is None:
        parts.append("how much was missed was not measured: no canaries were planted")
        answer: Answer = "unknown"
    else:
        parts.append(f"{recall.caught} of {recall.reached} planted values were found")
        least = f"{recall.least_caught} of {recall.least_reached}"
        if recall.least and recall.least_caught < recall.least_reached:
            parts.append(f"the fewest of {recall.least}, {least}")
        fewest = recall.caught / recall.reached
        if recall.least_reached:
            fewest = min(fewest, recall.least_caught / recall.least_reached)
        answer = _answer(fewest >= LEAST_RECALL)
    return Check(question="Sensitive data removed?", answer=answer, figures="; ".join(parts))


def _outliers(facts: Facts) -> Check:
    dropped = format_count(sum(one.documents for one in facts.filters))
    words = facts.words_per_document
    parts = [f"{len(facts.filters)} rules removed {dropped} documents"]
    if words:
        spread = ", ".join(f"{name} {format_count(n)}" for name, n in words.items())
        parts.append(f"words of a document that is left: {spread}")
    return Check(
        question="Outliers removed?", answer=_answer(bool(facts.filters)), figures="; ".join(parts)
    )


def _licenses(facts: Facts) -> Check:
    unknown = _having(facts.licenses, None)
    known = facts.documents - unknown
    return Check(
        question="Licences auditable: is one known of every document?",
        answer=_answer(not unknown),
        figures=f"known of {format_count(known)} of {format_count(facts.documents)} documents; "
        f"{_listed(facts.licenses[:5])}",
    )


def _decontaminated(facts: Facts) -> Check:
    asked = [one for one in facts.benchmarks if one.name != HELDOUT_SET]
    parts = [
        f"{one.name}: {format_count(one.items)} items looked for, "
        f"{format_count(one.documents_dropped)} documents dropped"
        for one in facts.benchmarks
    ]
    if not asked:
        parts.append("no benchmark is configured (decontaminate.benchmarks)")
    return Check(
        question="Decontaminated against benchmarks?",
        answer=_answer(bool(asked)),
        figures="; ".join(parts),
    )


def _deduplicated(facts: Facts) -> Check:
    found = facts.duplicates
    parts = [
        f"{format_count(found.removed)} documents of {format_count(found.clusters)} clusters "
        f"removed, the largest of {format_count(found.largest)}"
    ]
    if recall := facts.recall("near_duplicate"):
        parts.append(f"{recall.caught} of {recall.reached} planted near-duplicates were found")
    return Check(question="Deduplicated?", answer="yes", figures="; ".join(parts))


def _provenance(facts: Facts) -> Check:
    complete = _having(facts.provenance, URL_AND_TIME)
    return Check(
        question="Provenance complete: is the URL and the time of fetching known of every "
        "document?",
        answer=_answer(complete == facts.documents),
        figures=f"both are of {format_count(complete)} of {format_count(facts.documents)} documents"
        f"; {_listed(facts.provenance, 'neither')}",
    )


def _as_usual(facts: Facts) -> Check:
    if facts.alarms:
        return Check(question="As usual?", answer="no", figures="; ".join(facts.alarms))
    if not facts.compared_with:
        figures = "no corpus was published before under this name to compare with"
        return Check(question="As usual?", answer="unknown", figures=figures)
    figures = f"no alarm, beside the last {facts.compared_with} published"
    return Check(question="As usual?", answer="yes", figures=figures)


def enough(tokens: int, wanted: int) -> Check:
    """Whether a corpus is large enough to train on so many tokens."""
    figures = (
        f"{format_count(wanted)} tokens to train on, {format_count(tokens)} in the training split: "
        f"{wanted / max(1, tokens):.3g} times each, and up to {EPOCHS} times is nearly as good as "
        "new text (Muennighoff et al. 2023)"
    )
    return Check(
        question="Fit to the task: large enough for the training that is configured?",
        answer=_answer(wanted <= EPOCHS * tokens),
        figures=figures,
    )


def _answer(well: bool) -> Answer:
    return "yes" if well else "no"


def _having(found: Sequence[Share], value: str | None) -> int:
    return sum(one.documents for one in found if one.value == value)


def _listed(found: Sequence[Share], unknown: str = "unknown") -> str:
    named = [f"{one.value or unknown} {format_percent(one.share)}" for one in found]
    return ", ".join(named) or "none"


def known_gaps(facts: Facts) -> tuple[str, ...]:
    """What nothing measured, or what is known to be missing."""
    return tuple(_gaps(facts))


def _gaps(facts: Facts) -> Iterator[str]:
    if not facts.pinned("language-model"):
        yield "No language model: a document's language is what its page or record says."
    if not facts.pinned("quality"):
        yield "No quality classifier: only rules judged how good a text is."
    if not facts.pinned("topic-model"):
        yield "No topic model: what the documents are about was not measured."
    if all(one.name == HELDOUT_SET for one in facts.benchmarks):
        yield "No benchmark configured: only the held-out set was looked for in the corpus."
    if not facts.canaries:
        yield "No canaries planted: what each stage misses was not measured."
    if facts.personal_data_engine["engine"] == "no_op":
        yield "Names of persons and places are not looked for (scrub.engine is no_op)."
    if unknown := _having(facts.licenses, None):
        share = format_percent(unknown / facts.documents)
        yield f"The licence of {format_count(unknown)} documents ({share}) is not known."
    if unknown := _having(facts.languages, None):
        share = format_percent(unknown / facts.documents)
        yield f"The language of {format_count(unknown)} documents ({share}) is not known."
    for source in facts.sources:
        if aside := sum(source.set_aside.values()):
            why = ", ".join(f"{reason} {format_count(n)}" for reason, n in source.set_aside.items())
            yield f"{source.name}: {format_count(aside)} records were set aside ({why})."
        if source.complete is False:
            yield f"{source.name}: not complete ({'; '.join(source.incomplete_because[:3])})."
    yield "Tokens are estimated from bytes; the report counts them once a tokenizer is learnt."
