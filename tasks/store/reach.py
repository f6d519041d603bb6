"""What refs and models reach: verifying it byte for byte, and listing what nothing reaches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llm import files
from llm.errors import DataError
from tasks import registry
from tasks.progress import tally
from tasks.store.executors import run_all
from tasks.store.records import Manifest, ManifestRef, ObjectRef, manifest_from, parse, receipt_from
from tasks.store.store import Store

KEEP_ENTRIES = 5

# What reading a damaged record raises.
DAMAGE = (DataError, KeyError, TypeError)

# The objects that receipts name, by the receipt's URL.
Receipts = dict[str, Sequence[ObjectRef]]


@dataclass
class Reach:
    """Manifests, objects and runs reached, with who reaches each, and what could not be read."""

    manifests: dict[ManifestRef, Manifest] = field(default_factory=dict)
    objects: dict[str, ObjectRef] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    reached_by: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def reach(store: Store, keep: int = KEEP_ENTRIES, only: tuple[str, str] | None = None) -> Reach:
    """Everything that the last `keep` entries of each ref, and every registered model, reach.

    `only` limits it to one ref (kind, name).
    """
    found = Reach()
    for kind, name in [only] if only else store.list_refs():
        try:
            ref = store.find_ref(kind, name)
        except DataError as error:
            found.problems.append(str(error))
            continue
        if ref is None:
            raise DataError(f"there is no ref {kind}/{name}; `loam status` lists them")
        entries = [ref.value, *(entry["value"] for entry in ref.history)][:keep]
        for value in entries:
            _follow(store, value, f"{kind}/{name}", found)
    for name in [] if only else registry.names(store):
        for version in registry.versions(store, name):
            who = f"model {name}/{version.version}"
            for ref_ in version.files.values():
                _add(found, ref_, who)
            for pin in version.manifests.values():
                _add_manifest(store, pin, who, found)
    return found


def _follow(store: Store, value: dict[str, object], who: str, found: Reach) -> None:
    if "fingerprint" in value:
        named = ManifestRef(str(value["stage"]), str(value["fingerprint"]))
        line: Any = value.get("line", ())
        for pin in (named, *(ManifestRef(**ref) for ref in line)):
            _add_manifest(store, pin, who, found)
    elif isinstance(value.get("object"), dict):
        _add(found, ObjectRef(**value["object"]), who)  # type: ignore[arg-type]


def _add(found: Reach, ref: ObjectRef, who: str) -> None:
    found.objects.setdefault(ref.sha256, ref)
    found.reached_by.setdefault(ref.sha256, who)


def _add_manifest(store: Store, pin: ManifestRef, who: str, found: Reach) -> None:
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
        _add_manifest(store, parent, who, found)


@dataclass(frozen=True)
class Verdict:
    """What verifying found: counts, and a line for each thing that is wrong.

    A stray object is whole and harmless, such as one whose writer was killed before it could say
    so: gc's business, and no reason to call a store damaged.
    """

    manifests: int
    objects: int
    bytes: int
    missing: tuple[str, ...]
    changed: tuple[str, ...]
    stray: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not (self.missing or self.changed)


def verify(store: Store, executor: Executor, only: tuple[str, str] | None = None) -> Verdict:
    """Re-hashes every object that a ref reaches, and looks for files that nothing accounts for.

    An object is stray when no manifest, receipt, ref or model names it. What a receipt or a
    manifest alone names is work that a later run may reuse, and gc's business.
    """
    found = reach(store, keep=1_000_000, only=only)
    receipts = _receipts(store, found) if not only else {}
    refs = [found.objects[key] for key in sorted(found.objects)]
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
    stray = () if only else tuple(sorted(_stray(store, found, receipts)))
    return Verdict(
        len(found.manifests), len(refs), size, tuple(sorted(missing)), tuple(sorted(changed)), stray
    )


def _who(found: Reach, ref: ObjectRef) -> str:
    return found.reached_by[ref.sha256]


def _state(store: Store, ref: ObjectRef) -> str | None:
    try:
        with files.open_for_reading(store.object_url(ref)) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    except FileNotFoundError:
        return None


def _stray(store: Store, found: Reach, receipts: Receipts) -> Iterator[str]:
    accounted = {ref.sha256 for ref in found.objects.values()}
    accounted |= {ref.sha256 for refs in receipts.values() for ref in refs}
    accounted |= {ref.sha256 for ref in _manifest_objects(store)}
    for url in files.list_urls(f"{store.root}/objects"):
        name = url.rsplit("/", 1)[1].split(".")[0]
        if name not in accounted:
            yield url


def _receipts(store: Store, found: Reach) -> Receipts:
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


@dataclass(frozen=True)
class Garbage:
    """Files that nothing reaches, in the order in which they may go: receipts before objects."""

    receipts: tuple[str, ...]
    manifests: tuple[str, ...]
    objects: tuple[str, ...]
    runs: tuple[str, ...]
    bytes: int


def garbage(store: Store, keep: int = KEEP_ENTRIES) -> Garbage:
    """What neither the last `keep` entries of a ref nor a registered model reach."""
    found = reach(store, keep)
    outputs = _receipts(store, found)
    if found.problems:
        raise DataError(
            f"not everything could be followed, so nothing can be called garbage: "
            f"{found.problems[0]}; see `loam store verify`"
        )
    kept = set(found.objects)
    receipts = [
        url for url, refs in sorted(outputs.items()) if any(ref.sha256 not in kept for ref in refs)
    ]
    named = {store.manifest_url(pin) for pin in found.manifests}
    manifests = [url for url in files.list_urls(f"{store.root}/manifests") if url not in named]
    objects = [
        url
        for url in files.list_urls(f"{store.root}/objects")
        if url.rsplit("/", 1)[1].split(".")[0] not in kept
    ]
    folders = {
        "/".join(url.removeprefix(store.root + "/").split("/")[:2])
        for url in files.list_urls(f"{store.root}/runs")
    }
    size = sum(files.size(url) for url in objects)
    return Garbage(
        tuple(receipts), tuple(manifests), tuple(objects), tuple(sorted(folders - found.runs)), size
    )
