"""What a person calls a corpus: `corpus/main`, `main`, `corpus/main@1`, or a fingerprint."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Any

from llm import files
from llm.errors import DataError
from tasks.inspecting import lineage
from tasks.store.records import Manifest, ManifestRef
from tasks.store.store import Store

_ENTRY = re.compile(r"(?P<name>.+)@(?P<back>\d+)")
_FINGERPRINT = re.compile(r"[0-9a-f]{6,64}")
KINDS = ("corpus", "dataset")


@dataclass(frozen=True)
class Named:
    """A manifest by a name, and the line of manifests that led to it, itself last."""

    name: str
    manifest: Manifest
    line: tuple[Manifest, ...]


def find_named(store: Store, text: str) -> Named:
    """The manifest that `text` means.

    `corpus/main` or `dataset/main` is the newest entry of that ref, `corpus/main@1` the one before,
    a bare name means the corpus, and six or more hex digits the manifest whose fingerprint begins
    with them. Raises DataError naming what there is.
    """
    entry = _ENTRY.fullmatch(text)
    name, back = (entry["name"], int(entry["back"])) if entry else (text, 0)
    kind, _, rest = name.partition("/") if "/" in name else ("corpus", "", name)
    entries = entries_of(store, kind, rest)
    if entries:
        return _at(store, f"{kind}/{rest}", entries, back)
    if not entry and _FINGERPRINT.fullmatch(text):
        return _by_fingerprint(store, text)
    known = published(store)
    nearest = difflib.get_close_matches(f"{kind}/{rest}", known, 1, 0.6)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise DataError(
        f"no ref {text} in {store.root}: {hint}there are {', '.join(known) or 'none yet'}"
    )


def published(store: Store) -> list[str]:
    """Every corpus and dataset that has a name, corpora first."""
    return [f"{kind}/{name}" for kind in KINDS for _, name in store.list_refs(kind)]


def entries_of(store: Store, kind: str, name: str) -> list[dict[str, Any]]:
    """The entries of a ref to a corpus or a dataset, newest first; none for another kind."""
    ref = store.find_ref(kind, name) if kind in KINDS else None
    return [{"value": ref.value}, *ref.history] if ref else []


def _at(store: Store, name: str, entries: list[dict[str, Any]], back: int) -> Named:
    if len(entries) == 1 and back:
        raise DataError(
            f"{name} was published once so far: there is no {name}@{back} before it yet; a run "
            "that changes it makes the next entry"
        )
    if back >= len(entries):
        raise DataError(
            f"{name} has {len(entries)} entries, the oldest is {name}@{len(entries) - 1}; "
            f"there is no {name}@{back}"
        )
    if entries[back].get("collected"):
        raise DataError(f"{name}@{back} was deleted by `loam store gc`; name a newer entry")
    value = entries[back]["value"]
    manifest = store.manifest(ManifestRef(value["stage"], value["fingerprint"]))
    if manifest.stage == "dataset":
        line = lineage(store, manifest)
    else:
        line = [store.manifest(ManifestRef(**pin)) for pin in value.get("line", ())]
    return Named(f"{name}@{back}" if back else name, manifest, tuple(line))


def _by_fingerprint(store: Store, text: str) -> Named:
    base = f"{store.root}/manifests/"
    names = [url.removeprefix(base).removesuffix(".json") for url in files.list_urls(base)]
    found = [name.split("/") for name in names if name.split("/")[-1].startswith(text)]
    if len(found) != 1:
        there = ", ".join(f"{stage} {fingerprint[:12]}" for stage, fingerprint in found)
        raise DataError(
            f"{len(found)} manifests have a fingerprint that begins with {text}: "
            f"{there or 'there are the refs ' + ', '.join(published(store))}"
        )
    manifest = store.manifest(ManifestRef(*found[0]))
    return Named(
        f"{manifest.stage} {manifest.fingerprint[:12]}",
        manifest,
        tuple(lineage(store, manifest)),
    )
