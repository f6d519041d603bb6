"""What refs and models reach, and verifying it byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llm import files
from llm.errors import DataError
from llm.progress import tally
from tasks import registry
from tasks.store.executors import run_all
from tasks.store.records import (
    Erased,
    Manifest,
    ManifestRef,
    ObjectRef,
    erased_from,
    manifest_from,
    parse,
    receipt_from,
)
from tasks.store.store import Ref, Store

ALL_ENTRIES = 1_000_000
ERASED = ".erased.json"

# What reading a damaged record raises.
DAMAGE = (DataError, KeyError, TypeError)

# The objects that receipts name, by the receipt's URL.
Receipts = dict[str, Sequence[ObjectRef]]


@dataclass
class Reach:
    """Manifests, objects and runs reached, with who reaches each, and what could not be read.

    `erased` are the objects, reached or not, in whose place others stand since documents were
    erased from them; what stands in the place of a reached object is reached.
    """

    manifests: dict[ManifestRef, Manifest] = field(default_factory=dict)
    objects: dict[str, ObjectRef] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    erased: dict[str, Erased] = field(default_factory=dict)
    reached_by: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def reach(
    store: Store,
    keep: int = ALL_ENTRIES,
    only: tuple[str, str] | None = None,
    objects: Iterable[str] | None = None,
) -> Reach:
    """Everything that the last `keep` entries of each ref, and every registered model, reach.

    An entry is passed over once gc has collected what it names; of what is taken down every entry
    counts. `only` limits it to one ref (kind, name); `objects` are the URLs of all objects, where
    the caller has them.
    """
    listed = files.list_urls(f"{store.root}/objects") if objects is None else objects
    found = Reach(erased=_erased(store, listed))
    for kind, name in [only] if only else store.list_refs():
        try:
            ref = store.find_ref(kind, name)
        except DataError as error:
            found.problems.append(str(error))
            continue
        if ref is None:
            raise DataError(f"there is no ref {kind}/{name}; `loam status` lists them")
        for value in kept_entries(kind, ref, keep):
            _follow(store, value, f"{kind}/{name}", found)
    for name in [] if only else registry.names(store):
        for version in registry.versions(store, name):
            who = f"model {name}/{version.version}"
            for ref_ in version.files.values():
                _add(found, ref_, who)
            for pin in version.manifests.values():
                add_manifest(store, pin, who, found)
    return found


def kept_entries(kind: str, ref: Ref, keep: int) -> list[dict[str, Any]]:
    """The values of the last `keep` entries of a ref, without those that gc has collected."""
    most = ALL_ENTRIES if kind == "takedown" else keep
    earlier = [entry["value"] for entry in ref.history if not entry.get("collected")]
    return [ref.value, *earlier][:most]


def _erased(store: Store, listed: Iterable[str]) -> dict[str, Erased]:
    urls = [url for url in listed if url.endswith(ERASED)]
    found = zip(urls, files.read_many(urls), strict=True)
    return {object_name(url): erased_from(parse(body or b"", url), url) for url, body in found}


def object_name(url: str) -> str:
    """The sha256 in an object's URL, or in that of what is said of an erased one."""
    return url.rsplit("/", 1)[1].split(".")[0]


def _follow(store: Store, value: dict[str, object], who: str, found: Reach) -> None:
    if "fingerprint" in value:
        named = ManifestRef(str(value["stage"]), str(value["fingerprint"]))
        line: Any = value.get("line", ())
        for pin in (named, *(ManifestRef(**ref) for ref in line)):
            add_manifest(store, pin, who, found)
    elif isinstance(value.get("object"), dict):
        _add(found, ObjectRef(**value["object"]), who)  # type: ignore[arg-type]


def _add(found: Reach, ref: ObjectRef, who: str) -> None:
    found.objects.setdefault(ref.sha256, ref)
    found.reached_by.setdefault(ref.sha256, who)
    erased = found.erased.get(ref.sha256)
    if erased is not None and erased.successor is not None:
        _add(found, erased.successor, who)


def add_manifest(store: Store, pin: ManifestRef, who: str, found: Reach) -> None:
    """Adds a manifest, its objects and everything it was made of."""
    if pin in found.manifests:
        return
    try:
        manifest = store.manifest(pin)
        found.manifests[pin] = manifest
        receipts = store.receipts(manifest)
    except DAMAGE as error:
        found.problems.append(f"{who}: {error}")
        return
    if manifest.receipts is not None:
        _add(found, manifest.receipts, who)
    for refs in manifest.objects.values():
        for ref in refs:
            _add(found, ref, who)
    for receipt in receipts:
        for ref in receipt.outputs:
            _add(found, ref, who)
    if "run" in manifest.summary:
        found.runs.add(manifest.summary["run"])
    for parent in manifest.inputs.values():
        add_manifest(store, parent, who, found)


@dataclass(frozen=True)
class Verdict:
    """What verifying found: counts, and a line for each thing that is wrong.

    A stray object is whole and harmless, such as one whose writer was killed before it could say
    so: gc's business, and no reason to call a store damaged. No more is one from which documents
    were erased, as long as what stands in its place is there; `unfinished` are those that are
    still there themselves.
    """

    manifests: int
    objects: int
    bytes: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    stray: tuple[str, ...]
    erased: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.missing or self.changed or self.unfinished)


def verify(store: Store, executor: Executor, only: tuple[str, str] | None = None) -> Verdict:
    """Re-hashes every object that a ref reaches, and looks for files that nothing accounts for.

    An object is stray when no manifest, receipt, ref or model names it. What a receipt or a
    manifest alone names is work that a later run may reuse, and gc's business.
    """
    listed = files.list_urls(f"{store.root}/objects")
    found = reach(store, only=only, objects=listed)
    receipts = receipt_outputs(store, found) if not only else {}
    names = sorted(found.objects.keys() - found.erased.keys())
    refs = [found.objects[name] for name in names]
    missing, changed, size = list(found.problems), [], 0
    with tally("verify", "objects", len(refs)) as progress:
        for index, state in run_all(executor, _state, [(store, ref) for ref in refs]):
            where = f"{store.object_url(refs[index])} (reached by {_who(found, refs[index])})"
            if state is None:
                missing.append(where)
            elif state != refs[index].sha256:
                changed.append(where)
            size += refs[index].bytes
            progress.advance()
    return Verdict(
        manifests=len(found.manifests),
        objects=len(refs),
        bytes=size,
        missing=tuple(sorted(missing)),
        changed=tuple(sorted(changed)),
        stray=() if only else tuple(sorted(_stray(store, found, receipts, listed))),
        erased=tuple(_told_of_erased(store, found)),
        unfinished=tuple(sorted(url for url in listed if _replaced(url, found))),
    )


def _replaced(url: str, found: Reach) -> bool:
    """Whether another object stands in the place of this one."""
    return object_name(url) in found.erased and not url.endswith(ERASED)


def _told_of_erased(store: Store, found: Reach) -> Iterator[str]:
    """A line for each reached object from which documents were erased."""
    for name in sorted(found.objects.keys() & found.erased.keys()):
        erased, url = found.erased[name], store.object_url(found.objects[name])
        instead = store.object_url(erased.successor) if erased.successor else "nothing"
        yield f"{url} ({erased.rows} rows, at {erased.at}; now {instead})"


def _who(found: Reach, ref: ObjectRef) -> str:
    return found.reached_by[ref.sha256]


def _state(store: Store, ref: ObjectRef) -> str | None:
    try:
        with files.open_for_reading(store.object_url(ref)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return None


def _stray(store: Store, found: Reach, receipts: Receipts, listed: Iterable[str]) -> Iterator[str]:
    accounted = {ref.sha256 for ref in found.objects.values()}
    accounted |= {ref.sha256 for refs in receipts.values() for ref in refs}
    accounted |= {ref.sha256 for ref in _manifest_objects(store)}
    accounted |= {
        erased.successor.sha256 for erased in found.erased.values() if erased.successor is not None
    }
    yield from (url for url in listed if object_name(url) not in accounted)


def receipt_outputs(store: Store, found: Reach) -> Receipts:
    """The objects that each receipt in `actions/` names; a damaged one joins the problems."""
    urls = [url for url in files.list_urls(f"{store.root}/actions") if url.endswith(".json")]
    outputs: Receipts = {}
    for url, body in zip(urls, files.read_many(urls), strict=True):
        try:
            outputs[url] = receipt_from(parse(body or b"", url)).outputs
        except DAMAGE as error:
            found.problems.append(f"{url}: {error}" if url not in str(error) else str(error))
    return outputs


def _manifest_objects(store: Store) -> Iterator[ObjectRef]:
    """The objects that the manifests in `manifests/` name themselves, reached or not."""
    urls = files.list_urls(f"{store.root}/manifests")
    for url, body in zip(urls, files.read_many(urls), strict=True):
        with suppress(*DAMAGE):
            manifest = manifest_from(body or b"", url)
            yield from (manifest.receipts,) if manifest.receipts else ()
            yield from (ref for refs in manifest.objects.values() for ref in refs)
