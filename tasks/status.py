"""What stands in a store: its refs, snapshots, pins and models, and what is still under way."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

import psutil

from llm import files
from llm.metrics import read_metrics
from tasks import registry
from tasks.store.store import Ref, Store

# Kinds of ref that are shown in a table of their own, or by a command of their own.
_APART = frozenset({"snapshot", "pin", "crawl", "takedown"})


@dataclass(frozen=True)
class RefState:
    """A ref: what it names, since when, by which run, and how many entries its history has."""

    name: str
    names: str
    at: str
    rows: int | None
    run_id: str | None
    entries: int


@dataclass(frozen=True)
class SnapshotState:
    """A source's snapshot: its live rows, and when the source was last looked at."""

    name: str
    rows: int
    looked_at: str


@dataclass(frozen=True)
class PinState:
    """What is held, by digest; a pin that was let go of has none."""

    name: str
    sha256: str | None
    at: str


@dataclass(frozen=True)
class Training:
    """A training that is not complete: the last step that was logged, and who is at it."""

    run: str
    step: int
    steps: int
    holder: str | None


@dataclass(frozen=True)
class ModelState:
    """A registered model: its newest version and its aliases."""

    name: str
    newest: int
    aliases: dict[str, int]


@dataclass(frozen=True)
class StoreStatus:
    """Everything that stands in a store. `crawls` are those a stopped run would go on with."""

    root: str
    refs: tuple[RefState, ...]
    snapshots: tuple[SnapshotState, ...]
    pins: tuple[PinState, ...]
    crawls: tuple[str, ...]
    trainings: tuple[Training, ...]
    models: tuple[ModelState, ...]


def store_status(store: Store) -> StoreStatus:
    found = {
        (kind, name): ref
        for kind, name in store.list_refs()
        if (ref := store.find_ref(kind, name)) is not None
    }

    def of(kind: str) -> list[tuple[str, Ref]]:
        return [(name, ref) for (one, name), ref in found.items() if one == kind]

    models = [(name, registry.versions(store, name)) for name in registry.names(store)]
    return StoreStatus(
        root=store.root,
        refs=tuple(
            _ref_state(store, f"{kind}/{name}", ref)
            for (kind, name), ref in found.items()
            if kind not in _APART
        ),
        snapshots=tuple(
            SnapshotState(name, store.manifest(ref.manifest).rows_out, ref.at)
            for name, ref in of("snapshot")
        ),
        pins=tuple(
            PinState(name, (ref.value["object"] or {}).get("sha256"), ref.at)
            for name, ref in of("pin")
        ),
        crawls=tuple(name for name, ref in of("crawl") if ref.value["open"]),
        trainings=tuple(trainings(store)),
        models=tuple(
            ModelState(name, known[-1].version, registry.aliases(store, name))
            for name, known in models
            if known
        ),
    )


def _ref_state(store: Store, name: str, ref: Ref) -> RefState:
    manifest = store.find_manifest(ref.manifest)
    return RefState(
        name=name,
        names=f"{ref.manifest.stage} {ref.manifest.fingerprint[:12]}",
        at=ref.at,
        rows=manifest.rows_out if manifest else None,
        run_id=manifest.provenance.get("run_id") if manifest else None,
        entries=1 + len(ref.history),
    )


def trainings(store: Store) -> list[Training]:
    """The trainings that have begun and have no result yet."""
    base = f"{store.root}/runs/"
    begun = sorted({url.removeprefix(base).split("/")[0] for url in files.list_urls(base)})
    found = (find_training(store, f"{base}{run}") for run in begun)
    return [training for training in found if training is not None]


def find_training(store: Store, url: str) -> Training | None:
    """The training that has begun at a run's URL; None when there is none, or it is complete."""
    body, result = files.read_many([f"{url}/run.json", f"{url}/result.json"])
    if body is None or result is not None:
        return None
    steps = json.loads(body)["identity"]["train"]["steps"]
    logged = read_metrics(url)
    lease = files.read_versioned(f"{url}/lease.json")
    holder = json.loads(lease.body)["holder"] if lease else None
    step = logged[-1]["step"] if logged else 0
    return Training(url.removeprefix(f"{store.root}/runs/"), step, steps, _at_it(holder))


def _at_it(holder: dict[str, Any] | None) -> str | None:
    """Who holds a lease, unless that is a process of this host that is gone."""
    if holder is None:
        return None
    here = holder["host"] == socket.gethostname()
    if here and not psutil.pid_exists(int(holder["pid"])):
        return None
    return f"process {holder['pid']} on {holder['host']}"
