"""The model registry: immutable versions, movable aliases, and a log of what was done to them.

models/<name>/versions/<n>.json    created if absent; says which files, data and run it is
models/<name>/aliases.json         candidate, champion, previous -> n; moves by compare-and-swap
models/<name>/events/<n>.json      registered, promoted, held back, trained on what has been taken
                                   down since: who, when and why
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import files
from llm.errors import DataError
from tasks.store.records import FORMAT, ManifestRef, ObjectRef, check_format, parse
from tasks.store.store import Store, now

if TYPE_CHECKING:
    from llm.decoder import Decoder
    from llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class ModelVersion:
    """A registered model: its files by name, where it came from, and how good it is."""

    name: str
    version: int
    model_sha256: str
    files: dict[str, ObjectRef]
    manifests: dict[str, ManifestRef]
    heldout_sha256: str
    metrics: dict[str, Any]
    created_at: str
    provenance: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


def _folder(store: Store, name: str) -> str:
    return f"{store.root}/models/{name}"


def names(store: Store) -> list[str]:
    """Every model that has a version, sorted."""
    base = f"{store.root}/models/"
    return sorted({url.removeprefix(base).split("/")[0] for url in files.list_urls(base)})


def versions(store: Store, name: str) -> list[ModelVersion]:
    """Every version of a model, oldest first."""
    urls = files.list_urls(f"{_folder(store, name)}/versions")
    bodies = zip(urls, files.read_many(urls), strict=True)
    found = [_version_from(parse(body, url), url) for url, body in bodies if body]
    return sorted(found, key=lambda version: version.version)


def _version_from(data: dict[str, Any], url: str) -> ModelVersion:
    check_format(data, url)
    return ModelVersion(
        **{
            **data,
            "files": {name: ObjectRef(**ref) for name, ref in data["files"].items()},
            "manifests": {name: ManifestRef(**ref) for name, ref in data["manifests"].items()},
        }
    )


def find_version(store: Store, name: str, which: str) -> ModelVersion:
    """A version by number or alias. Raises DataError naming what there is."""
    known = versions(store, name)
    number = aliases(store, name).get(which) or (int(which) if which.isdigit() else None)
    for version in known:
        if version.version == number:
            return version
    there = ", ".join([*aliases(store, name), *(str(v.version) for v in known)]) or "nothing"
    raise DataError(f"model {name} has no version '{which}'; there is {there}")


def find_same(store: Store, described: ModelVersion) -> ModelVersion | None:
    """The version that has the same files and manifests, if it is registered already."""
    return _same(versions(store, described.name), described)


def _same(known: list[ModelVersion], described: ModelVersion) -> ModelVersion | None:
    for version in known:
        if version.manifests == described.manifests and version.files == described.files:
            return version
    return None


def register(store: Store, described: ModelVersion) -> ModelVersion:
    """Gives a model the next number; one that another run registered meanwhile keeps its own."""
    # One look decides both, so that an equal model registered meanwhile has the number we try.
    while (known := _same(there := versions(store, described.name), described)) is None:
        number = max((v.version for v in there), default=0) + 1
        numbered = replace(described, version=number)
        body = json.dumps(asdict(numbered), sort_keys=True, indent=2, ensure_ascii=False).encode()
        if files.create(f"{_folder(store, described.name)}/versions/{number}.json", body):
            log_event(store, described.name, "registered", {"version": number})
    return known


def aliases(store: Store, name: str) -> dict[str, int]:
    seen = files.read_versioned(f"{_folder(store, name)}/aliases.json")
    return json.loads(seen.body) if seen else {}


def move_aliases(store: Store, name: str, moves: dict[str, int], why: str) -> dict[str, int]:
    """Points aliases at versions, whatever else moves them meanwhile, and logs it."""
    url = f"{_folder(store, name)}/aliases.json"
    while True:
        seen = files.read_versioned(url)
        before = json.loads(seen.body) if seen else {}
        after = {**before, **moves}
        if after == before:
            return before
        if files.swap(url, seen, _alias_body(after)):
            log_event(store, name, "aliases", {"before": before, "after": after, "why": why})
            return after


def promote_if(store: Store, version: ModelVersion, tolerance: float) -> str:
    """The gate: makes a version the champion unless it does worse. Returns the verdict, a sentence.

    Both are measured in bits per byte on the pinned validation split. Where the champion was
    measured on another held-out set the two do not compare, and the champion stays. Decided anew
    should somebody else move the champion meanwhile.
    """
    url = f"{_folder(store, version.name)}/aliases.json"
    while True:
        seen = files.read_versioned(url)
        before = json.loads(seen.body) if seen else {}
        promoted, why = _judge(store, version, before.get("champion"), tolerance)
        after = dict(before)
        if promoted:
            after["champion"] = version.version
            if "champion" in before:
                after["previous"] = before["champion"]
        if after == before or files.swap(url, seen, _alias_body(after)):
            detail = {"version": version.version, "promoted": promoted, "why": why}
            log_event(store, version.name, "gate", detail)
            return why


def _judge(
    store: Store, version: ModelVersion, champion: int | None, tolerance: float
) -> tuple[bool, str]:
    if champion is None:
        return True, "promoted: there was no champion"
    rival = find_version(store, version.name, str(champion))
    if rival.heldout_sha256 != version.heldout_sha256:
        return False, (
            f"held back: champion {champion} was measured on another held-out set; compare them "
            f"and promote by hand with `loam models --promote {version.version}`"
        )
    split = "validation" if "validation" in version.metrics else next(iter(version.metrics), "")
    if not split:
        return False, "held back: there is no held-out split to measure it on"
    ours, theirs = (v.metrics[split]["model"]["bits_per_byte"] for v in (version, rival))
    figures = f"{ours:.4f} bits per byte, champion {champion} has {theirs:.4f}"
    better = ours <= theirs + tolerance
    return better, f"promoted: {figures}" if better else f"held back: {figures}"


def last_verdict(store: Store, version: ModelVersion) -> str | None:
    """What the gate said of a version; None when it has not judged it."""
    for event in reversed(events(store, version.name)):
        if event["event"] == "gate" and event["version"] == version.version:
            return str(event["why"])
    return None


def taken_down(store: Store, version: ModelVersion) -> int:
    """How many of the documents that a version was trained on have been taken down since."""
    for event in reversed(events(store, version.name)):
        if event["event"] == "taken_down" and event["version"] == version.version:
            return int(event["documents"])
    return 0


def mark_taken_down(store: Store, version: ModelVersion, documents: int) -> None:
    """Notes how many documents of a version's training have been taken down, where that is news."""
    if taken_down(store, version) != documents:
        detail = {"version": version.version, "documents": documents}
        log_event(store, version.name, "taken_down", detail)


def promote(store: Store, version: ModelVersion, why: str) -> dict[str, int]:
    """Makes a version the champion by hand; the champion so far becomes `previous`."""
    champion = aliases(store, version.name).get("champion")
    moves = {"champion": version.version}
    if champion is not None and champion != version.version:
        moves["previous"] = champion
    return move_aliases(store, version.name, moves, why)


def _alias_body(aliases: dict[str, int]) -> bytes:
    return json.dumps(aliases, sort_keys=True, indent=2).encode()


def log_event(store: Store, name: str, event: str, detail: dict[str, Any]) -> None:
    """Appends to the model's log."""
    folder = f"{_folder(store, name)}/events"
    number = len(files.list_urls(folder)) + 1
    body = json.dumps({"event": event, "at": now(), **detail}, sort_keys=True, indent=2).encode()
    while not files.create(f"{folder}/{number:06d}.json", body):
        number += 1


def events(store: Store, name: str) -> list[dict[str, Any]]:
    """The model's log, oldest first."""
    urls = files.list_urls(f"{_folder(store, name)}/events")
    return [json.loads(body) for body in files.read_many(urls) if body]


def load_version(store: Store, version: ModelVersion) -> tuple[Decoder, Tokenizer]:
    """A registered model and its tokenizer."""
    from llm.import_huggingface import import_huggingface
    from llm.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name, ref in version.files.items():
            (Path(folder) / name).write_bytes(store.read_bytes(ref))
        tokenizer = Tokenizer.from_bytes((Path(folder) / "tokenizer.json").read_bytes())
        return import_huggingface(Path(folder)), tokenizer
