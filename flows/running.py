"""Starting a run: what it is told, what it remembers of the last one, and who is running it."""

from __future__ import annotations

import platform
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pydantic import Field

from flows.config import PipelineConfig, StoreConfig
from llm.config import Config
from tasks import registry
from tasks.register import model_name
from tasks.store.executors import dask_executor, executor_for
from tasks.store.lease import joined
from tasks.store.records import Manifest, ManifestRef
from tasks.store.run import Run
from tasks.store.store import Store

PUBLISHED = ("corpus", "dataset")


class RunOptions(Config):
    """How one run differs from the pipeline's ordinary one."""

    refresh: bool = False
    """Look at every source again, however lately it was read."""

    sample: int | None = Field(None, ge=1)
    """Take at most so many documents of each source, under refs and pins of their own."""

    accept_losses: bool = False
    """Go on where a source has lost more documents than its `max_loss` allows."""

    accept_alarms: bool = False
    """Publish a corpus whose alarms would stop the run (`alarms.on = "stop"`)."""


def run_name(config: PipelineConfig, sample: int | None) -> str:
    """The name that refs and pins carry. A sample has its own, so that it never moves the real."""
    return f"{config.name}-sample{sample}" if sample else config.name


@contextmanager
def open_run(
    config: PipelineConfig,
    options: RunOptions,
    *,
    planning: bool = False,
    say: Callable[[str], None] = print,
) -> Iterator[Run]:
    """A run over the config's store, with its worker processes for as long as it is open.

    Unless it is only planning, gc and erase keep away from the store as long, and it waits for one
    that has begun.
    """
    store, run_id = Store.at(config.store.root), new_run_id()
    name = run_name(config, options.sample)
    if not planning and not store.creates_once():
        say(
            f"{store.root}: this storage does not honour conditional writes; one run at a time only"
        )
    leased = nullcontext() if planning else joined(store.root, run_id, say)
    with leased as lease, _executor(config.store, planning) as executor:
        refs = {kind: ref for kind in PUBLISHED if (ref := store.find_ref(kind, name))}
        yield Run(
            store=store,
            name=name,
            run_id=run_id,
            executor=executor,
            shard_rows=config.store.shard_rows,
            shard_bytes=config.store.shard_bytes,
            cache_dir=config.store.cache_dir,
            previous=last_manifests(store, name, model_name(config.registry, name, options.sample)),
            seen_refs=refs,
            planning=planning,
            refresh=options.refresh,
            accept_losses=options.accept_losses,
            accept_alarms=options.accept_alarms,
            sample=options.sample,
            provenance=provenance(),
            say=say,
            lease=lease,
        )


def _executor(config: StoreConfig, planning: bool) -> AbstractContextManager[Executor]:
    if planning:
        return executor_for(1)
    if config.executor == "dask":
        return dask_executor(config.dask_address, config.workers)
    return executor_for(config.workers)


def new_run_id() -> str:
    """A run's name: when it began, and a few random letters."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def provenance() -> dict[str, Any]:
    """Who ran this: recorded beside every output, part of no digest."""
    return {
        "host": socket.gethostname(),
        "loam": version("loam"),
        "python": platform.python_version(),
        "argv": [sys.argv[0].rsplit("/", 1)[-1], *sys.argv[1:]],
    }


def last_manifests(store: Store, name: str, model: str) -> dict[str, Manifest]:
    """The manifests of the last finished run by stage: what its refs reach, and the newest version
    of `model` that is of that dataset (one that became what it was before has its own already),
    if any."""
    found: dict[str, Manifest] = {}
    there = [ref for kind in PUBLISHED if (ref := store.find_ref(kind, name))]
    lines = [pin for ref in there for pin in ref.line]
    refs = [ref.manifest for ref in there]
    known = registry.versions(store, model)
    newest = [v for v in known if v.manifests["dataset"] in refs][-1:] or known[-1:]
    for pin in lines + [pin for version_ in newest for pin in version_.manifests.values()]:
        _follow(store, pin, found)
    return found


def _follow(store: Store, pin: ManifestRef, found: dict[str, Manifest]) -> None:
    if pin.stage in found:
        return
    manifest = store.find_manifest(pin)
    if manifest is None:
        return
    found[pin.stage] = manifest
    for parent in manifest.inputs.values():
        _follow(store, parent, found)
