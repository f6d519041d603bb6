"""The dataset card: what a corpus is, answered from its data, as Markdown and as JSON.

It is made with each labelled corpus and kept beside it in the store, so that whoever has the corpus
has its card. The questions are in `tasks/card_checks.py`, the figures in `tasks/card_facts.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm import files
from tasks.as_task import as_task
from tasks.card_checks import checklist, enough, known_gaps
from tasks.card_facts import Check, Facts, gather
from tasks.inspecting import line_of
from tasks.report_page import format_count, format_number, format_percent, format_size
from tasks.store.records import Manifest, ObjectRef
from tasks.store.run import Request, Run, reuse
from tasks.store.stage import Stage
from tasks.store.store import Store, now

STAGE = Stage("card", 2, ("jinja2",))
MARKDOWN, JSON = "card.md", "card.json"


class Card(Facts):
    """The facts of a corpus, with the questions they answer and what is known to be missing."""

    checklist: tuple[Check, ...]
    known_gaps: tuple[str, ...]


def card_of(facts: Facts) -> Card:
    """The card of these facts."""
    told = {name: getattr(facts, name) for name in Facts.model_fields}
    return Card(**told, checklist=checklist(facts), known_gaps=known_gaps(facts))


def render_markdown(card: Card) -> str:
    """The card as Markdown that GitHub and Hugging Face show."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - it is Markdown, and `plain` escapes for that
        loader=PackageLoader("tasks", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=format_count, number=format_number, percent=format_percent, size=format_size,
        md=plain, setting=_setting,
    )  # fmt: skip
    return environment.get_template("card.md.j2").render(card=card)


# An underscore within a word marks nothing.
_MARKS = re.compile(r"([\\`*\[\]<>|#~&]|(?<![^\W_])_|_(?![^\W_]))")


def plain(value: object) -> str:
    """Text from anywhere as one line of Markdown that says just that."""
    if value is None:
        return "unknown"
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return _MARKS.sub(r"\\\1", " ".join(line.split()))


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value)) or "none"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_setting(one)}" for key, one in value.items()) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_number(value) if isinstance(value, float) else plain(value)


def card_request(
    name: str, line: Sequence[Manifest], labelled: Manifest, counted: Manifest, told: Manifest
) -> Request:
    """What decides a card: the corpus, what it was counted to hold, its alarms, and the manifests
    that led to it."""
    manifests = sorted(f"{one.stage} {one.fingerprint}" for one in line)
    inputs = {"labelled": labelled, "census": counted, "alarms": told}
    return Request(STAGE, {"name": name, "line": manifests}, inputs)


@as_task("card")
def card(run: Run, labelled: Manifest, counted: Manifest, told: Manifest) -> Manifest:
    """Writes the card of a labelled corpus, from its census, its alarms and the run's line."""
    line = line_of(run.visits)
    request = card_request(run.name, line, labelled, counted, told)
    if done := reuse(run, request):
        return done
    made = card_of(gather(run.store, run.name, line, labelled))
    objects: dict[str, tuple[ObjectRef, ...]] = {
        name: (run.store.put_bytes(body, "card", name.rsplit(".")[-1]),)
        for name, body in _files(made).items()
    }
    return run.store.commit(
        Manifest(
            stage=STAGE.name,
            fingerprint=request.ref.fingerprint,
            payload=request.payload,
            inputs={role: manifest.ref for role, manifest in request.inputs.items()},
            rows_in=labelled.rows_out,
            rows_out=labelled.rows_out,
            drops={},
            # A card tells of a corpus's history too, and the digest is only of its data.
            data_digest=counted.data_digest,
            receipts=None,
            objects=objects,
            provenance={**run.provenance, "run_id": run.run_id, "at": now()},
        )
    )


def read_card(store: Store, line: Sequence[Manifest]) -> dict[str, bytes] | None:
    """The card of a line as files by name; None where the corpus was published without one."""
    made = next((one for one in line if one.stage == STAGE.name), None)
    if made is None:
        return None
    return {name: store.read_bytes(made.object(name)) for name in (MARKDOWN, JSON)}


def write_card(
    store: Store, line: Sequence[Manifest], folder: str | Path, wanted: int | None = None
) -> None:
    """Writes the card of a line into a folder, where the next one replaces it; nothing where the
    line has none.

    Where it goes on to a dataset, and so many tokens are `wanted` of it for training, the card
    also answers whether that is large enough.
    """
    told = read_card(store, line)
    if told is None:
        return
    data = next((one for one in line if one.stage == "dataset"), None)
    if data is not None and wanted:
        trained = data.summary["splits"].get("train", {"tokens": 0})
        made = Card.model_validate_json(told[JSON])
        checks = (made.checklist[0], enough(trained["tokens"], wanted), *made.checklist[1:])
        told = _files(made.model_copy(update={"checklist": checks}))
    for name, body in told.items():
        files.put(f"{folder}/{name}", body)


def _files(made: Card) -> dict[str, bytes]:
    body = json.dumps(made.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    return {MARKDOWN: render_markdown(made).encode(), JSON: body.encode()}
