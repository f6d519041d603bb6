"""Running a stage: plan by fingerprint, reuse receipts, run the rest, balance the books."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from llm.errors import ConfigError, LoamError
from llm.progress import tally
from tasks.store.executors import InlineExecutor, run_all
from tasks.store.fingerprint import canonical, differences, fingerprint
from tasks.store.lease import Lease
from tasks.store.records import Manifest, ManifestRef, ObjectRef, Receipt
from tasks.store.rows import digest_hex
from tasks.store.schema import DROPS, Schema
from tasks.store.stage import Stage
from tasks.store.store import Ref, Store


class BooksDoNotBalance(LoamError):
    """Rows went missing, or came from nowhere: the result is refused."""


class WouldRun(LoamError):
    """Planning has come to a stage that has work to do, for the reasons given."""

    def __init__(self, stage: str, reasons: Sequence[str]) -> None:
        super().__init__(f"{stage} would run: {'; '.join(reasons)}")
        self.stage, self.reasons = stage, tuple(reasons)


@dataclass(frozen=True)
class Request:
    """Everything that decides a stage's result: the manifest it asks for has this fingerprint."""

    stage: Stage
    config: Mapping[str, Any]
    inputs: Mapping[str, Manifest]
    pins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def payload(self) -> dict[str, Any]:
        """The fingerprint's payload: inputs by data digest, so that equal data is one result."""
        return self._payload({role: manifest.data_digest for role, manifest in self.inputs.items()})

    def _payload(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return canonical(
            {
                "stage": self.stage.name,
                "version": self.stage.version,
                "libraries": self.stage.library_versions(),
                "config": dict(self.config),
                "inputs": dict(inputs),
                "pins": dict(self.pins),
            }
        )

    @property
    def ref(self) -> ManifestRef:
        return ManifestRef(self.stage.name, fingerprint(self.payload))

    def action_key(self, inputs: Mapping[str, Any]) -> str:
        """The key of this stage on one shard, whose inputs are given by data digest."""
        return fingerprint(self._payload(inputs))


@dataclass(frozen=True)
class Outcome:
    """What a stage made of one shard: tables by schema, rows in and out, and facts to add up."""

    tables: tuple[tuple[Schema, pa.Table], ...]
    rows_in: int
    rows_out: int
    stats: Mapping[str, float] = field(default_factory=dict)
    objects: tuple[ObjectRef, ...] = ()


@dataclass(frozen=True)
class Action:
    """One call of a stage's function: `inputs` (digests) make its key, `args` are passed on."""

    inputs: Mapping[str, Any]
    args: tuple[Any, ...]


@dataclass(frozen=True)
class Visit:
    """A stage a run came through: what it returned, how long it took, whether it was reused."""

    name: str
    result: Any
    seconds: float
    reused: bool


@dataclass(frozen=True)
class Run:
    """What a run hands to every stage: the store, who asks, and where the actions run.

    `name` is the pipeline's, which its refs and pins carry. `previous` are the manifests of the
    last finished run by stage, and `seen_refs` the pipeline's refs as they were when this one
    started. A run that is `planning` does nothing: the first stage with work to
    do raises WouldRun. `sample` bounds the documents taken of each source. `visits` fills up with
    the stages that the run has come through. `lease` keeps gc and erase away while the run lasts.
    """

    store: Store
    name: str
    run_id: str
    executor: Executor = field(default_factory=InlineExecutor)
    shard_rows: int = 65536
    shard_bytes: int = 128 << 20
    cache_dir: str = ".loam/cache"
    previous: Mapping[str, Manifest] = field(default_factory=dict)
    seen_refs: Mapping[str, Ref] = field(default_factory=dict)
    planning: bool = False
    refresh: bool = False
    accept_losses: bool = False
    accept_alarms: bool = False
    sample: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    say: Callable[[str], None] = print
    visits: list[Visit] = field(default_factory=list)
    lease: Lease | None = None


def reuse(run: Run, request: Request) -> Manifest | None:
    """The manifest that the request asks for, if there is one.

    Raises WouldRun when there is none and the run is only planning.
    """
    found = run.store.find_manifest(request.ref)
    if found is None and run.planning:
        before = run.previous.get(request.stage.name)
        why = differences(before.payload, request.payload) if before else ["it never ran here"]
        raise WouldRun(request.stage.name, why)
    return found


def perform(
    store: Store,
    stage: Stage,
    libraries: Mapping[str, str],
    key: str,
    run_id: str,
    function: Callable[..., Outcome],
    args: tuple[Any, ...],
) -> Receipt:
    """One action, wherever it runs: calls the function, checks its books, writes its outputs.

    Raises ConfigError where other versions are installed than the `libraries` that are in the key,
    as on a worker of a cluster.
    """
    if changed := differences(libraries, stage.library_versions()):
        raise ConfigError(
            f"{stage.name}: {socket.gethostname()} has other libraries than the run was planned "
            f"with ({'; '.join(changed)}): install the same on every worker"
        )
    began = time.perf_counter()
    outcome = function(store, *args)
    drops: dict[str, int] = {}
    for schema, table in outcome.tables:
        if schema.kind == DROPS.kind:
            for reason in table.column("reason").to_pylist():
                drops[reason] = drops.get(reason, 0) + 1
    if outcome.rows_in != outcome.rows_out + sum(drops.values()):
        raise BooksDoNotBalance(
            f"{stage.name}: {outcome.rows_in} rows in, but {outcome.rows_out} out and "
            f"{sum(drops.values())} dropped (action {key[:12]})"
        )
    outputs = [store.put_table(table, schema) for schema, table in outcome.tables]
    written = tuple(ref for ref in outputs if ref is not None) + outcome.objects
    digest = sum(int(ref.data_digest, 16) for ref in written if ref.data_digest)
    receipt = Receipt(
        key=key,
        outputs=written,
        rows_in=outcome.rows_in,
        rows_out=outcome.rows_out,
        drops=dict(sorted(drops.items())),
        data_digest=digest_hex(digest),
        stats=dict(sorted(outcome.stats.items())),
        seconds=round(time.perf_counter() - began, 3),
        host=socket.gethostname(),
        run_id=run_id,
    )
    # What a shard took is not kept for the next: the allocator would hold it in pieces.
    pa.default_memory_pool().release_unused()
    return store.put_receipt(stage.name, receipt)


def run_actions(
    run: Run, request: Request, function: Callable[..., Outcome], actions: Sequence[Action]
) -> list[Receipt]:
    """The receipt of each action, in order: reused where there is one, run where there is not.

    The stage's previous manifest is asked first, and the store only for the rest, so that many
    shards do not mean many reads.
    """
    stage = request.stage.name
    keys = [request.action_key(action.inputs) for action in actions]
    receipts: dict[str, Receipt] = {}
    previous = run.previous.get(stage)
    if previous is not None:
        receipts = {receipt.key: receipt for receipt in run.store.receipts(previous)}
    unknown = sorted({key for key in keys if key not in receipts})
    receipts |= run.store.find_receipts(stage, unknown)
    todo = {key: action for key, action in zip(keys, actions, strict=True) if key not in receipts}
    if todo and len(todo) < len(actions):
        run.say(f"{stage}: {len(actions) - len(todo)} of {len(actions)} shards are done already")
    planned = (request.stage, request.stage.library_versions())
    calls = [
        (run.store, *planned, key, run.run_id, function, action.args)
        for key, action in todo.items()
    ]
    with tally(stage, "shards", len(calls)) as progress:
        for _, receipt in run_all(run.executor, perform, calls):
            receipts[receipt.key] = receipt
            progress.advance()
    return [receipts[key] for key in keys]


def check_books(stage: str, rows_in: int, rows_out: int, drops: Mapping[str, int]) -> None:
    """Raises BooksDoNotBalance unless rows in = rows out + drops."""
    if rows_in != rows_out + sum(drops.values()):
        raise BooksDoNotBalance(
            f"{stage}: {rows_in} live rows in, {rows_out} out, {sum(drops.values())} dropped"
        )
