"""Garbage: what nothing reaches, and taking it away without a race.

Nothing is deleted beside a run (`tasks/store/lease.py`). Names go before what they name: receipts,
then manifests, those made of others first, then objects, then trainings. So whatever a killed gc
leaves is whole, and the next one goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from llm import files
from llm.errors import DataError
from tasks.store.lease import Lease, alone
from tasks.store.reach import (
    DAMAGE,
    Reach,
    Receipts,
    add_manifest,
    object_name,
    reach,
    receipt_outputs,
)
from tasks.store.records import FORMAT, ManifestRef, manifest_from
from tasks.store.store import Store

KEEP_ENTRIES = 5
_AT_A_TIME, _DELETERS = 256, 8


@dataclass(frozen=True)
class Garbage:
    """Files that nothing reaches, in the order in which they go; `bytes` are those of objects.

    `runs` are folders, and the trainings in them.
    """

    receipts: tuple[str, ...]
    manifests: tuple[str, ...]
    objects: tuple[str, ...]
    runs: tuple[str, ...]
    bytes: int


def garbage(store: Store, keep: int = KEEP_ENTRIES) -> Garbage:
    """What neither the last `keep` entries of a ref nor a registered model reach.

    A training on data that is kept stays, finished or not, and so do the pages of a crawl that was
    stopped: the next run goes on with them. Raises DataError where not everything can be followed.
    """
    listed = files.list_urls(f"{store.root}/objects")
    found = reach(store, keep, objects=listed)
    unreached = _unreached_manifests(store, found)
    outputs = receipt_outputs(store, found)
    _keep_trainings(store, found, unreached)
    if found.problems:
        raise DataError(
            f"not everything could be followed, so nothing can be called garbage: "
            f"{found.problems[0]}; see `loam store verify`"
        )
    kept = set(found.objects) | _crawled(store, outputs)
    objects = [url for url in listed if object_name(url) not in kept]
    return Garbage(
        receipts=tuple(
            url for url, refs in sorted(outputs.items()) if any(r.sha256 not in kept for r in refs)
        ),
        manifests=tuple(
            url
            for url, pin in _made_of_others_first(unreached)
            if pin is None or pin not in found.manifests
        ),
        objects=tuple(objects),
        runs=tuple(_unreached_runs(store, found)),
        bytes=sum(files.size(url) for url in objects),
    )


# The URL of a manifest, which it is and what it was made of; no more than the URL of a damaged one.
_Unreached = dict[str, tuple[ManifestRef, tuple[ManifestRef, ...]] | None]


def _unreached_manifests(store: Store, found: Reach) -> _Unreached:
    named = {store.manifest_url(pin) for pin in found.manifests}
    urls = [url for url in files.list_urls(f"{store.root}/manifests") if url not in named]
    read: _Unreached = dict.fromkeys(urls)
    for url, body in zip(urls, files.read_many(urls), strict=True):
        with suppress(*DAMAGE):
            manifest = manifest_from(body or b"", url)
            read[url] = (manifest.ref, tuple(manifest.inputs.values()))
    return read


def _made_of_others_first(manifests: _Unreached) -> list[tuple[str, ManifestRef | None]]:
    """Each manifest before those it was made of, so that none is left without its inputs."""
    known = {entry[0]: url for url, entry in manifests.items() if entry is not None}
    order: dict[str, ManifestRef | None] = {}

    def visit(url: str) -> None:
        if url in order:
            return
        entry = manifests[url]
        for parent in entry[1] if entry is not None else ():
            if parent in known:
                visit(known[parent])
        order[url] = entry[0] if entry is not None else None

    for url in sorted(manifests):
        visit(url)
    return list(reversed(order.items()))


def _keep_trainings(store: Store, found: Reach, unreached: _Unreached) -> None:
    """Adds the trainings on data that is kept: they cost the most, and a run goes on with them."""
    for entry in unreached.values():
        if entry is not None and entry[0].stage == "train":
            pin, inputs = entry
            if all(parent in found.manifests for parent in inputs):
                add_manifest(store, pin, "a training on data that is kept", found)
    for folder in _run_folders(store) - found.runs:
        (body,) = files.read_many([f"{store.root}/{folder}/run.json"])
        if body is not None:
            dataset = object_name(json.loads(body)["spec"]["dataset_url"])
            if dataset in found.objects:
                found.runs.add(folder)


def _run_folders(store: Store) -> set[str]:
    urls = files.list_urls(f"{store.root}/runs")
    return {"/".join(url.removeprefix(f"{store.root}/").split("/")[:2]) for url in urls}


def _unreached_runs(store: Store, found: Reach) -> list[str]:
    return sorted(_run_folders(store) - found.runs)


def _crawled(store: Store, outputs: Receipts) -> set[str]:
    """The objects of crawls' batches, while a crawl is open that a run would go on with."""
    refs = [store.find_ref(kind, name) for kind, name in store.list_refs("crawl")]
    if not any(ref is not None and ref.value["open"] for ref in refs):
        return set()
    batches = f"{store.root}/actions/crawl/"
    return {
        ref.sha256 for url, refs_ in outputs.items() if url.startswith(batches) for ref in refs_
    }


def collect(store: Store, keep: int, say: Callable[[str], None]) -> Garbage:
    """Deletes the garbage, alone in the store, and returns what went.

    Raises StoreInUse where a run is at work, LeaseLost where this process did not stir for so long
    that a run went on without waiting for it.
    """
    with alone(store.root, say) as lease:
        _mark_collected(store, keep)
        found = garbage(store, keep)
        _delete(found.receipts, lease, _DELETERS)
        _delete(found.manifests, lease, 1)
        _delete(found.objects, lease, _DELETERS)
        for run in found.runs:
            _delete(_files_of_run(f"{store.root}/{run}"), lease, 1)
        _delete_staged(store)
    return found


def _mark_collected(store: Store, keep: int) -> None:
    """Notes in each ref which entries of its history name what is gone from now on."""
    for kind, name in store.list_refs():
        while kind != "takedown" and (ref := store.find_ref(kind, name)) is not None:
            entries = [{"value": ref.value, "at": ref.at}, *ref.history]
            marked = [e if i < keep else {**e, "collected": True} for i, e in enumerate(entries)]
            if marked == entries:
                break
            body = json.dumps(
                {"format": FORMAT, "entries": marked}, sort_keys=True, indent=2, ensure_ascii=False
            )
            if files.swap(store.ref_url(kind, name), ref.seen, body.encode()):
                break


def _delete(urls: Sequence[str], lease: Lease, at_once: int) -> None:
    """Deletes files as long as the lease is held; with one at once, in their order."""
    with ThreadPoolExecutor(at_once) as deleters:
        for start in range(0, len(urls), _AT_A_TIME):
            lease.check()
            list(deleters.map(files.delete, urls[start : start + _AT_A_TIME]))


def _files_of_run(url: str) -> list[str]:
    """The files of a training: first what says that it is whole, last what says whose it is."""
    rank = {"result.json": 0, "index.json": 1, "run.json": 3}
    return sorted(
        files.list_urls(url), key=lambda file: (rank.get(file.rsplit("/", 1)[1], 2), file)
    )


def _delete_staged(store: Store) -> None:
    """Removes what runs that were killed had not given a name yet."""
    if files.is_s3(store.root):
        return
    for folder in ("objects", "actions", "manifests", "runs"):
        for path in files.local_path(f"{store.root}/{folder}").rglob(".staged-*"):
            path.unlink(missing_ok=True)
